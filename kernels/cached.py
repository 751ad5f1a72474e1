"""Attention of the last rows of a cache to all it holds: what decoding runs.

Legend: B batch, T query rows, S slots, N filled slots, H query heads, H_kv key heads, D head size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fox.kernels.reference import reference_attention
from fox.kernels.tiled import compute_dtype, forward_tiles, prepare
from fox.kernels.tiles import Span


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
) -> Tensor:
    """Rows of q at the end of lengths[b] slots, from running gates (B, S, H); see api.py."""
    if window_size is not None:
        raise NotImplementedError('window_size does not exist yet on backend "blocked".')
    B, T, H, _ = q.shape
    N = max(lengths, default=0)
    k, v = k_cache[:, :N], v_cache[:, :N]
    running = lambda_cache[:, :N].transpose(1, 2)  # (B, H, N)
    with torch.autocast(q.device.type, enabled=False):
        if T == 1 and len(set(lengths)) == 1:
            first = 0
            if log_pruning_tolerance is not None and logit_bound is not None:
                # Norms of all keys would cost what pruning saves, so only a given bound prunes.
                first = _first_live(running, log_pruning_tolerance - 2 * logit_bound - math.log(N))
            return _one_row(q, k, v, running, softmax_scale, seq_start, first)
        starts = [0] * B if seq_start is None else seq_start.tolist()
        ends = list(zip(starts, lengths, strict=True))
        if len(set(ends)) == 1:
            spans = [Span(slice(0, B), slice(0, H), 0, T, *ends[0])]
        else:
            spans = [Span(slice(b, b + 1), slice(0, H), 0, T, *end) for b, end in enumerate(ends)]
        tolerance, bound = log_pruning_tolerance, logit_bound
        work = prepare(q, k, running.contiguous(), spans, softmax_scale, tolerance, bound)
        out, _ = forward_tiles(q, k, v, work)
        return out.to(q.dtype)


def reference_cached(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lambda_cache: Tensor,
    lengths: list[int],
    softmax_scale: float,
    seq_start: Tensor | None,
    window_size: int | None,
) -> Tensor:
    """The same by the definition, from the gates that the running gates tell."""
    outs = [q[:0]]
    for b, length in enumerate(lengths):
        row = slice(b, b + 1)
        k, v, running = (x[row, :length] for x in (k_cache, v_cache, lambda_cache))
        log_f = running.diff(dim=1, prepend=running[:, :1])
        start = None if seq_start is None else seq_start[row]
        out, _ = reference_attention(q[row], k, v, log_f, softmax_scale, start, window_size)
        outs.append(out.to(q.dtype))
    return torch.cat(outs)


def _first_live(running: Tensor, floor: Tensor) -> int:
    """The first slot that any (batch row, head) still sees above its floor (B, H)."""
    faded = running[..., -1:] - running < floor.unsqueeze(-1)
    return int(faded.sum(-1).min()) if faded.numel() else 0


def _one_row(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    running: Tensor,
    scale: float,
    seq_start: Tensor | None,
    first: int,
) -> Tensor:
    """One row sees every key from `first` on: its decay is an ordinary mask. (B, 1, H, D)."""
    dtype = compute_dtype(q)
    k, v, running = k[:, first:], v[:, first:], running[..., first:]
    bias = (running[..., -1:] - running).to(dtype)  # (B, H, N - first)
    if seq_start is not None:
        hidden = torch.arange(k.shape[1], device=q.device) < seq_start[:, None] - first
        bias = bias.masked_fill(hidden[:, None], float("-inf"))
    wide_q, wide_k, wide_v = (x.transpose(1, 2).to(dtype) for x in (q, k, v))
    grouped = k.shape[2] != q.shape[2]
    out = F.scaled_dot_product_attention(
        wide_q, wide_k, wide_v, attn_mask=bias.unsqueeze(2), scale=scale, enable_gqa=grouped
    )
    return out.transpose(1, 2).to(q.dtype)
