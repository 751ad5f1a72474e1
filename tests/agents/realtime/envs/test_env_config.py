"""Environments by name."""

import pytest

from fox.agents.realtime.envs.catch import CatchRT
from fox.agents.realtime.envs.config import EnvConfig, make_env


def test_a_config_makes_the_environment_that_it_names():
    env = EnvConfig("catch", "image", lives=3, gusts=0.1).make()
    assert isinstance(env, CatchRT)
    assert (env.lives, env.gusts, env.reset(0).shape) == (3, 0.1, (84, 84))
    assert make_env("catch").reset(0).shape == (4,)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"must be one of catch, blocks, .*, but got .pong."):
        make_env("pong")
