"""What the values of moves shall become, as pure functions of whole games.

Turn t of a game belongs to seat t % P, and the clock of the discount counts turns of the game,
whoever moves. Rewards and values are 0 from a game's end on: so rewards are summed up to the end
where a horizon reaches beyond it, and no value follows them.

Legend: G games of the same P players, T turns of the longest, I = ceil(T / P) rounds, A moves.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fox.agents.dqn import action_value

Bomb = Literal["strict", "keep"]


def bomb_rewards(r_t: Tensor, bomb: Bomb) -> Tensor:
    """The rewards, with what the last lost life costs: the score so far, or nothing.

    Args:
        r_t: (...) changes of the strict score, negative at the last lost life alone.
        bomb: "strict" as they are, or "keep" without the loss.
    """
    return r_t if bomb == "strict" else r_t.clamp(min=0)


def double_q_value(q_t: Tensor, q_t_online: Tensor, legal_t: Tensor) -> Tensor:
    """q_t(a*), a* = argmax over legal a of q_t_online(a).

    Args:
        q_t: (..., A), the target network's values.
        q_t_online: (..., A), the online network's values, which choose the move.
        legal_t: (..., A) bool, at least one True.

    Returns:
        (...) in the dtype of q_t.

    Source: van Hasselt et al., Deep Reinforcement Learning with Double Q-learning, 2016, eq. 4.
    """
    a_t = q_t_online.masked_fill(~legal_t, float("-inf")).argmax(-1)
    return action_value(q_t, a_t)


def n_step_target(r_t: Tensor, v_t: Tensor, horizon: int, gamma: float) -> Tensor:
    """y_t = sum_{j < horizon} gamma^j r_{t+j} + gamma^horizon v_{t+horizon}.

    With a horizon of n turns the value is that of whoever moves then, which is valid as rewards
    and weights are shared. With n P turns it is that of the same seat, n own turns later.

    Args:
        r_t: (G, T) float, 0 after the end.
        v_t: (G, T), values of the states in which the turns' moves are made; 0 after the end.
        horizon: turns, 1 or more.
        gamma: discount per turn.

    Returns:
        (G, T) in the dtype of r_t; meaningless after the end.

    Source: Sutton and Barto, Reinforcement Learning, 2nd edition, eq. 7.1.
    """
    discount = gamma ** torch.arange(horizon, dtype=r_t.dtype, device=r_t.device)
    return_t = F.pad(r_t, (0, horizon - 1)).unfold(1, horizon, 1) @ discount
    v_tpm = F.pad(v_t, (0, horizon))[:, horizon:]
    return return_t + gamma**horizon * v_tpm


def joint_value(x_t: Tensor, players: int) -> Tensor:
    """X_i = sum of x_t over the turns i P <= t < (i + 1) P of round i, one by each seat.

    The value of a round is the sum over its movers, as in value decomposition; the seats that the
    end of the game left without a turn count 0.

    Args:
        x_t: (G, T), 0 after the end.
        players: P.

    Returns:
        (G, I).

    Source: Sunehag et al., Value-Decomposition Networks, 2017, eq. 1, by rounds in place of steps.
    """
    return F.pad(x_t, (0, -x_t.shape[1] % players)).unflatten(1, (-1, players)).sum(-1)


def joint_target(r_t: Tensor, v_t: Tensor, players: int, n_step: int, gamma: float) -> Tensor:
    """Y_i = sum_{j < nP} gamma^j r_{iP+j} + gamma^(nP) V_{i+n}, V the joint value of v_t.

    Args:
        r_t, v_t: (G, T), as in n_step_target.
        players: P.
        n_step: n, rounds.
        gamma: discount per turn.

    Returns:
        (G, I), meaningless after the end.
    """
    value_at_first = torch.zeros_like(v_t)
    value_at_first[:, ::players] = joint_value(v_t, players)
    return n_step_target(r_t, value_at_first, n_step * players, gamma)[:, ::players]
