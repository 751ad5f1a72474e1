"""Atari games frame by frame."""

import sys

import numpy as np
import pytest

from fox.agents.realtime.envs.atari import AtariEnv

GAMES = ("Tetris", "Boxing", "Krull", "NameThisGame")


@pytest.fixture
def ale_py():
    return pytest.importorskip("ale_py")


@pytest.mark.parametrize("game", GAMES)
def test_a_step_is_one_frame_and_a_state_continues_exactly(ale_py, game):
    env, other = AtariEnv(game, "image"), AtariEnv(game)
    env.reset(1)
    before = env._ale.getFrameNumber()
    for tick in range(60):
        env.step(tick // 8 % env.n_actions)
    assert env._ale.getFrameNumber() == before + 60
    other.set_state(env.get_state())
    for tick in range(60):
        image = env.step(tick // 4 % env.n_actions)[0]
        features = other.step(tick // 4 % env.n_actions)[0]
    assert (image.shape, image.dtype) == ((84, 84), np.uint8)
    assert (features.shape, features.dtype) == ((128,), np.float32)
    np.testing.assert_array_equal(other.render84(), image)
    np.testing.assert_array_equal(features, env.features())
    assert image.std() > 1


@pytest.mark.parametrize("game", GAMES)
def test_no_action_is_ever_repeated_or_skipped(ale_py, game):
    env = AtariEnv(game)
    assert env._ale.getInt("frame_skip") == 1
    assert env._ale.getFloat("repeat_action_probability") == 0
    assert env.action_names[env.noop] == "noop"
    assert env.n_actions == len(env._ale.getMinimalActionSet())


def test_a_seed_decides_how_many_idle_frames_come_first(ale_py):
    env = AtariEnv("Boxing")

    def start(seed):
        env.reset(seed)
        return env._ale.getEpisodeFrameNumber()

    starts = [start(seed) for seed in range(20)]
    assert start(3) == starts[3]
    assert 5 < len(set(starts)) <= 20
    assert max(starts) - min(starts) <= 30


def test_wrong_arguments_are_refused(ale_py):
    with pytest.raises(ValueError, match=r"game must be one that ale-py knows.*but got 'Pacmen'"):
        AtariEnv("Pacmen")
    with pytest.raises(ValueError, match="must be 'features' or 'image', but got 'ram'"):
        AtariEnv("Boxing", "ram")


def test_a_missing_ale_py_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fox-transformer\[atari\]'"):
        AtariEnv("Boxing")
