"""Regret: the parts sum to the whole, and each is nothing where there is nothing to lose."""

from dataclasses import replace

import numpy as np
import pytest

from fox.agents.realtime.behaviour import beta
from fox.agents.realtime.decomposition import (
    BETA,
    CatchOracle,
    Played,
    bands,
    block_sums,
    decompose,
)
from fox.agents.realtime.envs.catch import CatchRT
from fox.agents.realtime.ticks import Source

BALL = 128  # ticks


def schedule(balls, d, every=1, rewards=None):
    """A run of one episode that acts at every `every`-th tick on the observation of d ticks ago."""
    ticks = np.arange(balls * BALL)
    acts = (ticks >= d) & (ticks % every == 0)
    source = np.where(acts, Source.POLICY, Source.BETA_UNDISPATCHED)
    source[:d] = Source.BETA_RESET
    return Played(
        episode=np.zeros_like(ticks),
        obs_tick=np.where(acts, ticks - d, BETA),
        source=source.astype(np.uint8),
        d=np.full_like(ticks, d),
        reward=np.zeros(len(ticks)) if rewards is None else rewards,
    )


def parts(played, gusts=0.0, kind="noop", seed=0):
    behaviour = beta(kind, n_actions=3, noop=0, seed=seed)
    return decompose(CatchRT(gusts=gusts), CatchOracle, played, behaviour, seed)


def test_the_parts_sum_to_the_undelayed_references_reward_less_the_runs():
    rewards = np.random.default_rng(0).integers(-1, 2, 40 * BALL).astype(float)
    played = schedule(40, d=30, every=7, rewards=rewards)
    regret = parts(played, gusts=0.02)
    undelayed = parts(schedule(40, d=0), gusts=0.02)
    assert np.array_equal(undelayed.delay, np.zeros(40 * BALL))
    everything = undelayed.learning - rewards  # that run had no rewards
    assert np.array_equal(regret.delay + regret.inaction + regret.learning, everything)
    assert np.array_equal(regret.total, everything)
    assert all(part.any() for part in (regret.delay, regret.inaction, regret.learning))


@pytest.mark.parametrize("d", [1, 16, 64])
def test_a_deterministic_world_has_no_delay_part_below_the_fall_time(d):
    assert not parts(schedule(60, d, every=d)).delay.any()


def test_the_delay_part_comes_with_gusts_or_with_a_delay_beyond_the_fall_and_grows_with_the_delay():
    lost = [parts(schedule(100, d), gusts=0.02).delay.sum() for d in (1, 16, 48)]
    assert 0 <= lost[0] < lost[1] < lost[2]
    assert parts(schedule(60, 150)).delay.sum() > 30


@pytest.mark.parametrize("gusts", [0.0, 0.02])
def test_an_action_at_every_tick_has_no_inaction_part(gusts):
    assert not parts(schedule(40, 20), gusts=gusts).inaction.any()


def test_sequential_play_loses_by_inaction_in_proportion_to_time():
    played = schedule(400, d=16, every=16)
    assert played.tau_i == 16
    assert (played.obs_tick == BETA).mean() == pytest.approx((16 - 1) / 16, abs=1e-3)
    lost = parts(played).inaction.cumsum()
    ticks = np.arange(len(lost))
    slope = lost[-1] / len(lost)
    assert slope * BALL > 0.5  # rewards a ball
    assert np.abs(lost - slope * ticks).max() < 0.06 * lost[-1]


def test_a_run_by_the_reference_itself_has_nothing_to_learn():
    played = schedule(40, d=20, every=10)
    by_reference = parts(played, gusts=0.02, kind="random", seed=3).learning  # its rewards
    again = replace(played, reward=by_reference)
    assert not parts(again, gusts=0.02, kind="random", seed=3).learning.any()
    assert parts(again, gusts=0.02, kind="random", seed=4).learning.any()


def test_no_play_acts_on_the_observation_of_an_earlier_episode():
    class Watched(CatchOracle):
        seen, first = set(), 0

        def see(self, env, token):
            Watched.first = int(token["tick"]) if token["start"] else Watched.first
            return np.array([env.px, env.bx, int(token["tick"])])

        def act(self, features, committed, observation):
            assert features[2] >= Watched.first
            assert len(committed) in (0, 20)
            return super().act(features[:2], committed, observation)

    played = schedule(4, d=20)
    episode = np.repeat([0, 1], 2 * BALL)
    source = played.source.copy()
    source[2 * BALL : 2 * BALL + 20] = Source.BETA_RESET
    obs_tick = np.where(source == Source.POLICY, played.obs_tick, BETA)
    played = replace(played, episode=episode, obs_tick=obs_tick, source=source)
    behaviour = beta("noop", n_actions=3, noop=0, seed=0)
    regret = decompose(CatchRT(), Watched, played, behaviour, 5)
    assert not regret.inaction.any()


def test_the_interval_between_actions_leaves_out_the_gap_between_episodes():
    episode = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    obs_tick = np.array([BETA, 0, BETA, 2, BETA, BETA, BETA, 4])
    zeros = np.zeros(8)
    assert Played(episode, obs_tick, zeros, zeros, zeros).tau_i == 2
    assert Played(episode, np.full(8, BETA), zeros, zeros, zeros).tau_i == np.inf


def test_bands_hold_the_true_regret_of_most_runs_and_follow_its_drift():
    rng = np.random.default_rng(0)
    rates = np.repeat([0.9, 0.1], 100)  # of lost balls: what is learnt makes it fall
    held = []
    for seed in range(60):
        lost = np.zeros((200, 10))
        lost[:, -1] = rng.random(200) < rates
        low, high = bands(lost.ravel(), 10, samples=200, seed=seed)
        held.append((low <= rates.cumsum()) & (rates.cumsum() <= high))
        assert (high - low)[-1] < 30
    assert np.mean(held, axis=0)[[49, 99, 199]].min() > 0.85
    assert np.mean(held) > 0.9


def test_blocks_are_whole_and_there_is_at_least_one():
    assert block_sums(np.arange(7.0), 3).tolist() == [3, 12]
    with pytest.raises(ValueError, match=r"at least 128 ticks \(one block\), but got 7: play"):
        bands(np.zeros(7), 128)
