"""Attention of the last rows of a cache to all it holds: what decoding runs.

Legend: B batch, T query rows, S slots, N slots that are read, H query heads, H_kv key heads, D head
size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fox.kernels.checks import without_autocast
from fox.kernels.reference import reference_attention
from fox.kernels.tiled import compute_dtype, forward_tiles, prepare
from fox.kernels.tiles import Span

# So many rows are worth a mask of rows and keys, which is small beside the keys; more are worth a
# plan of tiles.
FEW = 4


def cached_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lambda_cache: Tensor,
    lengths: list[int],
    softmax_scale: float,
    seq_start: Tensor | None,
    window_size: int | None,
    log_pruning_tolerance: float | None,
    logit_bound: Tensor | None,
    backend: str,
) -> Tensor:
    """Rows of q at the end of lengths[b] slots, from running gates (B, S, H); see api.py."""
    B, T = q.shape[:2]
    alike = len(set(lengths)) <= 1
    outs = []
    for b in [slice(0, B)] if alike else [slice(b, b + 1) for b in range(B)]:
        length = max(lengths[b], default=T)
        # The first slot that the first row sees: those before it are not even read.
        first = 0 if window_size is None else max(0, length - T - window_size + 1)
        k, v, running = (x[b, first:length] for x in (k_cache, v_cache, lambda_cache))
        start = None if seq_start is None else (seq_start[b] - first).clamp(0, length - first)
        bound = None if logit_bound is None else logit_bound[b]
        with without_autocast(q.device):
            if backend == "reference":
                out = _by_definition(q[b], k, v, running, softmax_scale, start, window_size)
            elif T == 1 or (1 < T <= FEW and start is None):
                floor = None
                if log_pruning_tolerance is not None and bound is not None:
                    # Norms of all keys would cost what pruning saves: only a given bound prunes.
                    floor = log_pruning_tolerance - 2 * bound - math.log(length - first)
                out = _few_rows(
                    q[b], k, v, running.transpose(1, 2), softmax_scale, start, window_size, floor
                )
            else:
                out = _rows(
                    q[b], k, v, running.transpose(1, 2), softmax_scale, start, window_size,
                    log_pruning_tolerance, bound,
                )  # fmt: skip
        outs.append(out.to(q.dtype))
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def _by_definition(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    running: Tensor,
    scale: float,
    seq_start: Tensor | None,
    window_size: int | None,
) -> Tensor:
    """The reference on the gates that running gates (B, N, H) tell; the first has no effect."""
    log_f = running.diff(dim=1, prepend=running[:, :1])
    return reference_attention(q, k, v, log_f, scale, seq_start, window_size)[0]


def _rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    running: Tensor,
    scale: float,
    seq_start: Tensor | None,
    window_size: int | None,
    log_pruning_tolerance: float | None,
    logit_bound: Tensor | None,
) -> Tensor:
    """Any number of rows, from running gates (B, H, N)."""
    B, T, H, _ = q.shape
    N = k.shape[1]
    starts = [0] * B if seq_start is None else seq_start.tolist()
    heads = slice(0, H)
    if len(set(starts)) == 1:
        spans = [Span(slice(0, B), heads, 0, T, starts[0], N, window_size)]
    else:
        spans = [
            Span(slice(b, b + 1), heads, 0, T, start, N, window_size)
            for b, start in enumerate(starts)
        ]
    tolerance, bound = log_pruning_tolerance, logit_bound
    work = prepare(q, k, running.contiguous(), spans, scale, tolerance, bound)
    return forward_tiles(q, k, v, work)[0]


def _first_live(running: Tensor, floor: Tensor, T: int) -> int:
    """The first slot that the first of the last T rows of any head sees above its floor (B, H)."""
    if not floor.numel():
        return 0
    faded = running[..., -T, None] - running < floor.unsqueeze(-1)
    return int(faded.sum(-1).min())


def _few_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    running: Tensor,
    scale: float,
    seq_start: Tensor | None,
    window_size: int | None,
    floor: Tensor | None,
) -> Tensor:
    """Few rows see every key above their floor: decay is an ordinary mask. (B, T, H, D)."""
    dtype, T = compute_dtype(q), q.shape[1]
    first = 0 if floor is None else _first_live(running, floor, T)
    k, v, running = k[:, first:], v[:, first:], running[..., first:]
    bias = (running[..., -T:, None] - running.unsqueeze(2)).to(dtype)  # (B, H, T, N - first)
    key = torch.arange(k.shape[1], device=q.device)
    if T > 1:
        row = key[-T:, None]
        hidden = key > row
        if window_size is not None:
            hidden |= key <= row - window_size
        bias = bias.masked_fill(hidden, float("-inf"))
    if seq_start is not None:
        bias = bias.masked_fill((key < seq_start[:, None] - first)[:, None, None], float("-inf"))
    wide_q, wide_k, wide_v = (x.transpose(1, 2).to(dtype) for x in (q, k, v))
    grouped = k.shape[2] != q.shape[2]
    out = F.scaled_dot_product_attention(
        wide_q, wide_k, wide_v, attn_mask=bias, scale=scale, enable_gqa=grouped
    )
    return out.transpose(1, 2)
