"""The flash backend as PyTorch sees it: custom ops; triton is imported when they run.

Legend: B batch, T query rows, T_k keys, H query heads, H_kv key heads, D head size.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fox.kernels.checks import require_flash
from fox.kernels.flash.tuning import choose_plan
from fox.kernels.gates import log_gate_gradient, running_log_gates

if TYPE_CHECKING:
    from fox.kernels.flash.layout import Batch

# More query rows per key head than this are a prefill, which the tiles of the forward pass suit.
DECODE_ROWS = 64


@torch.library.custom_op("fox::flash_attention", mutates_args=())
def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    softmax_scale: float,
    window_size: int | None = None,
    seq_start: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    log_pruning_tolerance: float | None = None,
    logit_bound: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """out, lse, and what the backward pass needs: running gates and the first key of each unit.

    Args: as in api.forgetting_attention and, with B = 1, forgetting_attention_varlen.

    Returns:
        out (B, T, H, D) in the dtype of q, lse (B, H, T) float32, lambda (B, H, T_k) float64,
        (B, H, units) int32.
    """
    require_flash(q)
    steps = log_f
    if cu_seqlens_k is not None:
        # A reset where a sequence begins changes no decay inside one, and ends every sum over keys.
        first = torch.zeros(k.shape[1] + 1, dtype=torch.bool, device=k.device)
        first.index_fill_(0, cu_seqlens_k.long(), True)
        steps = log_f.masked_fill(first[:-1, None], -math.inf)
    running = running_log_gates(steps, seq_start)
    batch = _batch(q, k, seq_start, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    return flash_forward(
        q, k, v, running, batch, softmax_scale, window_size, log_pruning_tolerance, logit_bound
    )


def flash_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    running: Tensor,
    batch: "Batch",
    softmax_scale: float,
    window_size: int | None,
    log_pruning_tolerance: float | None,
    logit_bound: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As flash_attention, from running gates (B, H, T_k) of any strides: a cache holds those."""
    from fox.kernels.flash.forward import forward
    from fox.kernels.flash.layout import last_contiguous
    from fox.kernels.flash.ranges import key_starts, split_gates

    B, T, H, D = q.shape
    plan = choose_plan(D, q.dtype, q.device)
    if not q.numel() or not k.numel():  # no row sees a key
        key_start = q.new_zeros(B, H, batch.units(T, plan.unit), dtype=torch.int32)
        lse = q.new_full((B, H, T), -math.inf, dtype=torch.float32)
        return q.new_zeros(q.shape), lse, running, key_start
    q, k, v = (last_contiguous(x) for x in (q, k, v))
    key_start = key_starts(
        q, k, running, batch, plan.unit, softmax_scale,
        window_size, log_pruning_tolerance, logit_bound,
    )  # fmt: skip
    gates = split_gates(running, plan.forward.keys, batch)
    out, lse = forward(
        q, k, v, gates, key_start, batch, plan.forward, plan.unit, softmax_scale, window_size
    )
    return out, lse, running, key_start


@flash_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    softmax_scale: float,
    window_size: int | None = None,
    seq_start: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    *rest: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, T, H, D = q.shape
    unit = choose_plan(D, q.dtype, q.device).unit
    units = T // unit + (2 if cu_seqlens_q is None else cu_seqlens_q.shape[0])
    return (
        torch.empty_like(q, memory_format=torch.contiguous_format),
        q.new_empty(B, H, T, dtype=torch.float32),
        q.new_empty(B, H, k.shape[1], dtype=torch.float64),
        q.new_empty(B, H, units, dtype=torch.int32),
    )


@torch.library.custom_op("fox::flash_attention_backward", mutates_args=())
def flash_attention_backward(
    d_out: Tensor,
    d_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    out: Tensor,
    lse: Tensor,
    running: Tensor,
    key_start: Tensor,
    softmax_scale: float,
    window_size: int | None,
    seq_start: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int | None,
    max_seqlen_k: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv, dlog_f in the shapes and dtypes of q, k, v, log_f."""
    from fox.kernels.flash.backward import backward
    from fox.kernels.flash.layout import last_contiguous
    from fox.kernels.flash.ranges import split_gates

    if not q.numel() or not k.numel():
        dq, dk, dv, d_log_f = (x.new_zeros(x.shape) for x in (q, k, v, log_f))
        return dq, dk, dv, d_log_f
    batch = _batch(q, k, seq_start, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    plan = choose_plan(q.shape[-1], q.dtype, q.device)
    d_out, q, k, v = (last_contiguous(x) for x in (d_out, q, k, v))
    d_lse = None if d_lse is None else d_lse.contiguous()
    gates = split_gates(running, plan.dq.keys, batch)
    dq, dk, dv, d_lambda = backward(
        d_out, d_lse, q, k, v, out, lse, gates, key_start, batch, plan, softmax_scale, window_size
    )
    d_log_f = log_gate_gradient(d_lambda, log_f, seq_start, cu_seqlens_k)
    return dq, dk, dv, d_log_f.to(log_f.dtype).contiguous()


@flash_attention_backward.register_fake
def _(
    d_out: Tensor,
    d_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    *rest: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv, d_log_f = (x.new_empty(x.shape) for x in (q, k, v, log_f))
    return dq, dk, dv, d_log_f


@torch.library.custom_op("fox::flash_decode", mutates_args=("k_cache", "v_cache", "lambda_cache"))
def flash_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lambda_cache: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    log_f: Tensor | None,
    filled: Tensor | None,
    filled_everywhere: int,
    softmax_scale: float,
    window_size: int | None = None,
    seq_start: Tensor | None = None,
    log_pruning_tolerance: float | None = None,
    logit_bound: Tensor | None = None,
) -> Tensor:
    """out (B, T, H, D) in the dtype of q; see api.forgetting_attention_with_kvcache.

    Args:
        filled: (B,) integer, slots filled in each row; None where filled_everywhere says it.
    """
    require_flash(q)
    from fox.kernels.flash.decode import append_to_cache, decode_attention

    B, T, H, _ = q.shape
    length = filled_everywhere
    before = filled
    if before is None:
        before = torch.full((B,), filled_everywhere, dtype=torch.int32, device=q.device)
    if k is not None and v is not None and log_f is not None:
        append_to_cache(k_cache, v_cache, lambda_cache, k, v, log_f, before, seq_start)
        length, before = length + k.shape[1], before + k.shape[1]
    if not q.numel():
        return torch.empty_like(q)
    if filled is None and T * H // k_cache.shape[2] > DECODE_ROWS and q.dtype == k_cache.dtype:
        k, v, running = (x[:, :length] for x in (k_cache, v_cache, lambda_cache))
        return flash_forward(
            q, k, v, running.transpose(1, 2), _batch(q, k, seq_start, None, None, None, None),
            softmax_scale, window_size, log_pruning_tolerance, logit_bound,
        )[0]  # fmt: skip
    return decode_attention(
        q, k_cache, v_cache, lambda_cache, before, softmax_scale, seq_start=seq_start,
        window_size=window_size, log_pruning_tolerance=log_pruning_tolerance,
        logit_bound=logit_bound,
    )  # fmt: skip


@flash_decode.register_fake
def _(q: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, log_f, scale, window, seq_start, cu_q, cu_k, max_q, max_k, _, _ = inputs
    ctx.save_for_backward(q, k, v, log_f, *output, seq_start, cu_q, cu_k)
    ctx.options = (scale, window, max_q, max_k)
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, d_out: Tensor | None, d_lse: Tensor | None, *rest: None
) -> tuple[Tensor | None, ...]:
    q, k, v, log_f, out, lse, running, key_start, seq_start, cu_q, cu_k = ctx.saved_tensors
    scale, window, max_q, max_k = ctx.options
    if d_out is None:
        d_out = torch.zeros_like(out)
    gradients = flash_attention_backward(
        d_out, d_lse, q, k, v, log_f, out, lse, running, key_start,
        scale, window, seq_start, cu_q, cu_k, max_q, max_k,
    )  # fmt: skip
    return (*gradients, *(None,) * 9)


def _refuse(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError(
        'forgetting_attention has no gradient of its gradient on backend "flash"; '
        'backend "reference" has.'
    )


flash_attention.register_autograd(_differentiate, setup_context=_save)
flash_attention_backward.register_autograd(_refuse)


def _batch(
    q: Tensor,
    k: Tensor,
    seq_start: Tensor | None,
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    max_q: int | None,
    max_k: int | None,
) -> "Batch":
    from fox.kernels.flash.layout import Batch, packed

    if cu_q is None:
        return Batch(q.shape[0], q.shape[1], k.shape[1], packed(seq_start), None, None)
    assert max_q is not None
    assert max_k is not None
    return Batch(cu_q.shape[0] - 1, max_q, max_k, None, packed(cu_q), packed(cu_k))


def flash_share(
    q: Tensor,
    k: Tensor,
    running: Tensor,
    softmax_scale: float,
    seq_start: Tensor | None,
    window_size: int | None,
    log_pruning_tolerance: float | None,
    logit_bound: Tensor | None,
) -> float:
    """The share of visible tiles that the forward pass computes, from running gates (B, H, T_k)."""
    require_flash(q)
    from fox.kernels.flash.layout import last_contiguous
    from fox.kernels.flash.ranges import key_starts, tile_share

    batch = _batch(q, k, seq_start, None, None, None, None)
    plan = choose_plan(q.shape[-1], q.dtype, q.device)
    if not q.numel():
        return 1.0
    key_start = key_starts(
        last_contiguous(q), last_contiguous(k), running, batch, plan.unit, softmax_scale,
        window_size, log_pruning_tolerance, logit_bound,
    )  # fmt: skip
    return tile_share(key_start, batch, plan.forward, plan.unit, window_size)
