"""Default behaviours and exploration: whose action, how often, and the same again on resumption."""

import time

import numpy as np
import pytest

from fox.agents.realtime.behaviour import Exploration, beta, random_generator, small_model
from fox.agents.realtime.ticks import token_dtype


def token(tick=5, action=2):
    row = np.zeros((), token_dtype(np.zeros(3, np.float32)))
    row["tick"], row["action"] = tick, action
    return row


def of(kind, seed=0):
    return beta(kind, n_actions=6, noop=4, seed=seed)


def test_noop_does_nothing_and_repeat_holds_what_was_executed():
    assert of("noop")(token(action=2)) == 4
    assert of("repeat")(token(action=2)) == 2


def test_random_behaviour_is_uniform_and_keyed_by_seed_and_tick():
    drawn = [of("random")(token(tick)) for tick in range(6000)]
    assert np.bincount(drawn, minlength=6) == pytest.approx(np.full(6, 1000), abs=120)
    assert drawn[4321] == of("random")(token(4321))
    assert drawn[:50] != [of("random", seed=1)(token(tick)) for tick in range(50)]


def test_an_unknown_behaviour_is_refused_by_name():
    with pytest.raises(ValueError, match=r"noop, repeat, random or .* but got 'still'"):
        of("still")


def test_a_small_model_acts_on_the_token():
    act = small_model(lambda row: int(row["action"]) + 1, token(), step_seconds=0.016)
    assert act(token(action=2)) == 3


def test_a_small_model_that_takes_more_than_a_fifth_of_a_tick_is_refused():
    with pytest.raises(ValueError, match=r"within 0\.2 of a step, 1\.00 ms, but this one takes"):
        small_model(lambda row: time.sleep(0.002) or 0, token(), step_seconds=0.005)


def test_random_numbers_are_those_of_seed_stream_and_tick():
    keys = [(0, 0, 7), (1, 0, 7), (0, 1, 7), (0, 0, 8), (0, 0, 2**40)]
    drawn = [random_generator(*key).random(8).tolist() for key in keys]
    assert drawn == [random_generator(*key).random(8).tolist() for key in keys]
    assert len({number for row in drawn for number in row}) == 5 * 8


def test_exploration_is_the_same_from_any_tick_on():
    explore = Exploration(3, seed=5, decay_ticks=100)
    whole = [explore(tick) for tick in range(200)]
    resumed = Exploration(3, seed=5, decay_ticks=100)
    assert [resumed(tick) for tick in range(150, 200)] == whole[150:]
    assert [Exploration(3, seed=6, decay_ticks=100)(tick) for tick in range(200)] != whole


def test_epsilon_falls_evenly_to_its_last_value():
    explore = Exploration(3, seed=0, first=1.0, last=0.2, decay_ticks=100)
    wanted = [1.0, 0.6, 0.2, 0.2]
    assert [explore.epsilon(tick) for tick in (0, 50, 100, 10**6)] == pytest.approx(wanted)


@pytest.mark.parametrize("hold_ticks", [1, 8])
def test_the_share_of_random_ticks_is_epsilon_and_their_actions_are_uniform(hold_ticks):
    explore = Exploration(4, 0, first=0.3, last=0.3, decay_ticks=1, hold_ticks=hold_ticks)
    drawn = [explore(tick) for tick in range(0, 8000 * hold_ticks, hold_ticks)]
    random = [action for action in drawn if action is not None]
    assert len(random) == pytest.approx(2400, abs=160)
    assert np.bincount(random) == pytest.approx(np.full(4, len(random) / 4), abs=120)


def test_a_random_action_is_held_for_a_block_of_ticks():
    explore = Exploration(100, seed=0, first=0.5, last=0.5, hold_ticks=8)
    drawn = [explore(tick) for tick in range(800)]
    blocks = [set(drawn[first : first + 8]) for first in range(0, 800, 8)]
    assert all(len(block) == 1 for block in blocks)
    assert len(set.union(*blocks)) > 20


def test_no_exploration_at_epsilon_zero_and_nothing_else_at_one():
    always, never = (Exploration(3, seed=0, first=e, last=e) for e in (1.0, 0.0))
    assert None not in {always(tick) for tick in range(300)}
    assert {never(tick) for tick in range(300)} == {None}


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1, but got 2 and 0\.05"):
        Exploration(3, seed=0, first=2)
    with pytest.raises(ValueError, match="hold_ticks must be at least 1, but got 0"):
        Exploration(3, seed=0, hold_ticks=0)
