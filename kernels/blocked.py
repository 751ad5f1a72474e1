"""Forgetting attention block by block (for now: the definition, sequence by sequence)."""

import torch
from torch import Tensor

from fox.kernels.reference import reference_attention


def blocked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    scale: float,
    seq_start: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    log_pruning_tolerance: float | None,
    logit_bound: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(B, T, H, D) and (B, H, T)."""
    if cu_seqlens_q is None or cu_seqlens_k is None:
        return reference_attention(q, k, v, log_f, scale, seq_start)
    from fox.kernels.api import _reference_varlen

    out, lse = _reference_varlen(q[0], k[0], v[0], log_f[0], cu_seqlens_q, cu_seqlens_k, scale)
    return out.unsqueeze(0), lse.unsqueeze(0)


def cached_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lambda_cache: Tensor,
    lengths: list[int],
    scale: float,
    seq_start: Tensor | None,
    log_pruning_tolerance: float | None,
    logit_bound: Tensor | None,
) -> Tensor:
    """(B, T, H, D)."""
    outs = []
    T = q.shape[1]
    for b, n in enumerate(lengths):
        lam = lambda_cache[b : b + 1, :n]
        log_f = torch.diff(lam, dim=1, prepend=lam[:, :1])
        start = None if seq_start is None else seq_start[b : b + 1]
        log_f = torch.where(log_f <= -(2.0**13), -float("inf"), log_f)
        out, _ = reference_attention(
            q[b : b + 1].float() if q.dtype != torch.float64 else q[b : b + 1],
            k_cache[b : b + 1, :n].to(q.dtype),
            v_cache[b : b + 1, :n].to(q.dtype),
            log_f,
            scale,
            start,
        )
        outs.append(out.to(q.dtype))
    return torch.cat(outs) if outs else torch.zeros_like(q)
