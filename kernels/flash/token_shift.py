"""The token shift in Triton: one kernel forward, one backward, each tensor read once.

A program works on BLOCK_T rows of BLOCK_H neighbouring heads, whole heads: those lie next to each
other in memory, and the sum over D that dalpha needs stays inside. A row and its predecessor are
two loads of the same tile one row apart, so the second comes from the cache.

Legend: B batch, T time, H heads, D head size.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fox.kernels.flash.layout import on_device

# Elements of a tile: two loads of 16 bytes of bfloat16 per thread and tensor, so that enough are
# in flight and no register spills. Fused multiply-adds are asked for because Triton 3.10 will not.
TILE = 4096
OPTIONS: dict[str, int] = {"num_warps": 8, "enable_fp_fusion": True}


def forward(y: Tensor, alpha: Tensor, state: Tensor | None, starts: Tensor | None) -> Tensor:
    """shifted (B, T, H, D), contiguous, in the dtype of y."""
    shifted = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    if shifted.numel() == 0:
        return shifted
    y, state = _rows_contiguous(y), None if state is None else _rows_contiguous(state)
    grid, blocks = _tiling(y)
    with on_device(y):
        _forward[grid](
            y, alpha, state, starts, shifted, *y.shape[1:3],
            *y.stride()[:3], *alpha.stride(), *_strides(state, 2), *_strides(starts, 2),
            **blocks, **OPTIONS,
        )  # fmt: skip
    return shifted


def backward(
    d_shifted: Tensor, y: Tensor, alpha: Tensor, state: Tensor | None, starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """dy, dalpha, dstate, contiguous, in the dtypes of y, alpha and state (of y without one)."""
    B, T, H, D = y.shape
    dy = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    d_alpha = torch.empty(alpha.shape, dtype=alpha.dtype, device=y.device)
    state_dtype = y.dtype if state is None else state.dtype
    d_state = torch.empty((B, H, D), dtype=state_dtype, device=y.device)
    if y.numel() == 0:
        return dy, d_alpha.zero_(), d_state.zero_()
    d_shifted, y = _rows_contiguous(d_shifted), _rows_contiguous(y)
    state = None if state is None else _rows_contiguous(state)
    grid, blocks = _tiling(y)
    with on_device(y):
        _backward[grid](
            d_shifted, y, alpha, state, starts, dy, d_alpha, d_state, T, H,
            *d_shifted.stride()[:3], *y.stride()[:3], *alpha.stride(),
            *_strides(state, 2), *_strides(starts, 2),
            **blocks, **OPTIONS,
        )  # fmt: skip
    return dy, d_alpha, d_state


def _rows_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _strides(x: Tensor | None, count: int) -> tuple[int, ...]:
    return (0,) * count if x is None else x.stride()[:count]


def _tiling(y: Tensor) -> tuple[tuple[int], dict[str, int]]:
    """The grid and the constants of a launch: 16 rows, then as many heads, then rows as fit."""
    B, T, H, D = y.shape
    block_d = triton.next_power_of_2(D)
    block_h = math.gcd(H, max(1, TILE // 16 // block_d))
    block_t = max(1, TILE // (block_h * block_d))
    programs = B * triton.cdiv(T, block_t) * (H // block_h)
    return (programs,), {"D": D, "BLOCK_T": block_t, "BLOCK_H": block_h, "BLOCK_D": block_d}


@triton.jit
def _forward(
    y, alpha, state, starts, shifted, T, H,
    y_b, y_t, y_h, alpha_b, alpha_t, alpha_h, state_b, state_h, starts_b, starts_t,
    D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    b, t, h = _place(T, H, BLOCK_T, BLOCK_H)
    d = tl.arange(0, BLOCK_D)
    inside = t < T
    rows = b * y_b + t * y_t + h * y_h
    now = _load(y, rows, inside, d, D)
    before = _before(
        y, state, starts, rows, b, t, h, d, T, y_t, state_b, state_h, starts_b, starts_t, D
    )
    a = tl.load(alpha + b * alpha_b + t * alpha_t + h * alpha_h, mask=inside, other=0.0)
    a = a.to(tl.float32)[:, None]
    _store(shifted, (b * T + t) * H + h, inside, d, a * before + (1 - a) * now, D)


@triton.jit
def _backward(
    d_shifted, y, alpha, state, starts, dy, d_alpha, d_state, T, H,
    d_b, d_t, d_h, y_b, y_t, y_h, alpha_b, alpha_t, alpha_h, state_b, state_h, starts_b, starts_t,
    D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    b, t, h = _place(T, H, BLOCK_T, BLOCK_H)
    d = tl.arange(0, BLOCK_D)
    inside = t < T
    used = t + 1 < T  # by the row after it
    if starts is not None:
        starting = tl.load(starts + b * starts_b + (t + 1) * starts_t, mask=used, other=0)
        used &= starting == 0
    gates = alpha + b * alpha_b + t * alpha_t + h * alpha_h
    a = tl.load(gates, mask=inside, other=0.0).to(tl.float32)
    a_after = tl.load(gates + alpha_t, mask=used, other=0.0).to(tl.float32)
    grads = b * d_b + t * d_t + h * d_h
    grad = _load(d_shifted, grads, inside, d, D)
    grad_after = _load(d_shifted, grads + d_t, used, d, D)
    out = (b * T + t) * H + h
    _store(dy, out, inside, d, (1 - a)[:, None] * grad + a_after[:, None] * grad_after, D)

    rows = b * y_b + t * y_t + h * y_h
    before = _before(
        y, state, starts, rows, b, t, h, d, T, y_t, state_b, state_h, starts_b, starts_t, D
    )
    da = tl.sum(grad * (before - _load(y, rows, inside, d, D)), axis=1)
    tl.store(d_alpha + out, da.to(d_alpha.dtype.element_ty), mask=inside)

    first = t == 0
    if starts is not None:
        starting = tl.load(starts + b * starts_b + t * starts_t, mask=inside, other=0)
        a = tl.where(starting == 0, a, 0.0)
    _store(d_state, b * H + h, first, d, a[:, None] * grad, D)


@triton.jit
def _place(T, H, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr):
    """The batch row of this program, and the time and head of each of its rows; heads first."""
    pid = tl.program_id(0)
    groups = H // BLOCK_H
    tiles = tl.cdiv(T, BLOCK_T)
    b = (pid // groups // tiles).to(tl.int64)
    t = (pid // groups % tiles).to(tl.int64) * BLOCK_T
    h = (pid % groups).to(tl.int64) * BLOCK_H
    i = tl.arange(0, BLOCK_T * BLOCK_H)
    return b, t + i // BLOCK_H, h + i % BLOCK_H


@triton.jit
def _before(
    y, state, starts, rows, b, t, h, d, T, y_t, state_b, state_h, starts_b, starts_t,
    D: tl.constexpr,
):  # fmt: skip
    """The predecessor of each row in float32: the state before the first, 0 where cut."""
    kept = t < T
    if starts is not None:
        starting = tl.load(starts + b * starts_b + t * starts_t, mask=kept, other=0)
        kept &= starting == 0
    before = _load(y, rows - y_t, kept & (t > 0), d, D)
    if state is not None:
        before += _load(state, b * state_b + h * state_h, kept & (t == 0), d, D)
    return before


@triton.jit
def _load(x, rows, mask, d, D: tl.constexpr):
    mask = mask[:, None] & (d < D)[None, :]
    return tl.load(x + rows[:, None] + d[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(x, rows, mask, d, value, D: tl.constexpr):
    mask = mask[:, None] & (d < D)[None, :]
    tl.store(x + rows[:, None] * D + d[None, :], value.to(x.dtype.element_ty), mask=mask)
