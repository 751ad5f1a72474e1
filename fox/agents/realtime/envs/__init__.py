"""Environments that do not wait: one step is one frame."""

from fox.agents.realtime.envs.config import EnvConfig

__all__ = ["EnvConfig"]
