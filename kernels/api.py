"""The public face of the kernels: what they mean, what they accept, which backend runs.

Legend: B batch, T query rows, T_k keys, H query heads, H_kv key heads, D head size, S slots of a
cache. Layouts are flash-attn's, and query rows align to the END of the keys: row i of T stands at
position T_k - T + i.
"""

import math

import torch
from torch import Tensor

from fox.kernels.blocked import blocked_attention, blocked_share
from fox.kernels.cached import cached_attention
from fox.kernels.checks import (
    check_appended,
    check_cu_seqlens,
    check_heads,
    check_integers,
    check_pruning,
    check_window,
    checked_backend,
)
from fox.kernels.flash.ops import flash_attention, flash_decode, flash_share
from fox.kernels.gates import running_log_gates
from fox.kernels.reference import reference_attention


def forgetting_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    *,
    softmax_scale: float | None = None,
    window_size: int | None = None,
    seq_start: Tensor | None = None,
    log_pruning_tolerance: float | None = None,
    logit_bound: float | Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal softmax attention whose logits decay with every forget gate on the way.

    out_i = sum_{j <= i} softmax_j(softmax_scale <q_i, k_j> + sum_{l = j+1..i} log f_l) v_j

    Under autocast q, k and v go to the autocast dtype and log_f to float32; dot products and sums
    are float32 (float64 for float64 inputs) whatever the dtype of q.

    Args:
        q: (B, T, H, D), T <= T_k. k, v: (B, T_k, H_kv, D), of q's dtype; H is a multiple of H_kv.
        log_f: (B, T_k, H), or (B, T_k, H_kv) for gates shared by the heads of a group; natural log
            of the gate in [0, 1], float32 or float64 (narrower is widened): 0 forgets nothing,
            -inf forgets everything before this token. Values <= -1e4 count as -inf: such a reset
            is exact and has gradient 0.
        softmax_scale: factor on the dot products; 1 / sqrt(D) if None.
        window_size: how many keys a row sees at most, at least 1: its own and those right before
            it (key j is visible to row i iff i - window_size < j <= i); None sees all.
        seq_start: (B,) integer in [0, T_k]: keys before it are invisible (left padding).
        log_pruning_tolerance: ln of the largest total attention weight that pruning may drop from
            a row, at most 0; None drops only what lies far below rounding: with "blocked" -30, or
            -60 for float64 inputs, with "flash" what decays by more than e^-8192.
        logit_bound: upper bound of softmax_scale |<q_i, k_j>| for pruning, a float or a tensor of
            shape (), (H,) or (B, H); if None, taken from the norms of q and k. Too small a value
            voids the promise of log_pruning_tolerance.
        return_lse: also return the log of the sum of exponentials that normalises each row.
        backend: "flash" (Triton, GPUs), "blocked" (PyTorch, any device, float64 too), both in O(T)
            memory, or "reference" (O(T T_k), the definition, without pruning); if None, "flash"
            for CUDA tensors, else "blocked". A backend that cannot run these inputs raises.

    Returns:
        out (B, T, H, D) in the dtype of q; with return_lse also lse (B, H, T), float32 (float64
        for float64 inputs), differentiable. A row that sees no key has out 0 and lse -inf.

    Raises:
        ValueError: a shape, dtype or value is not as above, or the backend cannot run here.
        NotImplementedError: gradients of gradients are asked of "flash" or "blocked".

    Source: Lin et al., Forgetting Transformer, ICLR 2025, eq. 5-9; pruning: Lin et al., Adaptive
    Computation Pruning for the Forgetting Transformer, 2025.
    """
    q, k, v, log_f = autocasted(q, k, v, log_f)
    check_heads(q, k, v, log_f, "(B, T, H, D)", 4)
    B, T, H, D = q.shape
    T_k = k.shape[1]
    if k.shape[0] != B:
        raise ValueError(f"k must have the batch size of q, B = {B}, but got {k.shape[0]}.")
    if T_k < T:
        raise ValueError(
            f"q must have at most as many rows as there are keys, but got T = {T} > T_k = {T_k}. "
            "Rows align to the end of the keys, so the first ones would see none."
        )
    if seq_start is not None:
        check_integers("seq_start", seq_start, (B,), q, highest=T_k)
    scale = 1 / math.sqrt(D) if softmax_scale is None else softmax_scale
    check_window(window_size)
    bound = check_pruning(log_pruning_tolerance, logit_bound, B, H, q)
    log_f = per_query_head(log_f, H)

    backend = checked_backend(backend, q)
    if backend == "reference":
        out, lse = reference_attention(q, k, v, log_f, scale, seq_start, window_size)
    elif backend == "flash":
        out, lse, _, _ = flash_attention(
            q, k, v, log_f, scale, window_size, seq_start,
            log_pruning_tolerance=log_pruning_tolerance, logit_bound=bound,
        )  # fmt: skip
    else:
        out, lse = blocked_attention(
            q, k, v, log_f, scale, seq_start, window_size, None, None, log_pruning_tolerance, bound
        )
    out = out.to(q.dtype)
    return (out, lse) if return_lse else out


def forgetting_attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    softmax_scale: float | None = None,
    window_size: int | None = None,
    log_pruning_tolerance: float | None = None,
    logit_bound: float | Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Forgetting attention over sequences of different lengths laid end to end.

    Each sequence s attends to itself alone, as forgetting_attention would on
    q[cu_seqlens_q[s] : cu_seqlens_q[s + 1]] and k[cu_seqlens_k[s] : cu_seqlens_k[s + 1]].

    Args:
        q: (total_q, H, D). k, v: (total_k, H_kv, D). log_f: (total_k, H) or (total_k, H_kv).
        cu_seqlens_q, cu_seqlens_k: (sequences + 1,) int32 or int64, rising from 0 to total_q and
            total_k. A sequence may be empty, and may have more queries than keys: the first
            ones then see nothing.
        max_seqlen_q, max_seqlen_k: the largest lengths, as flash-attn asks for; at least those.
        softmax_scale, window_size, log_pruning_tolerance, logit_bound, return_lse, backend: as in
            forgetting_attention, with B = 1.

    Returns:
        out (total_q, H, D) in the dtype of q; with return_lse also lse (H, total_q), float32
        (float64 for float64 inputs).

    Raises:
        ValueError: a shape, dtype or value is not as above, or the backend cannot run here.
        NotImplementedError: gradients of gradients are asked of "flash" or "blocked".
    """
    q, k, v, log_f = autocasted(q, k, v, log_f)
    check_heads(q, k, v, log_f, "(total_q, H, D)", 3)
    H, D = q.shape[1:]
    sequences = cu_seqlens_q.shape[0] - 1
    check_cu_seqlens("q", cu_seqlens_q, sequences, q, max_seqlen_q)
    check_cu_seqlens("k", cu_seqlens_k, sequences, k, max_seqlen_k)
    scale = 1 / math.sqrt(D) if softmax_scale is None else softmax_scale
    check_window(window_size)
    bound = check_pruning(log_pruning_tolerance, logit_bound, 1, H, q)
    log_f = per_query_head(log_f, H)

    backend = checked_backend(backend, q)
    inputs = (x.unsqueeze(0) for x in (q, k, v, log_f))
    if backend == "reference":
        out, lse = _reference_varlen(q, k, v, log_f, cu_seqlens_q, cu_seqlens_k, scale, window_size)
    elif backend == "flash":
        out, lse, _, _ = flash_attention(
            *inputs, scale, window_size, None, cu_seqlens_q, cu_seqlens_k,
            max_seqlen_q, max_seqlen_k, log_pruning_tolerance, bound,
        )  # fmt: skip
        out, lse = out.squeeze(0), lse.squeeze(0)
    else:
        out, lse = blocked_attention(
            *inputs, scale, None, window_size, cu_seqlens_q, cu_seqlens_k,
            log_pruning_tolerance, bound,
        )  # fmt: skip
        out, lse = out.squeeze(0), lse.squeeze(0)
    out = out.to(q.dtype)
    return (out, lse) if return_lse else out


@torch.no_grad()
def forgetting_attention_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lambda_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    log_f: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    *,
    softmax_scale: float | None = None,
    window_size: int | None = None,
    seq_start: Tensor | None = None,
    log_pruning_tolerance: float | None = None,
    logit_bound: float | Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Append k, v and gates to a cache in place, then attend to all it holds: decoding.

    The cache keeps running log gates, lambda_t = sum_{s <= t} log f_s, so that a step costs one
    addition per head and no sum over the past. Nothing here has a gradient.

    Args:
        q: (B, T, H, D): row T - 1 stands at the last filled slot.
        k_cache, v_cache: (B, S, H_kv, D), any float dtype; k and v are stored in it.
        lambda_cache: (B, S, H) float64.
        k, v: (B, T_new, H_kv, D), written behind the filled slots; None appends nothing.
        log_f: (B, T_new, H) or (B, T_new, H_kv), given with k and v; as in forgetting_attention.
        cache_seqlens: slots filled before the call, an int or a (B,) integer tensor. None: all S
            (only if nothing is appended).
        softmax_scale, window_size, log_pruning_tolerance, logit_bound: as in forgetting_attention;
            a few rows (as T = 1) are pruned only with a logit_bound: finding one would read every
            key.
        seq_start: (B,) integer: slots before it are invisible, and their gates count as 0.
        backend: as in forgetting_attention. "flash" reads cache_seqlens where it lies, and drops
            what a cache on a GPU has no room for when its lengths are a tensor.

    Returns:
        (B, T, H, D) in the dtype of q.

    Raises:
        ValueError: a shape, dtype or value is not as above, the cache is too short, or the backend
            cannot run here.
    """
    check_heads(q, k_cache, v_cache, lambda_cache, "(B, T, H, D)", 4, cache=True)
    B, T, H, D = q.shape
    S = k_cache.shape[1]
    if k_cache.shape[0] != B:
        raise ValueError(f"the cache must have the batch size of q, {B}, but got {len(k_cache)}.")
    if lambda_cache.dtype != torch.float64:
        raise ValueError(f"lambda_cache must be float64, but got {lambda_cache.dtype}.")
    if lambda_cache.shape[2] != H:
        raise ValueError(
            f"lambda_cache must have shape (B, S, H) = ({B}, {S}, {H}), "
            f"but got {tuple(lambda_cache.shape)}."
        )
    if seq_start is not None:
        check_integers("seq_start", seq_start, (B,), q, highest=S)
    scale = 1 / math.sqrt(D) if softmax_scale is None else softmax_scale
    check_window(window_size)
    bound = check_pruning(log_pruning_tolerance, logit_bound, B, H, q)
    backend = checked_backend(backend, q)
    if backend == "flash" and k_cache.dtype == torch.float64:
        raise ValueError(
            'backend "flash" reads caches of float32, bfloat16 and float16, but got float64; '
            'backend "blocked" reads any.'
        )
    filled = check_appended(q, k_cache, k, v, log_f, cache_seqlens, backend)
    T_new = 0 if k is None else k.shape[1]
    if filled is not None and min(filled, default=T) + T_new < T:
        raise ValueError(
            f"q must have at most as many rows as slots are filled, but got T = {T} > "
            f"{min(filled) + T_new}."
        )
    log_f = None if log_f is None else per_query_head(log_f, H)
    if filled is None or backend == "flash":
        ragged = cache_seqlens if isinstance(cache_seqlens, Tensor) else None
        together = S if cache_seqlens is None or ragged is not None else int(cache_seqlens)
        return flash_decode(
            q, k_cache, v_cache, lambda_cache, k, v, log_f, ragged, together,
            scale, window_size, seq_start, log_pruning_tolerance, bound,
        )  # fmt: skip
    lengths = [n + T_new for n in filled]
    if k is not None and v is not None and log_f is not None:
        _append(k_cache, v_cache, lambda_cache, k, v, log_f, filled, seq_start)
    return cached_attention(
        q, k_cache, v_cache, lambda_cache, lengths, scale, seq_start, window_size,
        log_pruning_tolerance, bound, backend,
    )  # fmt: skip


@torch.no_grad()
def computed_share(
    q: Tensor,
    k: Tensor,
    log_f: Tensor,
    *,
    softmax_scale: float | None = None,
    window_size: int | None = None,
    seq_start: Tensor | None = None,
    log_pruning_tolerance: float | None = None,
    logit_bound: float | Tensor | None = None,
    backend: str | None = None,
) -> float:
    """The share of the visible work that forgetting_attention does on these inputs.

    Counted in scores by backend "blocked", in tiles with a visible score by "flash"; for plots and
    benchmarks, as a GPU has to be waited for. Visible are the keys from seq_start to a row's own,
    with a window those inside it.

    Args:
        q: (B, T, H, D). k: (B, T_k, H_kv, D). log_f: (B, T_k, H) or (B, T_k, H_kv).
        The others: as in forgetting_attention.

    Returns:
        At most 1, and 1 where nothing is visible.

    Raises:
        ValueError: a shape, dtype or value is not as above.
    """
    check_heads(q, k, k, log_f, "(B, T, H, D)", 4)
    B, T, H, D = q.shape
    if k.shape[0] != B or k.shape[1] < T:
        raise ValueError(f"k must have B = {B} rows of {T} keys at least, but got {k.shape[:2]}.")
    if seq_start is not None:
        check_integers("seq_start", seq_start, (B,), q, highest=k.shape[1])
    scale = 1 / math.sqrt(D) if softmax_scale is None else softmax_scale
    check_window(window_size)
    bound = check_pruning(log_pruning_tolerance, logit_bound, B, H, q)
    running = running_log_gates(per_query_head(log_f, H), seq_start)
    backend = checked_backend(backend, q)
    if backend == "reference":
        return 1.0
    share = flash_share if backend == "flash" else blocked_share
    return share(q, k, running, scale, seq_start, window_size, log_pruning_tolerance, bound)


def _append(
    k_cache: Tensor,
    v_cache: Tensor,
    lambda_cache: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    filled: list[int],
    seq_start: Tensor | None,
) -> None:
    """Write new keys, values and running gates behind the filled slots of each row."""
    B, T_new = k.shape[:2]
    together = [slice(0, B)] if len(set(filled)) == 1 else [slice(b, b + 1) for b in range(B)]
    for b in together:
        first = filled[b.start]
        new = slice(first, first + T_new)
        k_cache[b, new] = k[b]
        v_cache[b, new] = v[b]
        total = lambda_cache[b, first - 1] if first else None
        start = None if seq_start is None else seq_start[b] - first
        lambda_cache[b, new] = running_log_gates(log_f[b], start, total).transpose(1, 2)


def _reference_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    scale: float,
    window_size: int | None,
) -> tuple[Tensor, Tensor]:
    """One reference call per sequence; rows before the first key get out 0 and lse -inf."""
    outs, lses = [], []
    borders_q, borders_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for q0, q1, k0, k1 in zip(
        borders_q[:-1], borders_q[1:], borders_k[:-1], borders_k[1:], strict=True
    ):
        blind = max(q1 - q0 - (k1 - k0), 0)
        rows, keys = slice(q0 + blind, q1), slice(k0, k1)
        out, lse = reference_attention(
            q[None, rows], k[None, keys], v[None, keys], log_f[None, keys],
            scale, None, window_size,
        )  # fmt: skip
        outs.append(torch.cat([out.new_zeros(blind, *q.shape[1:]), out[0]]))
        lses.append(torch.cat([lse.new_full((q.shape[1], blind), -math.inf), lse[0]], dim=1))
    return torch.cat(outs), torch.cat(lses, dim=1)


def autocasted(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor) -> tuple[Tensor, ...]:
    """What autocast would do to attention: q, k, v to its dtype, gates to float32."""
    device = q.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return q, k, v, log_f
    if q.dtype == torch.float64:
        return q, k, v, log_f
    dtype = torch.get_autocast_dtype(device)
    return q.to(dtype), k.to(dtype), v.to(dtype), log_f.float()


def per_query_head(log_f: Tensor, H: int) -> Tensor:
    """Gates shared by a group, given to each of its query heads."""
    return log_f if log_f.shape[-1] == H else log_f.repeat_interleave(H // log_f.shape[-1], -1)
