"""Targets, on games whose numbers were computed by hand."""

import pytest
import torch

from fox.agents.hanabi.targets import (
    bomb_rewards,
    double_q_value,
    joint_target,
    joint_value,
    n_step_target,
)

# Five turns: two players' turns are 0 2 4 and 1 3, three players' are 0 3, 1 4 and 2.
R_T = torch.tensor([[1.0, 0.0, 2.0, 0.0, 4.0]])
V_T = torch.tensor([[16.0, 32.0, 64.0, 128.0, 256.0]])


def by_own_turns(r_t, v_t, players, n, gamma):
    """The definition for independent learners, seat by seat."""
    T = len(r_t)
    y_t = [0.0] * T
    for seat in range(players):
        own = list(range(seat, T, players))
        for i, t in enumerate(own):
            end = own[i + n] if i + n < len(own) else T
            y_t[t] = sum(gamma ** (u - t) * r_t[u] for u in range(t, end))
            y_t[t] += gamma ** (end - t) * v_t[end] if i + n < len(own) else 0.0
    return y_t


def test_the_value_of_whoever_moves_next_follows_one_reward():
    y_t = n_step_target(R_T, V_T, 1, 0.5)
    assert y_t.tolist() == [[1 + 16, 0 + 32, 2 + 64, 0 + 128, 4]]


def test_a_horizon_of_three_turns_sums_three_rewards():
    y_t = n_step_target(R_T, V_T, 3, 0.5)
    assert y_t.tolist() == [[1.5 + 128 / 8, 1 + 256 / 8, 2 + 1, 2.0, 4.0]]


def test_two_players_own_turns_are_two_turns_apart():
    y_t = n_step_target(R_T, V_T, 1 * 2, 0.5)
    assert y_t.tolist() == [[1 + 64 / 4, 1 + 128 / 4, 2 + 256 / 4, 0 + 2, 4.0]]


@pytest.mark.parametrize("players", [2, 3, 4, 5])
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("turns", [1, 2, 3, 7, 12])
def test_targets_of_own_turns_are_those_of_n_rounds_later(players, n, turns):
    generator = torch.Generator().manual_seed(turns)
    r_t, v_t = torch.randn(2, 1, turns, generator=generator, dtype=torch.float64)
    expected = by_own_turns(r_t[0].tolist(), v_t[0].tolist(), players, n, 0.9)
    y_t = n_step_target(r_t, v_t, n * players, 0.9)
    torch.testing.assert_close(y_t[0], torch.tensor(expected, dtype=torch.float64))


def test_games_side_by_side_do_not_meet():
    r_t = torch.tensor([[1.0, 2.0, 0.0, 0.0], [1.0, 2.0, 4.0, 8.0]])
    v_t = torch.tensor([[10.0, 20.0, 0.0, 0.0], [10.0, 20.0, 40.0, 80.0]])
    assert n_step_target(r_t, v_t, 1, 0.5)[0, :2].tolist() == [1 + 10, 2]
    assert n_step_target(r_t, v_t, 2, 0.5).tolist() == [[2, 2, 0, 0], [2 + 10, 4 + 20, 8, 8]]


def test_a_round_is_worth_what_its_movers_are_worth_together():
    assert joint_value(V_T, 2).tolist() == [[48, 192, 256]]
    assert joint_value(V_T, 3).tolist() == [[112, 384]]


def test_two_players_joint_targets_by_hand():
    Y_i = joint_target(R_T, V_T, 2, 1, 0.5)
    assert Y_i.tolist() == [[1 + 192 / 4, 2 + 256 / 4, 4]]
    Y_i = joint_target(R_T, V_T, 2, 2, 0.5)
    assert Y_i.tolist() == [[1 + 2 / 4 + 256 / 16, 2 + 4 / 4, 4]]


def test_three_players_joint_targets_by_hand():
    Y_i = joint_target(R_T, V_T, 3, 1, 0.5)
    assert Y_i.tolist() == [[1 + 2 / 4 + 384 / 8, 4 / 2]]


def test_a_game_that_ends_in_mid_round_masks_the_absent_seats():
    r_t = torch.tensor([[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    v_t = torch.tensor([[1.0, 2.0, 4.0, 0.0], [1.0, 2.0, 4.0, 8.0]])
    assert joint_target(r_t, v_t, 2, 1, 1.0).tolist() == [[4, 1], [12, 1]]


def test_the_online_network_chooses_among_the_legal_moves():
    q_t = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    online = torch.tensor([[5.0, 4.0, 9.0], [5.0, 4.0, -9.0]])
    legal = torch.tensor([[True, True, False], [False, False, True]])
    assert double_q_value(q_t, online, legal).tolist() == [1.0, 3.0]


def test_a_bomb_costs_the_score_or_nothing():
    r_t = torch.tensor([[1.0, 0.0, -3.0]])
    assert bomb_rewards(r_t, "strict").tolist() == [[1.0, 0.0, -3.0]]
    assert bomb_rewards(r_t, "keep").tolist() == [[1.0, 0.0, 0.0]]
