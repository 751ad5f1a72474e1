"""Data-dependent token shift: each token's projection, mixed with the one before it.

Legend: B batch, T time, H heads, D head size.
"""

import torch
from torch import Tensor


def token_shift(
    y: Tensor, alpha: Tensor, state: Tensor | None = None, starts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mixes every row with its predecessor by a weight of its own.

    shifted_t = alpha_t * y_{t-1} + (1 - alpha_t) * y_t

    Args:
        y: (B, T, H, D), the projected keys or values. Set padding to zero before.
        alpha: (B, T, H) in [0, 1], one weight per head and token.
        state: (B, H, D), the row before the first one; zero if None.
        starts: (B, T) bool; at a True the predecessor counts as zero, because a document begins.

    Returns:
        shifted (B, T, H, D) in the dtype of y, mixed in the wider of the two dtypes, and the state
        (B, H, D) that the next chunk of the same sequence starts from: the last row of y, unmixed.

    Raises:
        ValueError: a shape is not as above.

    Source: Lin et al., Forgetting Transformer, ICLR 2025 (the Pro block's KV-shift).
    """
    if y.dim() != 4 or alpha.shape != y.shape[:3]:
        raise ValueError(
            "token_shift: expected y (B, T, H, D) and alpha (B, T, H), "
            f"but got {tuple(y.shape)} and {tuple(alpha.shape)}"
        )
    if state is None:
        state = y.new_zeros(y.shape[0], *y.shape[2:])
    elif state.shape != (y.shape[0], *y.shape[2:]):
        raise ValueError(
            f"token_shift: expected state (B, H, D) = {(y.shape[0], *y.shape[2:])}, "
            f"but got {tuple(state.shape)}"
        )
    if starts is not None and starts.shape != y.shape[:2]:
        raise ValueError(
            f"token_shift: expected starts (B, T) = {tuple(y.shape[:2])}, "
            f"but got {tuple(starts.shape)}"
        )
    if y.shape[1] == 0:
        return y, state
    before = torch.cat([state.unsqueeze(1), y[:, :-1]], dim=1)
    if starts is not None:
        before = before.masked_fill(starts[:, :, None, None], 0)
    dtype = torch.promote_types(y.dtype, alpha.dtype)
    shifted = torch.lerp(y.to(dtype), before.to(dtype), alpha.unsqueeze(-1).to(dtype))
    return shifted.to(y.dtype), y[:, -1]
