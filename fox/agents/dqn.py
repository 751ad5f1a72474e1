"""Deep Q-learning as pure functions, with the time index in the names.

Legend: the decision executed at t leads, m <= n ticks later, to the state at tpm = t + m; `...` are
any leading dimensions, A the number of actions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def n_step_return(r_t: Tensor, steps: Tensor, gamma: float) -> Tensor:
    """sum_{i < steps} gamma^i r_{t+i}: what the ticks up to t + steps - 1 have brought.

    Args:
        r_t: (..., n) float, rewards r_t .. r_{t+n-1}; those from `steps` on are not read.
        steps: (...) int64 in 1..n, fewer than n where the episode ends sooner.
        gamma: discount per tick.

    Returns:
        (...) in the dtype of r_t.

    Source: Sutton and Barto, Reinforcement Learning, 2nd edition, eq. 7.1.
    """
    i = torch.arange(r_t.shape[-1], device=r_t.device)
    return (r_t * gamma**i).masked_fill(i >= steps[..., None], 0.0).sum(-1)


def bootstrap_discount(steps: Tensor, terminated_tpm: Tensor, gamma: float) -> Tensor:
    """gamma^steps (1 - terminated): the weight of the value at t + steps.

    Args:
        steps: (...) int64.
        terminated_tpm: (...) bool, whether tick t + steps - 1 ended the episode for good; an
            episode that was only cut off goes on in value.
        gamma: discount per tick.

    Returns:
        (...) float32.
    """
    return (gamma ** steps.float()).masked_fill(terminated_tpm, 0.0)


def q_target(return_t: Tensor, discount_tpm: Tensor, q_tpm: Tensor) -> Tensor:
    """return_t + discount_tpm max_a q_tpm(a).

    Args:
        return_t, discount_tpm: (...), from the functions above.
        q_tpm: (..., A), the target network's values.

    Source: Mnih et al., Human-level control through deep reinforcement learning, 2015.
    """
    return return_t + discount_tpm * q_tpm.amax(-1)


def double_q_target(
    return_t: Tensor, discount_tpm: Tensor, q_tpm: Tensor, q_tpm_online: Tensor
) -> Tensor:
    """return_t + discount_tpm q_tpm(argmax_a q_tpm_online(a)).

    Args:
        return_t, discount_tpm: (...).
        q_tpm: (..., A), the target network's values.
        q_tpm_online: (..., A), the online network's values, which choose the action.

    Source: van Hasselt et al., Deep Reinforcement Learning with Double Q-learning, 2016, eq. 4.
    """
    return return_t + discount_tpm * action_value(q_tpm, q_tpm_online.argmax(-1))


def action_value(q_t: Tensor, a_t: Tensor) -> Tensor:
    """q_t(a_t): (..., A) and (...) int64 -> (...)."""
    return q_t.gather(-1, a_t[..., None]).squeeze(-1)


def td_error(q_t: Tensor, a_t: Tensor, target_t: Tensor) -> Tensor:
    """target_t - q_t(a_t): (..., A), (...) int64 and (...) -> (...)."""
    return target_t - action_value(q_t, a_t)


def huber(x: Tensor, delta: float) -> Tensor:
    """x^2 / 2 where |x| <= delta, else delta (|x| - delta / 2); elementwise.

    Source: Huber, Robust Estimation of a Location Parameter, 1964.
    """
    return F.huber_loss(x, torch.zeros_like(x), reduction="none", delta=delta)
