"""Forgetting attention over sequences that are split over the ranks of a process group.

A rank collects the keys, values and gates that stand before its tokens, and runs the usual kernels,
whose rows align to the end of their keys. Chunks that the gates have decayed too far do not travel:
for every key head a rank gets chunks from the first one on that its rows can see. In the place of a
missing one stand zeros with gates of 0, which the decay behind them leaves as little weight.

Legend: B batch, T tokens of this rank, H query heads, H_kv key heads, D head size, W ranks,
C chunks of the whole sequence, L tokens of a chunk, N = C L tokens of the whole sequence.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fox.kernels.api import autocasted, per_query_head
from fox.kernels.blocked import blocked_attention, blocked_attention_backward
from fox.kernels.checks import (
    check_heads,
    check_integers,
    check_pruning,
    check_window,
    checked_backend,
)
from fox.kernels.context import ContextSplit, Route
from fox.kernels.flash.ops import flash_attention, flash_attention_backward
from fox.kernels.gates import RESET_JUMP, running_log_gates
from fox.kernels.pruning import STORAGE_MARGIN
from fox.kernels.tiles import RESET_STEP


class Options(NamedTuple):
    """What forgetting_attention takes, checked."""

    scale: float
    window: int | None
    tolerance: float | None
    bound: Tensor | None
    backend: str


class Call(NamedTuple):
    """One call of a kernel: the rows of one chunk against the keys that they see.

    Args:
        rows: among this rank's tokens.
        keys: among the collected ones; they end with the rows' own.
        seq_start: (B,) or None, counted among these keys.
    """

    rows: slice
    keys: slice
    seq_start: Tensor | None


def context_parallel_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    context: ContextSplit,
    *,
    softmax_scale: float | None = None,
    window_size: int | None = None,
    seq_start: Tensor | None = None,
    log_pruning_tolerance: float | None = None,
    logit_bound: float | Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """forgetting_attention of whole sequences, of which every rank holds the tokens of its chunks.

    All ranks of the group call it together, and its backward pass too. The keys and values that a
    rank's rows can see travel twice, before the forward and before the backward pass, and their
    gradients once. What pruning would drop anyway does not travel, chunk by chunk and key head by
    key head. During a pass a rank holds the keys and values from the first chunk that it gets to
    its own last one, N tokens of them at most; between the passes it keeps its own alone. What
    travels is decided on the CPU: a GPU is waited for once in every forward pass.

    Args:
        q: (B, T, H, D); k, v: (B, T, H_kv, D); log_f: (B, T, H) or (B, T, H_kv): this rank's
            tokens, as context.part gives them. Shapes are equal on all ranks.
        context: how the sequences are split.
        seq_start: (B,) integer in [0, N], equal on all ranks: tokens of the whole sequence before
            it are invisible.
        log_pruning_tolerance: as in forgetting_attention, of what does not travel and what the
            kernels drop together; with None everything travels but what a reset hides.
        softmax_scale, window_size, logit_bound, return_lse: as in forgetting_attention.
        backend: "flash" or "blocked"; by the device of q if None.

    Returns:
        out (B, T, H, D) in the dtype of q; with return_lse also lse (B, H, T): this rank's rows of
        what forgetting_attention returns for the whole sequences.

    Raises:
        ValueError: a shape, dtype or value is not as above, or chunks are not equally long.
        NotImplementedError: gradients of gradients are asked for.
    """
    q, k, v, log_f = autocasted(q, k, v, log_f)
    options = _checked(
        q, k, v, log_f, context, softmax_scale, window_size, log_pruning_tolerance, logit_bound,
        backend,
    )  # fmt: skip
    if seq_start is not None:
        check_integers("seq_start", seq_start, q.shape[:1], q, q.shape[1] * context.size)
    log_f = per_query_head(log_f, q.shape[2])
    first = _first_chunks(q, k, log_f, context, options)
    route = Route.of(_wanted(first, context), context, q.device)
    calls = _calls(first, route, q.shape[1], seq_start)
    out, lse = _ContextAttention.apply(q, k, v, log_f, route, calls, options)
    out = out.to(q.dtype)
    return (out, lse) if return_lse else out


@torch.no_grad()
def transferred_share(
    q: Tensor,
    k: Tensor,
    log_f: Tensor,
    context: ContextSplit,
    *,
    window_size: int | None = None,
    softmax_scale: float | None = None,
    log_pruning_tolerance: float | None = None,
    logit_bound: float | Tensor | None = None,
) -> float:
    """The share of keys that travel between ranks, of those before some row of another rank.

    Args:
        q, k, log_f, context and the others: as in context_parallel_attention, called together.

    Returns:
        Of all ranks together, equal on all of them; 1 where nothing has to travel.

    Raises:
        ValueError: as context_parallel_attention.
    """
    options = _checked(
        q, k, k, log_f, context, softmax_scale, window_size, log_pruning_tolerance, logit_bound,
        None,
    )  # fmt: skip
    first = _first_chunks(q, k, per_query_head(log_f, q.shape[2]), context, options)
    possible = int(_wanted(torch.zeros_like(first), context).sum())
    return int(_wanted(first, context).sum()) / possible if possible else 1.0


class _ContextAttention(torch.autograd.Function):
    """out and lse of this rank's rows; the backward pass collects again what the rows saw."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_f: Tensor,
        route: Route,
        calls: list[Call],
        options: Options,
    ) -> tuple[Tensor, Tensor]:
        keys, values, gates = _collect(route, k, v, log_f)
        results = []
        for call in calls:
            seen = call.keys
            results.append(
                _forward(
                    q[:, call.rows], keys[:, seen], values[:, seen], gates[:, seen],
                    call.seq_start, options,
                )
            )  # fmt: skip
        outs, lses, *starts = zip(*results, strict=True)
        out, lse = torch.cat(outs, 1), torch.cat(lses, 2)
        ctx.save_for_backward(q, k, v, log_f, out, lse, *(starts[0] if starts else ()))
        ctx.plan = route, calls, options
        return out, lse

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, d_lse: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # asked for by create_graph=True
            raise NotImplementedError("context_parallel_attention has no gradient of its gradient.")
        q, k, v, log_f, out, lse, *starts = ctx.saved_tensors
        route, calls, options = ctx.plan
        keys, values, gates = _collect(route, k, v, log_f)
        # Two calls may see the same keys: 16-bit gradients are summed in float32.
        wide = torch.promote_types(k.dtype, torch.float32)
        d_q = torch.empty_like(q)
        d_keys, d_values = torch.zeros_like(keys, dtype=wide), torch.zeros_like(values, dtype=wide)
        d_gates = torch.zeros_like(gates)
        for i, call in enumerate(calls):
            rows, seen = call.rows, call.keys
            parts = _backward(
                d_out[:, rows].contiguous(), d_lse[..., rows].contiguous(),
                q[:, rows], keys[:, seen], values[:, seen], gates[:, seen],
                out[:, rows].contiguous(), lse[..., rows].contiguous(),
                starts[i] if starts else None, call.seq_start, options,
            )  # fmt: skip
            d_q[:, rows] = parts[0]
            d_keys[:, seen] += parts[1]
            d_values[:, seen] += parts[2]
            d_gates[:, seen] += parts[3]
        d_k, d_v = route.bring_home(torch.cat([d_keys, d_values], -1), k.dtype).chunk(2, -1)
        d_log_f = route.bring_home(d_gates.unflatten(2, (k.shape[2], -1)), log_f.dtype).flatten(2)
        return d_q, d_k, d_v, d_log_f, None, None, None


def _collect(route: Route, k: Tensor, v: Tensor, log_f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values (B, tokens, H_kv, D) and gates (B, tokens, H) for this rank."""
    keys, values = route.collect(torch.cat([k, v], -1)).chunk(2, -1)
    return keys, values, route.collect(log_f.unflatten(2, (k.shape[2], -1))).flatten(2)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, seq_start: Tensor | None, options: Options
) -> tuple[Tensor, ...]:
    """out and lse; of "flash" also the first key of each unit of rows, for the backward pass."""
    scale, window, tolerance, bound, backend = options
    if backend == "flash":
        out, lse, _, key_start = flash_attention(
            q, k, v, log_f, scale, window, seq_start,
            log_pruning_tolerance=tolerance, logit_bound=bound,
        )  # fmt: skip
        return out, lse, key_start
    return blocked_attention(q, k, v, log_f, scale, seq_start, window, None, None, tolerance, bound)


def _backward(
    d_out: Tensor,
    d_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    out: Tensor,
    lse: Tensor,
    key_start: Tensor | None,
    seq_start: Tensor | None,
    options: Options,
) -> tuple[Tensor, ...]:
    """dq, dk, dv, dlog_f of one call."""
    scale, window, tolerance, bound, backend = options
    if backend == "flash":
        running = running_log_gates(log_f, seq_start)
        return flash_attention_backward(
            d_out, d_lse, q, k, v, log_f, out, lse, running, key_start,
            scale, window, seq_start, None, None, None, None,
        )  # fmt: skip
    return blocked_attention_backward(
        d_out, d_lse, q, k, v, log_f, out, lse,
        scale, seq_start, window, None, None, tolerance, bound, None,
    )  # fmt: skip


@torch.no_grad()
def _first_chunks(
    q: Tensor, k: Tensor, log_f: Tensor, context: ContextSplit, options: Options
) -> Tensor:
    """(C, B, H_kv) int64 on the CPU: the first chunk of which each chunk's rows see anything.

    Every rank computes it from the same numbers, so that all agree on what travels. The rule is
    that of pruning.py for the first row of a chunk and the last key of another.
    """
    q, k, log_f = (x.unflatten(1, (context.per_rank, -1)).transpose(0, 1) for x in (q, k, log_f))
    steps = log_f.double().clamp(min=RESET_JUMP)  # (n, B, L, H)
    length = torch.full_like(steps[:, :, 0], steps.shape[2])
    norms = _norms(q, k, options) if options.tolerance is not None else (length, length)
    summary = torch.stack([steps.sum(2), steps[:, :, 0], *norms, length], 1)  # (n, 5, B, H)
    total, first_step, q_norm, k_norm, length = context.in_order(summary).cpu().unbind(1)
    if (length != length[0]).any():
        raise ValueError(
            "every rank must hold chunks of one length, "
            f"but got chunks of {length[:, 0, 0].int().tolist()} tokens."
        )
    L = int(length.max())

    threshold = torch.full_like(total, RESET_STEP)
    if options.tolerance is not None:
        visible = min(L * len(total), options.window or math.inf)
        threshold = options.tolerance - 2 * q_norm * k_norm.cummax(0).values - math.log(visible)
    ends = total.cumsum(0)  # the running gate at the last key of each chunk
    begins = ends - total + first_step  # ... and at its first row
    dropped = begins[:, None] - ends < threshold[:, None]  # (C rows, C keys, B, H)
    chunk = torch.arange(len(total))
    apart = chunk[:, None] - chunk
    if options.window is not None:
        dropped |= ((apart - 1) * L + 1 >= options.window)[:, :, None, None]
    first = (dropped & (apart > 0)[:, :, None, None]).sum(1)
    return first.unflatten(2, (k.shape[3], -1)).amin(3)


def _norms(q: Tensor, k: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Per chunk (n, B, H) float64, factors whose product bounds the scaled dot products."""
    if options.bound is not None:
        bound = options.bound.expand(len(q), -1, -1)
        return bound, torch.ones_like(bound)
    wide = torch.promote_types(q.dtype, torch.float32)
    q_norm, k_norm = (
        torch.linalg.vector_norm(x, dim=-1, dtype=wide).amax(2).double() for x in (q, k)
    )
    factor = abs(options.scale) * STORAGE_MARGIN.get(q.dtype, 1.0)
    return factor * q_norm, k_norm.repeat_interleave(q.shape[3] // k.shape[3], 2)


def _wanted(first: Tensor, context: ContextSplit) -> Tensor:
    """What each rank gets from others: (W, C, B, H_kv) bool."""
    chunk = torch.arange(len(first))[:, None, None]
    wanted = torch.zeros(context.size, *first.shape, dtype=torch.bool)
    for rank in range(context.size):
        for c in context.chunks(rank):
            wanted[rank] |= (first[c] <= chunk) & (chunk < c)
        wanted[rank, context.chunks(rank)] = False
    return wanted


def _calls(first: Tensor, route: Route, T: int, seq_start: Tensor | None) -> list[Call]:
    L = T // route.context.per_rank
    calls = []
    for i, c in enumerate(route.context.chunks()):
        lowest = int(first[c].min())
        keys = slice((lowest - route.first) * L, (c + 1 - route.first) * L)
        start = None
        if seq_start is not None:
            start = (seq_start - lowest * L).clamp(0, keys.stop - keys.start)
        calls.append(Call(slice(i * L, (i + 1) * L), keys, start))
    return calls


def _checked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    context: ContextSplit,
    softmax_scale: float | None,
    window_size: int | None,
    log_pruning_tolerance: float | None,
    logit_bound: float | Tensor | None,
    backend: str | None,
) -> Options:
    check_heads(q, k, v, log_f, "(B, T, H, D)", 4)
    B, T, H, D = q.shape
    if k.shape[:2] != (B, T):
        raise ValueError(
            f"k must hold the tokens of q, (B, T) = {(B, T)}, but got {tuple(k.shape[:2])}: every "
            "rank passes the keys of its own chunks."
        )
    if not T or T % context.per_rank:
        raise ValueError(
            f"a rank must hold {context.per_rank} chunk(s) of equal length, at least 1, "
            f"but got T = {T} tokens."
        )
    check_window(window_size)
    bound = check_pruning(log_pruning_tolerance, logit_bound, B, H, q)
    backend = checked_backend(backend, q)
    if backend == "reference":
        raise ValueError(
            'context_parallel_attention runs on "flash" and "blocked", but got backend "reference".'
        )
    # Half of it is for the chunks that do not travel, half for what the kernels drop.
    tolerance = None if log_pruning_tolerance is None else log_pruning_tolerance - math.log(2)
    scale = 1 / math.sqrt(D) if softmax_scale is None else softmax_scale
    return Options(scale, window_size, tolerance, bound, backend)
