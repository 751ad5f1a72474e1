"""Default behaviours and exploration: whose action, how often, and the same again on resumption."""

import numpy as np
import pytest
import torch

from fox.agents.realtime.behaviour import Exploration, SmallPolicy, beta, random_generator
from fox.agents.realtime.policy import PolicyConfig, RealtimePolicy, batch_of
from fox.agents.realtime.ticks import token_dtype

KIND = token_dtype(np.zeros(3, np.float32))


def token(tick=5, action=2):
    row = np.zeros((), KIND)
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


class Tokens:
    """Rows of a list."""

    def __init__(self, tokens):
        self.tokens = tokens

    def read(self, first, last):
        return self.tokens[max(first, 0) : last + 1]


def small(rows, d, step_seconds=10.0, **changes):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_heads": 2, "window": 6, "d_max": 4}
    policy = RealtimePolicy(PolicyConfig(**(sizes | changes)), (3,), np.dtype(np.float32), 6)
    return SmallPolicy(policy, d, rows, KIND, step_seconds)


@pytest.mark.parametrize(("d", "fresh"), [(1, False), (3, False), (2, True)])
def test_a_small_policy_acts_on_tokens_and_committed_actions_of_its_own_delay(d, fresh):
    rng = np.random.default_rng(0)
    tokens = np.zeros(40, KIND)
    tokens["tick"], tokens["start"][[0, 20]] = np.arange(40), True
    tokens["obs"], tokens["action"] = rng.normal(size=(40, 3)), rng.integers(6, size=40)
    behaviour = small(Tokens(tokens), d, fresh=fresh)
    policy, actions = behaviour.policy, set()
    for k in range(40):
        action = behaviour(tokens[k])
        actions.add(action)
        if k % 20 < d:  # no observation of the episode is d ticks old
            assert action == tokens["action"][k]
            continue
        seen = batch_of(tokens[max(0, k - d - 5) : k - d + 1])
        with torch.no_grad():
            h = policy.window(policy.encode(seen), seen["start"])[:, -1]
            committed = torch.tensor([[int(tokens["action"][j + 1]) for j in range(k - d, k)]])
            now = torch.from_numpy(tokens["obs"][[k]]) if fresh else None
            assert action == int(policy.head(h, committed, now).argmax())
    assert len(actions) > 1


def test_a_small_policy_that_takes_more_than_a_fifth_of_a_tick_is_refused():
    with pytest.raises(ValueError, match=r"within 0\.2 of a step, 0\.01 ms, but this one takes"):
        small(Tokens([]), 1, step_seconds=5e-5)


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
