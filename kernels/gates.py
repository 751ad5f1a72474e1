"""Running log gates in float64, and the reverse sum that carries their gradient.

Legend: B batch, T_k keys, H query heads. Gates are (B, T_k, H), their running sums (B, H, T_k).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# A gate this small or smaller is a reset: nothing before it can be seen from it or after it.
RESET_LOG_F = -1e4

# The least a gate adds to the running sum. A finite jump gives a weight of exactly 0 in every
# format and keeps the sum finite, where -inf would leave (-inf) - (-inf) = NaN.
RESET_JUMP = -(2.0**14)


def resets(log_f: Tensor) -> Tensor:
    """Where the gate is a reset: (B, T_k, H) bool."""
    return log_f <= RESET_LOG_F


def padding(log_f: Tensor, seq_start: Tensor) -> Tensor:
    """Where keys stand before seq_start (B,), as (B, T_k, 1) bool."""
    position = torch.arange(log_f.shape[1], device=log_f.device)
    return (position < seq_start[:, None]).unsqueeze(-1)


def running_log_gates(
    log_f: Tensor, seq_start: Tensor | None = None, total: Tensor | None = None
) -> Tensor:
    """lambda_t = total + sum_{s <= t} log f_s; the decay from key j to row i is a difference.

    Args:
        log_f: (B, T_k, H), natural log gates in [-inf, 0].
        seq_start: (B,) integer; gates before it count as 0.
        total: (B, H) float64, the running sum before the first of these gates; 0 if None.

    Returns:
        (B, H, T_k) float64, finite and non-increasing. Float64, because a float32 sum of 64k gates
        of 0.5 makes the difference of neighbours wrong by 4e-3.
    """
    steps = log_f.transpose(1, 2).to(
        torch.float64, memory_format=torch.contiguous_format, copy=True
    )
    steps.clamp_(min=RESET_JUMP)
    if seq_start is not None:
        steps.masked_fill_(padding(log_f, seq_start).transpose(1, 2), 0.0)
    if total is not None and steps.shape[-1]:
        steps[..., 0] += total
    return steps.cumsum_(-1)


def log_gate_gradient(
    d_lambda: Tensor,
    log_f: Tensor,
    seq_start: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """d log f_t = sum_{s >= t} d lambda_s; exactly 0 where the gate has no effect.

    Args:
        d_lambda: (B, H, T_k) float64, row sums minus column sums of the score gradient.
        log_f: (B, T_k, H), the gates that were summed.
        seq_start: (B,) integer, as given to running_log_gates.
        cu_seqlens: (sequences + 1,) integer borders between which keys see each other.

    Returns:
        (B, T_k, H) float64: 0 at resets, in padding and at the first visible token.
    """
    gradient = d_lambda.flip(-1).cumsum(-1).flip(-1).transpose(1, 2)
    if cu_seqlens is not None:
        # A sequence adds nothing on paper; in numbers its rounding would reach the one before.
        position = torch.arange(log_f.shape[1], device=log_f.device, dtype=cu_seqlens.dtype)
        sequence = torch.searchsorted(cu_seqlens, position, right=True)
        gradient = gradient - F.pad(gradient, (0, 0, 0, 1))[:, cu_seqlens[sequence]]
        first = position == cu_seqlens[sequence - 1]
        gradient.masked_fill_(first.unsqueeze(-1), 0.0)
    gradient.masked_fill_(resets(log_f), 0.0)
    if seq_start is None:
        gradient[:, :1] = 0.0
    else:
        gradient.masked_fill_(padding(log_f, seq_start + 1), 0.0)
    return gradient
