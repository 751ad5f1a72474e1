"""Environments that do not wait: one step is one frame."""

from fox.agents.realtime.envs.config import EnvConfig, make_env

__all__ = ["EnvConfig", "make_env"]
