"""Q-learning's formulas, on numbers computed by hand."""

import pytest
import torch

from fox.agents.dqn import (
    action_value,
    bootstrap_discount,
    double_q_target,
    huber,
    n_step_return,
    q_target,
    td_error,
)

Q_TPM = torch.tensor([[1.0, 4.0, 2.0], [3.0, 0.0, -1.0]])


def test_a_return_counts_the_rewards_up_to_its_last_step():
    r_t = torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0], [1.0, 2.0, 4.0]])
    returns = n_step_return(r_t, torch.tensor([1, 2, 3]), 0.5)
    assert returns.tolist() == [1.0, 1.0 + 1.0, 1.0 + 1.0 + 1.0]


def test_rewards_behind_the_last_step_are_not_read():
    r_t = torch.tensor([[1.0, float("nan")]])
    assert n_step_return(r_t, torch.tensor([1]), 0.5).tolist() == [1.0]


def test_a_discount_is_a_power_of_the_steps_and_zero_after_termination():
    steps, terminated = torch.tensor([1, 3, 3]), torch.tensor([False, False, True])
    assert bootstrap_discount(steps, terminated, 0.5).tolist() == [0.5, 0.125, 0.0]


def test_a_target_adds_the_largest_value():
    target = q_target(torch.tensor([10.0, 20.0]), torch.tensor([0.5, 0.0]), Q_TPM)
    assert target.tolist() == [12.0, 20.0]


def test_a_double_target_takes_the_value_of_the_online_networks_action():
    online = torch.tensor([[0.0, 1.0, 9.0], [0.0, 9.0, 1.0]])
    return_t, discount_tpm = torch.tensor([10.0, 20.0]), torch.tensor([0.5, 1.0])
    target = double_q_target(return_t, discount_tpm, Q_TPM, online)
    assert target.tolist() == [11.0, 20.0]


def test_an_error_is_the_target_minus_the_executed_actions_value():
    a_t = torch.tensor([1, 2])
    assert action_value(Q_TPM, a_t).tolist() == [4.0, -1.0]
    assert td_error(Q_TPM, a_t, torch.tensor([5.0, 1.0])).tolist() == [1.0, 2.0]


def test_huber_is_square_near_zero_and_straight_beyond():
    x = torch.tensor([-3.0, -0.5, 0.0, 1.0, 3.0], requires_grad=True)
    assert huber(x, 1.0).tolist() == [2.5, 0.125, 0.0, 0.5, 2.5]
    assert huber(x, 2.0).tolist() == [4.0, 0.125, 0.0, 0.5, 4.0]
    huber(x, 1.0).sum().backward()
    assert x.grad.tolist() == [-1.0, -0.5, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_leading_dimensions_are_kept(lead):
    r_t, steps = torch.ones(*lead, 4), torch.full(lead, 2)
    q_tpm = torch.arange(3.0).expand(*lead, 3)
    return_t = n_step_return(r_t, steps, 0.5)
    discount_tpm = bootstrap_discount(steps, torch.zeros(lead, dtype=torch.bool), 0.5)
    target = double_q_target(return_t, discount_tpm, q_tpm, q_tpm)
    assert target.shape == torch.Size(lead)
    assert (target == 1.5 + 0.25 * 2).all()
