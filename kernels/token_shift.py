"""Data-dependent token shift: each token's projection, mixed with the one before it.

The Triton kernels stand in flash/token_shift.py; the custom ops that PyTorch sees stand here, so
that triton is imported only where they run.

Legend: B batch, T time, H heads, D head size.
"""

from typing import Any

import torch
from torch import Tensor

from fox.kernels.checks import require_flash

BACKENDS = ("flash", "blocked")
FLASH_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def token_shift(
    y: Tensor,
    alpha: Tensor,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Mixes every row with its predecessor by a weight of its own.

    shifted_t = alpha_t * y_{t-1} + (1 - alpha_t) * y_t

    Args:
        y: (B, T, H, D), the projected keys or values. Set padding to zero before.
        alpha: (B, T, H) in [0, 1], one weight per head and token.
        state: (B, H, D), the row before the first one; zero if None.
        starts: (B, T) bool; at a True the predecessor counts as zero, because a document begins.
        backend: "flash" (Triton, one kernel each way; float32 and narrower) or "blocked" (PyTorch,
            any device and dtype); if None, "flash" for CUDA tensors, else "blocked".

    Returns:
        shifted (B, T, H, D) in the dtype of y, mixed in the wider of the two dtypes (in float32 by
        "flash"), and the state (B, H, D) that the next chunk of the same sequence starts from: the
        last row of y, unmixed.

    Raises:
        ValueError: a shape, dtype or device is not as above, or the backend does not fit.
        NotImplementedError: gradients of gradients are asked of "flash".

    Source: Lin et al., Forgetting Transformer, ICLR 2025 (the Pro block's KV-shift).
    """
    _check(y, alpha, state, starts)
    backend = _checked_backend(backend, y, alpha, state)
    if backend == "flash" and y.shape[1]:
        return flash_token_shift(y, alpha, state, starts), y[:, -1]
    if state is None:
        state = y.new_zeros(y.shape[0], *y.shape[2:])
    if y.shape[1] == 0:
        return y, state
    before = state.unsqueeze(1)
    if y.shape[1] > 1:
        before = torch.cat([before, y[:, :-1]], dim=1)
    if starts is not None:
        before = before.masked_fill(starts[:, :, None, None], 0)
    dtype = torch.promote_types(y.dtype, alpha.dtype)
    shifted = torch.lerp(y.to(dtype), before.to(dtype), alpha.unsqueeze(-1).to(dtype))
    return shifted.to(y.dtype), y[:, -1]


@torch.library.custom_op("fox::token_shift", mutates_args=())
def flash_token_shift(
    y: Tensor, alpha: Tensor, state: Tensor | None = None, starts: Tensor | None = None
) -> Tensor:
    """shifted (B, T, H, D) in the dtype of y; see token_shift."""
    require_flash(y)
    from fox.kernels.flash.token_shift import forward

    return forward(y, alpha, state, starts)


@flash_token_shift.register_fake
def _(y: Tensor, *rest: object) -> Tensor:
    return y.new_empty(y.shape)


@torch.library.custom_op("fox::token_shift_backward", mutates_args=())
def flash_token_shift_backward(
    d_shifted: Tensor, y: Tensor, alpha: Tensor, state: Tensor | None, starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """dy, dalpha and dstate; without a state, dstate is that of a state of zeros like y."""
    from fox.kernels.flash.token_shift import backward

    return backward(d_shifted, y, alpha, state, starts)


@flash_token_shift_backward.register_fake
def _(
    d_shifted: Tensor, y: Tensor, alpha: Tensor, state: Tensor | None, starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    B, _, H, D = y.shape
    like = y if state is None else state
    return y.new_empty(y.shape), alpha.new_empty(alpha.shape), like.new_empty(B, H, D)


def _save(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, d_shifted: Tensor) -> tuple[Tensor | None, ...]:
    y, alpha, state, starts = ctx.saved_tensors
    dy, d_alpha, d_state = flash_token_shift_backward(d_shifted, y, alpha, state, starts)
    return dy, d_alpha, None if state is None else d_state, None


def _refuse(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError(
        'token_shift has no gradient of its gradient on backend "flash"; backend "blocked" has.'
    )


flash_token_shift.register_autograd(_differentiate, setup_context=_save)
flash_token_shift_backward.register_autograd(_refuse)


def _check(y: Tensor, alpha: Tensor, state: Tensor | None, starts: Tensor | None) -> None:
    if y.dim() != 4 or alpha.shape != y.shape[:3]:
        raise ValueError(
            "token_shift: expected y (B, T, H, D) and alpha (B, T, H), "
            f"but got {tuple(y.shape)} and {tuple(alpha.shape)}"
        )
    if state is not None and state.shape != (y.shape[0], *y.shape[2:]):
        raise ValueError(
            f"token_shift: expected state (B, H, D) = {(y.shape[0], *y.shape[2:])}, "
            f"but got {tuple(state.shape)}"
        )
    if starts is not None and (starts.shape != y.shape[:2] or starts.dtype != torch.bool):
        raise ValueError(
            f"token_shift: expected starts (B, T) = {tuple(y.shape[:2])} of torch.bool, "
            f"but got {tuple(starts.shape)} of {starts.dtype}"
        )
    for name, x in (("alpha", alpha), ("state", state), ("starts", starts)):
        if x is not None and x.device != y.device:
            raise ValueError(
                f"token_shift: expected {name} on {y.device} like y, but got {x.device}"
            )


def _checked_backend(backend: str | None, y: Tensor, alpha: Tensor, state: Tensor | None) -> str:
    if backend is None:
        backend = "flash" if y.is_cuda else "blocked"
    if backend not in BACKENDS:
        raise ValueError(
            f"token_shift: backend must be one of {BACKENDS} or None, but got {backend!r}"
        )
    if backend == "blocked":
        return backend
    for name, x in (("y", y), ("alpha", alpha), ("state", state)):
        if x is not None and x.dtype not in FLASH_DTYPES:
            raise ValueError(
                'token_shift: backend "flash" takes float32, bfloat16 and float16, '
                f'but got {name} of {x.dtype}; backend "blocked" takes every dtype'
            )
    return backend
