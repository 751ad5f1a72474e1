"""Environments by name."""

import pytest

from fox.agents.realtime.envs.atari import AtariEnv
from fox.agents.realtime.envs.blocks import BlocksRT
from fox.agents.realtime.envs.catch import CatchRT
from fox.agents.realtime.envs.config import EnvConfig


def test_a_config_makes_the_environment_that_it_names():
    env = EnvConfig("catch", "image", lives=3, gusts=0.1).make()
    assert isinstance(env, CatchRT)
    assert (env.lives, env.gusts, env.reset(0).shape) == (3, 0.1, (84, 84))
    env = EnvConfig("blocks", gravity=7).make()
    assert isinstance(env, BlocksRT)
    assert env.gravity == 7
    assert EnvConfig("catch").make().reset(0).shape == (4,)


def test_optional_packages_environments_have_names_too():
    pytest.importorskip("ale_py")
    assert isinstance(EnvConfig("atari:Boxing").make(), AtariEnv)
    pytest.importorskip("gymnasium")
    assert EnvConfig("gym:CartPole-v1", noop=1, fps=30).make().fps == 30
    pytest.importorskip("pyboy")
    env = EnvConfig("gameboy", "image").make()
    assert env.reset(0).shape == (84, 84)
    env.close()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("pong", {}, "must be one of catch, blocks, gym:ID, atari:GAME, gameboy, but got 'pong'"),
        ("atari", {}, "must be one of .* but got 'atari'"),
        ("catch:10", {}, "must be one of .* but got 'catch:10'"),
        ("blocks", {"gusts": 0.1}, "'blocks' has no setting 'gusts': leave it out"),
        ("gym:CartPole-v1", {}, "needs noop, the action that does nothing: give it"),
    ],
    ids=str,
)
def test_a_config_that_names_no_environment_is_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        EnvConfig(name, **settings).make()
