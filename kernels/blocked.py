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
from fox.kernels.tiles import Lanes, Span, Tile, plan

MATMUL_ROWS = 128
MATMUL_PAIRS = 8


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
    with torch.autocast(q.device.type, enabled=False):
        running = running_log_gates(log_f, seq_start).transpose(1, 2).contiguous()  # (B, H, T_k)
        spans = _spans(q, k, seq_start, cu_seqlens_q, cu_seqlens_k)
        pruning = _pruning(q, k, softmax_scale, log_pruning_tolerance, logit_bound)
        engine = engine or _engine(q)
        tiles = plan(running.cpu().numpy(), spans, _lanes(engine), pruning)
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
    with torch.autocast(q.device.type, enabled=False):
        running = running_log_gates(log_f, seq_start).transpose(1, 2).contiguous()
        spans = _spans(q, k, seq_start, cu_seqlens_q, cu_seqlens_k)
        pruning = _pruning(q, k, softmax_scale, log_pruning_tolerance, logit_bound)
        engine = engine or _engine(q)
        tiles = plan(running.cpu().numpy(), spans, _lanes(engine), pruning)
        dq, dk, dv, d_lambda = _backward(
            d_out, d_lse, q, k, v, out, lse, running, tiles, softmax_scale, engine
        )
        d_log_f = log_gate_gradient(d_lambda.transpose(1, 2), log_f, seq_start)
        if cu_seqlens_k is not None:
            first = cu_seqlens_k[:-1][cu_seqlens_k.diff() > 0]
            d_log_f[:, first] = 0.0
        return dq, dk, dv, d_log_f.to(log_f.dtype).contiguous()


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
    q: Tensor, k: Tensor, scale: float, tolerance: float | None, bound: Tensor | None
) -> Callable[[Span], np.ndarray] | None:
    if tolerance is None:
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


def _wide_heads(x: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """(B, T_k, H_kv, D) -> (B, H, T_k, D) of the compute dtype."""
    x = x.transpose(1, 2).to(dtype)
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
    q = q.transpose(1, 2).to(dtype)
    k, v = _wide_heads(k, H, dtype), _wide_heads(v, H, dtype)
    lse = q.new_full((B, H, T), -math.inf)
    if len(tiles) == 1 and tiles[0].count == 1 and tiles[0].rows == T:
        tile = tiles[0]
        if q.shape[:2] == (tile.batch.stop, tile.heads.stop):
            part, part_lse = forward(
                q, _keys(k, tile), _keys(v, tile), _bias(running, tile, dtype), True, scale
            )
            torch.add(part_lse, _row_decay(running, tile), out=lse)
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
    out: Tensor,
    lse: Tensor,
    running: Tensor,
    tiles: list[Tile],
    scale: float,
    engine: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, T, H, D = q.shape
    H_kv = k.shape[2]
    dtype = _compute_dtype(q)
    backward = engines.aten_backward if engine == "aten" else engines.matmul_backward

    # The spare column adds 1 * 1 to every score, which lse takes back below. In d_out and out it
    # turns the row sum of d_out * out into that sum - d_lse, which is what d_lse does to a row.
    wide_q = q.new_empty(B, H, T, D + 1, dtype=dtype)
    torch.mul(q.transpose(1, 2), scale, out=wide_q[..., :D])
    wide_q[..., D] = 1.0
    wide_k, wide_v = (_with_column(x, H, dtype, fill) for x, fill in ((k, 1.0), (v, 0.0)))
    wide_d_out = _with_column(d_out, H, dtype, 1.0)
    wide_out = _with_column(out, H, dtype, 0.0)
    torch.neg(d_lse, out=wide_out[..., D])

    frame = lse + 1.0
    for tile in tiles:
        if tile.causal:
            _rows(frame, tile).sub_(_row_decay(running, tile))
    dq, dk, dv = (x.new_zeros(x.shape) for x in (wide_q, wide_k, wide_v))
    for tile in tiles:
        part_q, part_k, part_v = backward(
            _rows(wide_d_out, tile), _rows(wide_q, tile), _keys(wide_k, tile), _keys(wide_v, tile),
            _rows(wide_out, tile), _rows(frame, tile), _bias(running, tile, dtype),
            tile.causal, 1.0,
        )  # fmt: skip
        _rows(dq, tile).add_(part_q)
        _keys(dk, tile).add_(part_k)
        _keys(dv, tile).add_(part_v)

    d_lambda = -dk[..., D]
    for tile in tiles:
        if tile.causal:
            _view(d_lambda, tile, tile.position, tile.rows).add_(_rows(dq[..., D], tile))
    dq = (dq[..., :D] * scale).transpose(1, 2)
    dk, dv = (x[..., :D].unflatten(1, (H_kv, H // H_kv)).sum(2).transpose(1, 2) for x in (dk, dv))
    return (
        dq.to(q.dtype).contiguous(),
        dk.to(k.dtype).contiguous(),
        dv.to(v.dtype).contiguous(),
        d_lambda,
    )


def _with_column(x: Tensor, heads: int, dtype: torch.dtype, fill: float) -> Tensor:
    """(B, T, H or H_kv, D) -> (B, H, T, D + 1), the last column filled."""
    B, T, H_kv, D = x.shape
    wide = x.new_empty(B, heads, T, D + 1, dtype=dtype)
    wide.unflatten(1, (H_kv, heads // H_kv))[..., :D].copy_(x.transpose(1, 2).unsqueeze(2))
    wide[..., D] = fill
    return wide


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
        running = lambda_cache[:, :longest].transpose(1, 2).contiguous()  # (B, H, longest)
        ends = list(zip(starts, lengths, strict=True))
        if len(set(ends)) == 1:
            spans = [Span(slice(0, B), slice(0, H), 0, T, *ends[0])]
        else:
            spans = [Span(slice(b, b + 1), slice(0, H), 0, T, *end) for b, end in enumerate(ends)]
        pruning = _pruning(q, k, softmax_scale, log_pruning_tolerance, logit_bound)
        engine = _engine(q)
        tiles = plan(running.cpu().numpy(), spans, _lanes(engine), pruning)
        out, _ = _forward(q, k, v, running, tiles, softmax_scale, engine)
        return out.to(q.dtype)
