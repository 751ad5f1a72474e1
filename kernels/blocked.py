"""Forgetting attention tile by tile: O(T) memory, any device, pruned; the CPU path.

The row term lambda_i of the decay cancels in the softmax, so a tile gets one number per key:
lambda_ref - lambda_j, formed in float64 relative to the middle of its chunk of rows. Parts of a
row are merged by their lse. The gates' gradient comes out of the same products as dq and dk: in the
backward pass q and k carry a spare column of ones, whose gradients are the row and column sums of
the score gradient.

Legend: B batch, T query rows, T_k keys, H query heads, H_kv key heads, D head size.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fox.kernels import engines
from fox.kernels.gates import log_gate_gradient, running_log_gates
from fox.kernels.pruning import Pruning
from fox.kernels.tiles import LARGEST_FALL, Lanes, Span, Tile, plan

MATMUL_ROWS = 128
MATMUL_PAIRS = 8

# The backward pass works on weights times 2**WEIGHT_LIFT and d_out times 2**GRADIENT_LIFT: faint
# weights would otherwise make denormal products, which a CPU computes a hundred times slower.
WEIGHT_LIFT = 64
GRADIENT_LIFT = 32
UNLIFT = 2.0 ** -(WEIGHT_LIFT + GRADIENT_LIFT)

# The backward pass copies q, k, v, out and d_out next to their spare column; it takes as many batch
# rows at a time as make copies of this size, which caches can hold and allocators recycle.
SCRATCH_BYTES = 2**22

# Without a tolerance, ln of the weight that a row may lose: 1e-13 where rounding is 6e-8.
ROUNDING = {torch.float32: -30.0, torch.float64: -60.0}


@torch.library.custom_op("fox::blocked_attention", mutates_args=())
def blocked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    softmax_scale: float,
    seq_start: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    log_pruning_tolerance: float | None = None,
    logit_bound: Tensor | None = None,
    engine: str | None = None,
) -> tuple[Tensor, Tensor]:
    """out (B, T, H, D) and lse (B, H, T) in float32 (float64 for float64); see api.py.

    Args:
        engine: "aten" or "matmul"; None picks "aten" where it runs and works.
    """
    engine = engine or _engine(q)
    with torch.autocast(q.device.type, enabled=False):
        running = running_log_gates(log_f, seq_start)
        tiles, _ = _plan(
            q, k, running, softmax_scale, seq_start, cu_seqlens_q, cu_seqlens_k,
            log_pruning_tolerance, logit_bound, engine,
        )  # fmt: skip
        return _forward(q, k, v, running, tiles, softmax_scale, engine)


@blocked_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    B, T, H, D = q.shape
    dtype = _compute_dtype(q)
    return q.new_empty(B, T, H, D, dtype=dtype), q.new_empty(B, H, T, dtype=dtype)


@torch.library.custom_op("fox::blocked_attention_backward", mutates_args=())
def blocked_attention_backward(
    d_out: Tensor,
    d_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    out: Tensor,
    lse: Tensor,
    softmax_scale: float,
    seq_start: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    log_pruning_tolerance: float | None,
    logit_bound: Tensor | None,
    engine: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv, dlog_f in the shapes and dtypes of q, k, v, log_f."""
    B, T, H, D = q.shape
    T_k = k.shape[1]
    dq, dk, dv, d_log_f = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v, log_f)
    )
    row_bytes = 4 * H * (3 * T + 2 * T_k) * (D + 1)
    engine = engine or _engine(q)
    with torch.autocast(q.device.type, enabled=False):
        batch_rows = max(1, SCRATCH_BYTES // max(1, row_bytes))
        for first in range(0, B, batch_rows):
            b = slice(first, first + batch_rows)
            _backward(
                *(x[b] for x in (d_out, d_lse, q, k, v, log_f, out, lse)),
                (dq[b], dk[b], dv[b], d_log_f[b]),
                softmax_scale,
                None if seq_start is None else seq_start[b],
                cu_seqlens_q,
                cu_seqlens_k,
                log_pruning_tolerance,
                None if logit_bound is None else logit_bound[b],
                engine,
            )
    return dq, dk, dv, d_log_f


@blocked_attention_backward.register_fake
def _(
    d_out: Tensor, d_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, *rest: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv, d_log_f = (x.new_empty(x.shape) for x in (q, k, v, log_f))
    return dq, dk, dv, d_log_f


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, log_f, scale, seq_start, cu_q, cu_k, tolerance, bound, engine = inputs
    ctx.save_for_backward(q, k, v, log_f, *output, seq_start, cu_q, cu_k, bound)
    ctx.options = (scale, tolerance, engine)


def _differentiate(ctx: Any, d_out: Tensor, d_lse: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, log_f, out, lse, seq_start, cu_q, cu_k, bound = ctx.saved_tensors
    scale, tolerance, engine = ctx.options
    gradients = blocked_attention_backward(
        d_out, d_lse, q, k, v, log_f, out, lse,
        scale, seq_start, cu_q, cu_k, tolerance, bound, engine,
    )  # fmt: skip
    return (*gradients, None, None, None, None, None, None, None)


def _refuse(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError(
        'forgetting_attention has no gradient of its gradient on backend "blocked"; '
        'backend "reference" has.'
    )


blocked_attention.register_autograd(_differentiate, setup_context=_save)
blocked_attention_backward.register_autograd(_refuse)


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _engine(q: Tensor) -> str:
    on_cpu = q.device.type == "cpu" and q.dtype != torch.float64
    return "aten" if on_cpu and engines.aten_works() else "matmul"


def _lanes(engine: str) -> Lanes:
    if engine == "aten":
        return Lanes(rows=None, pairs=torch.get_num_threads())
    return Lanes(rows=MATMUL_ROWS, pairs=MATMUL_PAIRS)


def _plan(
    q: Tensor,
    k: Tensor,
    running: Tensor,
    scale: float,
    seq_start: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    tolerance: float | None,
    bound: Tensor | None,
    engine: str,
) -> tuple[list[Tile], list[Span]]:
    """The tiles of forward and backward alike, and the spans they compute."""
    spans = _spans(q, k, seq_start, cu_seqlens_q, cu_seqlens_k)
    host = running.cpu().numpy()
    return plan(host, spans, _lanes(engine), _pruning(q, k, host, scale, tolerance, bound)), spans


def _spans(
    q: Tensor,
    k: Tensor,
    seq_start: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
) -> list[Span]:
    B, T, H, _ = q.shape
    heads = slice(0, H)
    if cu_seqlens_q is not None and cu_seqlens_k is not None:
        rows, keys = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
        borders = zip(rows[:-1], rows[1:], keys[:-1], keys[1:], strict=True)
        return [Span(slice(0, 1), heads, *border) for border in borders]
    if seq_start is None:
        return [Span(slice(0, B), heads, 0, T, 0, k.shape[1])]
    starts = seq_start.tolist()
    return [Span(slice(b, b + 1), heads, 0, T, starts[b], k.shape[1]) for b in range(B)]


def _pruning(
    q: Tensor,
    k: Tensor,
    running: np.ndarray,
    scale: float,
    tolerance: float | None,
    bound: Tensor | None,
) -> Callable[[Span], np.ndarray] | None:
    """The threshold of every span; None where the gates fall too little to drop much."""
    fall = 0.0 if running.size == 0 else (running[..., 0] - running[..., -1]).max()
    if tolerance is None:
        tolerance = ROUNDING[_compute_dtype(q)]
        if fall < LARGEST_FALL:
            return None
    if fall < -tolerance:
        return None
    return Pruning(q.transpose(1, 2), k.transpose(1, 2), scale, tolerance, bound).threshold


def _view(x: Tensor, tile: Tile, start: int, length: int) -> Tensor:
    """The tile's part of x (B, H, T, ...): (batch, heads, length, ...), chunks as the batch."""
    part = x[tile.batch, tile.heads, start : start + (tile.count - 1) * tile.rows + length]
    if tile.count == 1:
        return part
    _, heads, time, *rest = part.stride()
    return part.as_strided(
        (tile.count, part.shape[1], length, *part.shape[3:]), (tile.rows * time, heads, time, *rest)
    )


def _rows(x: Tensor, tile: Tile) -> Tensor:
    return _view(x, tile, tile.row, tile.rows)


def _keys(x: Tensor, tile: Tile) -> Tensor:
    return _view(x, tile, tile.key, tile.keys)


def _reference(running: Tensor, tile: Tile) -> Tensor:
    """The middle of the running gates of each chunk of rows, (batch, heads, 1) float64."""
    chunk = _view(running, tile, tile.position, tile.rows)
    return (chunk[..., :1] + chunk[..., -1:]) * 0.5


def _bias(running: Tensor, tile: Tile, dtype: torch.dtype) -> Tensor:
    bias = _reference(running, tile) - _keys(running, tile)
    return bias.to(dtype).unsqueeze(-2)


def _row_decay(running: Tensor, tile: Tile) -> Tensor:
    """lambda_i - lambda_ref, what the bias per key leaves out of a row's lse."""
    return _view(running, tile, tile.position, tile.rows) - _reference(running, tile)


def _wide_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T_k, H_kv, D) -> (B, H, T_k, D)."""
    x = x.transpose(1, 2)
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    running: Tensor,
    tiles: list[Tile],
    scale: float,
    engine: str,
) -> tuple[Tensor, Tensor]:
    B, T, H, D = q.shape
    dtype = _compute_dtype(q)
    forward = engines.aten_forward if engine == "aten" else engines.matmul_forward
    lse = q.new_full((B, H, T), -math.inf, dtype=dtype)
    whole = _is_whole(tiles, q, k)
    q, k, v = q.transpose(1, 2).to(dtype), _wide_heads(k, H).to(dtype), _wide_heads(v, H).to(dtype)
    if whole:
        part, part_lse = forward(q, k, v, _bias(running, tiles[0], dtype), True, scale)
        torch.add(part_lse, _row_decay(running, tiles[0]), out=lse)
        return part.transpose(1, 2).contiguous(), lse
    out = q.new_zeros(B, T, H, D).transpose(1, 2)
    for tile in tiles:
        bias = _bias(running, tile, dtype)
        part, part_lse = forward(
            _rows(q, tile), _keys(k, tile), _keys(v, tile), bias, tile.causal, scale
        )
        whole, whole_lse = _rows(out, tile), _rows(lse, tile)
        if tile.causal:
            whole.copy_(part)
            whole_lse.copy_(part_lse)
        else:
            whole.lerp_(part, torch.sigmoid(part_lse - whole_lse).unsqueeze(-1))
            whole_lse.copy_(torch.logaddexp(whole_lse, part_lse))
    for tile in tiles:
        if tile.causal:
            _rows(lse, tile).add_(_row_decay(running, tile))
    return out.transpose(1, 2), lse


def _backward(
    d_out: Tensor,
    d_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    out: Tensor,
    lse: Tensor,
    gradients: tuple[Tensor, Tensor, Tensor, Tensor],
    scale: float,
    seq_start: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    tolerance: float | None,
    bound: Tensor | None,
    engine: str,
) -> None:
    """Write dq, dk, dv and d log_f into gradients."""
    B, T, H, D = q.shape
    T_k = k.shape[1]
    dtype = _compute_dtype(q)
    backward = engines.aten_backward if engine == "aten" else engines.matmul_backward
    running = running_log_gates(log_f, seq_start)
    tiles, _ = _plan(
        q, k, running, scale, seq_start, cu_seqlens_q, cu_seqlens_k, tolerance, bound, engine
    )

    # The spare column adds 1 * 1 to every score, which lse takes back below. In d_out and out it
    # turns the row sum of d_out * out into that sum - d_lse, which is what d_lse does to a row.
    wide_q, wide_d_out, wide_out = q.new_empty(3, B, H, T, D + 1, dtype=dtype)
    wide_k, wide_v = q.new_empty(2, B, H, T_k, D + 1, dtype=dtype)
    torch.mul(q.transpose(1, 2), scale, out=wide_q[..., :D])
    torch.mul(d_out.transpose(1, 2), 2.0**GRADIENT_LIFT, out=wide_d_out[..., :D])
    wide_out[..., :D].copy_(out.transpose(1, 2))
    wide_k[..., :D].copy_(_wide_heads(k, H))
    wide_v[..., :D].copy_(_wide_heads(v, H))
    wide_q[..., D] = 1.0
    wide_k[..., D] = 1.0
    wide_v[..., D] = 0.0
    wide_d_out[..., D] = 2.0**GRADIENT_LIFT
    torch.neg(d_lse, out=wide_out[..., D])

    frame = lse + (1.0 - WEIGHT_LIFT * math.log(2))
    for tile in tiles:
        if tile.causal:
            _rows(frame, tile).sub_(_row_decay(running, tile))
    if _is_whole(tiles, q, k):
        (tile,) = tiles
        bias = _bias(running, tile, dtype)
        dq, dk, dv = backward(wide_d_out, wide_q, wide_k, wide_v, wide_out, frame, bias, True, 1.0)
    else:
        dq, dk, dv = (torch.zeros_like(x) for x in (wide_q, wide_k, wide_v))
        for tile in tiles:
            parts = backward(
                _rows(wide_d_out, tile), _rows(wide_q, tile), _keys(wide_k, tile),
                _keys(wide_v, tile), _rows(wide_out, tile), _rows(frame, tile),
                _bias(running, tile, dtype), tile.causal, 1.0,
            )  # fmt: skip
            _rows(dq, tile).add_(parts[0])
            _keys(dk, tile).add_(parts[1])
            _keys(dv, tile).add_(parts[2])

    d_lambda = dk[..., D].double().neg_()
    for tile in tiles:
        if tile.causal:
            _view(d_lambda, tile, tile.position, tile.rows).add_(_rows(dq[..., D], tile))
    d_log_f = log_gate_gradient(d_lambda.mul_(UNLIFT), log_f, seq_start)
    if cu_seqlens_k is not None:
        d_log_f[:, cu_seqlens_k[:-1][cu_seqlens_k.diff() > 0]] = 0.0
    gradients[3].copy_(d_log_f)
    _unlift(dq[..., :D], scale * UNLIFT, gradients[0])
    _unlift(dk[..., :D], UNLIFT, gradients[1])
    _unlift(dv[..., :D], UNLIFT, gradients[2])


def _unlift(x: Tensor, factor: float, out: Tensor) -> None:
    """(B, H, T, D) times factor into (B, T, H or H_kv, D), heads of a group summed."""
    x = x.transpose(1, 2)
    if x.shape[2] != out.shape[2]:
        x = x.unflatten(2, (out.shape[2], -1)).sum(3)
    if x.dtype == out.dtype:
        torch.mul(x, factor, out=out)
    else:
        out.copy_(x * factor)


def _is_whole(tiles: list[Tile], q: Tensor, k: Tensor) -> bool:
    """Whether one causal tile is all there is, so that its results need no place of their own."""
    B, T, H, _ = q.shape
    whole = Tile(slice(0, B), slice(0, H), 0, 0, 0, T, T, 1)
    return len(tiles) == 1 and k.shape[1] == T and tiles[0] == whole


def cached_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lambda_cache: Tensor,
    lengths: list[int],
    softmax_scale: float,
    seq_start: Tensor | None,
    log_pruning_tolerance: float | None,
    logit_bound: Tensor | None,
) -> Tensor:
    """out (B, T, H, D) of rows at the end of lengths[b] keys, from running gates (B, S, H)."""
    with torch.autocast(q.device.type, enabled=False):
        B, T, H, _ = q.shape
        starts = [0] * B if seq_start is None else seq_start.tolist()
        longest = max(lengths, default=0)
        k, v = k_cache[:, :longest], v_cache[:, :longest]
        running = lambda_cache[:, :longest].transpose(1, 2).contiguous()
        ends = list(zip(starts, lengths, strict=True))
        if len(set(ends)) == 1:
            spans = [Span(slice(0, B), slice(0, H), 0, T, *ends[0])]
        else:
            spans = [Span(slice(b, b + 1), slice(0, H), 0, T, *end) for b, end in enumerate(ends)]
        host = running.cpu().numpy()
        pruning = _pruning(q, k, host, softmax_scale, log_pruning_tolerance, logit_bound)
        engine = _engine(q)
        tiles = plan(host, spans, _lanes(engine), pruning)
        out, _ = _forward(q, k, v, running, tiles, softmax_scale, engine)
        return out.to(q.dtype)


def computed_share(
    q: Tensor,
    k: Tensor,
    log_f: Tensor,
    *,
    softmax_scale: float | None = None,
    seq_start: Tensor | None = None,
    log_pruning_tolerance: float | None = None,
    logit_bound: Tensor | None = None,
) -> float:
    """The share of visible scores (query, key at or before it) that the blocked backend computes.

    Args:
        q: (B, T, H, D). k: (B, T_k, H_kv, D). log_f: (B, T_k, H).
        softmax_scale, seq_start, log_pruning_tolerance: as in forgetting_attention.
        logit_bound: (B, H).

    Returns:
        At most 1, or 1 where nothing is visible. Forward and backward follow the same plan.
    """
    scale = 1 / math.sqrt(q.shape[-1]) if softmax_scale is None else softmax_scale
    running = running_log_gates(log_f, seq_start)
    tiles, spans = _plan(
        q, k, running, scale, seq_start, None, None, log_pruning_tolerance, logit_bound, _engine(q)
    )
    visible = sum(span.scores for span in spans)
    return sum(tile.scores for tile in tiles) / visible if visible else 1.0
