"""The blocked backend as PyTorch sees it: two custom ops, O(T) memory, any device.

The passes themselves stand in tiled.py, what they skip in tiles.py and pruning.py.

Legend: B batch, T query rows, T_k keys, H query heads, H_kv key heads, D head size.
"""

from typing import Any

import torch
from torch import Tensor

from fox.kernels.checks import without_autocast
from fox.kernels.gates import log_gate_gradient, running_log_gates
from fox.kernels.tiled import backward_tiles, compute_dtype, forward_tiles, prepare
from fox.kernels.tiles import Span

# The backward pass copies q, k, v, out and d_out next to a spare column; it takes as many batch
# rows at a time as make copies of this size per thread, which caches hold and allocators recycle.
SCRATCH_BYTES = 2**21


@torch.library.custom_op("fox::blocked_attention", mutates_args=())
def blocked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    softmax_scale: float,
    seq_start: Tensor | None = None,
    window_size: int | None = None,
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
    with without_autocast(q.device):
        running = running_log_gates(log_f, seq_start)
        spans = _spans(q, k, seq_start, cu_seqlens_q, cu_seqlens_k, window_size)
        tolerance, bound = log_pruning_tolerance, logit_bound
        work = prepare(q, k, running, spans, softmax_scale, tolerance, bound, engine)
        return forward_tiles(q, k, v, work)


@blocked_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    B, T, H, D = q.shape
    dtype = compute_dtype(q)
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
    window_size: int | None,
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
    batch_rows = max(1, SCRATCH_BYTES * torch.get_num_threads() // max(1, row_bytes))
    tolerance = log_pruning_tolerance
    with without_autocast(q.device):
        for first in range(0, B, batch_rows):
            b = slice(first, first + batch_rows)
            start = None if seq_start is None else seq_start[b]
            bound = None if logit_bound is None else logit_bound[b]
            running = running_log_gates(log_f[b], start)
            spans = _spans(q[b], k[b], start, cu_seqlens_q, cu_seqlens_k, window_size)
            work = prepare(q[b], k[b], running, spans, softmax_scale, tolerance, bound, engine)
            d_lambda = backward_tiles(
                d_out[b], d_lse[b], q[b], k[b], v[b], out[b], lse[b],
                work, (dq[b], dk[b], dv[b]),
            )  # fmt: skip
            d_log_f[b] = log_gate_gradient(d_lambda, log_f[b], start)
    if cu_seqlens_k is not None:
        d_log_f[:, cu_seqlens_k[:-1][cu_seqlens_k.diff() > 0]] = 0.0
    return dq, dk, dv, d_log_f


@blocked_attention_backward.register_fake
def _(
    d_out: Tensor, d_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, *rest: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv, d_log_f = (x.new_empty(x.shape) for x in (q, k, v, log_f))
    return dq, dk, dv, d_log_f


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, log_f, scale, seq_start, window, cu_q, cu_k, tolerance, bound, engine = inputs
    ctx.save_for_backward(q, k, v, log_f, *output, seq_start, cu_q, cu_k, bound)
    ctx.options = (scale, window, tolerance, engine)


def _differentiate(ctx: Any, d_out: Tensor, d_lse: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, log_f, out, lse, seq_start, cu_q, cu_k, bound = ctx.saved_tensors
    scale, window, tolerance, engine = ctx.options
    gradients = blocked_attention_backward(
        d_out, d_lse, q, k, v, log_f, out, lse,
        scale, seq_start, window, cu_q, cu_k, tolerance, bound, engine,
    )  # fmt: skip
    return (*gradients, *[None] * 8)


def _refuse(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError(
        'forgetting_attention has no gradient of its gradient on backend "blocked"; '
        'backend "reference" has.'
    )


blocked_attention.register_autograd(_differentiate, setup_context=_save)
blocked_attention_backward.register_autograd(_refuse)


def _spans(
    q: Tensor,
    k: Tensor,
    seq_start: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    window_size: int | None = None,
) -> list[Span]:
    B, T, H, _ = q.shape
    heads = slice(0, H)
    if cu_seqlens_q is not None and cu_seqlens_k is not None:
        rows, keys = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
        borders = zip(rows[:-1], rows[1:], keys[:-1], keys[1:], strict=True)
        return [Span(slice(0, 1), heads, *border, window_size) for border in borders]
    if seq_start is None:
        return [Span(slice(0, B), heads, 0, T, 0, k.shape[1], window_size)]
    starts = seq_start.tolist()
    return [
        Span(slice(b, b + 1), heads, 0, T, starts[b], k.shape[1], window_size) for b in range(B)
    ]


def blocked_share(
    q: Tensor,
    k: Tensor,
    running: Tensor,
    softmax_scale: float,
    seq_start: Tensor | None,
    window_size: int | None,
    log_pruning_tolerance: float | None,
    logit_bound: Tensor | None,
) -> float:
    """The share of visible scores that both passes compute, from running gates (B, H, T_k)."""
    spans = _spans(q, k, seq_start, None, None, window_size)
    work = prepare(q, k, running, spans, softmax_scale, log_pruning_tolerance, logit_bound)
    visible = sum(span.scores for span in spans)
    return sum(tile.scores for tile in work.tiles) / visible if visible else 1.0
