"""What the gates say before any score is computed: a bias per key, and where each row begins.

The row term of the decay cancels in the softmax, so a tile of keys needs one float32 per key,
lambda_c - lambda_j relative to its last key c, and one number per tile. Nothing is ever the
difference of two large rounded sums.

Adaptive computation pruning: the keys j <= c together weigh in row i at most

    exp(U_i + lambda_i) sum_{j <= c} exp(-lambda_j) / sum_{near j} exp(s_ij + lambda_i - lambda_j)

with s_ij = scale <q_i, k_j>, U_i >= |s_ij|, and as near keys those of the row's unit and of the one
before it. They are dropped where this is below exp(tolerance) for every row of a unit. The sum over
j <= c is a prefix sum of the gates alone, and counts keys by what is left of them, where the paper
counts all as if none had faded; the near keys bound the row's sum of weights from below, where the
paper takes exp(-U) of its own key. As the prefix sum rises with c, what is kept begins at one key.

Legend: B batch, T query rows, T_k keys, H query heads, H_kv key heads, D head size.
Source: Lin et al., Adaptive Computation Pruning for the Forgetting Transformer, 2025.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from fox.kernels.flash.layout import (
    LOG2E,
    RESET_FALL,
    SIZES,
    Batch,
    load_rows,
    on_device,
    padded,
    precision,
    sequence,
    unit_offset,
)
from fox.kernels.flash.tuning import Tile

# Norms are summed in float32: a product of two may fall short by less than this factor.
NORM_MARGIN = 1.001


@triton.jit(do_not_specialize=SIZES)
def _split_gates(
    running, high, low, bias, seq_start, cu_k, stride_b, stride_h, stride_t, H, T_k, tiles,
    KEYS: tl.constexpr, VARLEN: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    n = pid % tiles
    h = pid // tiles % H
    s = pid // tiles // H
    b, _, _, key0, keys = sequence(s, cu_k, cu_k, T_k, T_k, VARLEN)
    if n * KEYS < keys:
        key = n * KEYS + tl.arange(0, KEYS)
        inside = key < keys
        source = running + b * stride_b + h * stride_h + key0 * stride_t
        value = tl.load(source + key * stride_t, mask=inside, other=0.0)
        last = tl.load(source + tl.minimum(n * KEYS + KEYS, keys) * stride_t - stride_t)
        rounded = value.to(tl.float32)
        fall = ((last - value) * LOG2E).to(tl.float32)
        if PADDED:
            fall = tl.where(key >= tl.load(seq_start + s), fall, float("-inf"))
        target = (b * H + h) * T_k + key0 + key
        tl.store(high + target, rounded, mask=inside)
        tl.store(low + target, (value - rounded.to(tl.float64)).to(tl.float32), mask=inside)
        tl.store(bias + target, fall, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def _key_starts(
    q, k, running, reach, key_start, bound, seq_start, cu_q, cu_k,
    q_b, q_t, q_h, k_b, k_t, k_h, g_b, g_h, g_t,
    H, GROUP, T, T_k, units, tiles, scale, tolerance, window,
    D: tl.constexpr, WIDTH: tl.constexpr, UNIT: tl.constexpr, PRECISION: tl.constexpr,
    PROBES: tl.constexpr, ROUNDS: tl.constexpr,
    VARLEN: tl.constexpr, PADDED: tl.constexpr, WINDOWED: tl.constexpr,
    PRUNED: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    u = pid % tiles
    h = pid // tiles % H
    s = pid // tiles // H
    b, row0, rows, key0, keys = sequence(s, cu_q, cu_k, T, T_k, VARLEN)
    if u * UNIT < rows:
        first = keys - rows + u * UNIT
        start = 0
        if PADDED:
            start = tl.load(seq_start + s).to(tl.int32)
        left = start
        if WINDOWED:
            left = tl.maximum(start, first - window + 1)
        anchor = tl.maximum(first, start)
        gates = running + b * g_b + h.to(tl.int64) * g_h + key0 * g_t
        here = tl.load(gates + anchor.to(tl.int64) * g_t, mask=anchor < keys, other=0.0)

        floor = RESET_FALL
        if PRUNED:
            position = first + tl.arange(0, UNIT)
            near = first - UNIT + tl.arange(0, 2 * UNIT)
            sees = (position >= start) & (position < keys)
            exists = (near >= start) & (near < keys)
            gate = tl.load(gates + position.to(tl.int64) * g_t, mask=sees, other=0.0)
            near_gate = tl.load(gates + near.to(tl.int64) * g_t, mask=exists, other=0.0)
            q_rows = q + b * q_b + row0 * q_t + h.to(tl.int64) * q_h
            k_rows = k + b * k_b + key0 * k_t + (h // GROUP).to(tl.int64) * k_h
            query = load_rows(q_rows, u * UNIT, rows, q_t, D, UNIT, WIDTH)
            key = load_rows(k_rows, first - UNIT, keys, k_t, D, 2 * UNIT, WIDTH)
            score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
            score += (gate[:, None] - near_gate[None, :]).to(tl.float32)
            visible = (near[None, :] <= position[:, None]) & exists[None, :] & sees[:, None]
            if WINDOWED:
                visible &= near[None, :] > position[:, None] - window
            score = tl.where(visible, score, float("-inf"))
            peak = tl.where(sees, tl.max(score, axis=1), 0.0)
            total = tl.sum(tl.exp(score - peak[:, None]), axis=1)
            log_sum = peak + tl.log(tl.where(sees, total, 1.0))
            largest = tl.load(bound + b * H + h)
            if not BOUNDED:
                norm = tl.sqrt(tl.sum(query.to(tl.float32) * query.to(tl.float32), axis=1))
                largest *= tl.abs(scale) * norm
            slack = largest + (gate - here).to(tl.float32) - log_sum
            slack = tl.where(slack == slack, slack, float("inf"))  # NaN prunes nothing
            slack = tl.max(tl.where(sees, slack, float("-inf")), axis=0)
            floor = tl.maximum(floor, tolerance - slack)

        # Each round looks at the last key of PROBES equal parts and keeps the first live part.
        sums, sums_t = gates, g_t
        if PRUNED:
            sums, sums_t = reach + (b * H + h) * T_k + key0, 1
        size = anchor - left
        for _ in tl.static_range(ROUNDS):
            step = (size + PROBES - 1) // PROBES
            probe = left + (tl.arange(0, PROBES) + 1) * step - 1
            inside = (probe >= left) & (probe < left + size) & (probe < keys)
            before = tl.load(sums + probe.to(tl.int64) * sums_t, mask=inside, other=0.0)
            if not PRUNED:
                before = -before
            faded = (here + before).to(tl.float32) < floor
            dead = tl.sum((inside & faded).to(tl.int32), axis=0)
            left += dead * step
            size = tl.minimum(step, size - dead * step)
        target = unit_offset(s, b, row0, h, H, units, UNIT, VARLEN) + u
        tl.store(key_start + target, left)


def split_gates(running: Tensor, keys: int, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The running gates in three float32 numbers per key, each (B, H, T_k).

    Args:
        running: (B, H, T_k) float64 running log gates.
        keys: keys per tile.
        batch: the sequences; tiles begin where a sequence does.

    Returns:
        high + low = lambda_j, and bias = (lambda_c - lambda_j) log2(e), c the last key of j's tile,
        -inf for keys before seq_start.
    """
    B, H, T_k = running.shape
    high, low, bias = (
        torch.empty(B, H, T_k, dtype=torch.float32, device=running.device) for _ in range(3)
    )
    tiles = triton.cdiv(batch.keys, keys)
    with on_device(running):
        _split_gates[(tiles * H * batch.sequences,)](
            running, high, low, bias, batch.seq_start, batch.cu_k, *running.stride(),
            H, T_k, tiles, KEYS=keys, **batch.flags(), enable_fp_fusion=True,
        )  # fmt: skip
    return high, low, bias


def key_starts(
    q: Tensor,
    k: Tensor,
    running: Tensor,
    batch: Batch,
    unit: int,
    softmax_scale: float,
    window_size: int | None,
    log_pruning_tolerance: float | None,
    logit_bound: Tensor | None,
) -> Tensor:
    """The first key that a unit of rows keeps, counted within its sequence.

    Args:
        q: (B, T, H, D). k: (B, T_k, H_kv, D). running: (B, H, T_k) float64.
        batch: the sequences.
        unit: rows per unit, a power of two.
        softmax_scale, window_size: as in forgetting_attention.
        log_pruning_tolerance: as there; None keeps all but what a reset hides.
        logit_bound: (B, H), U; if None, from the norms of q and k.

    Returns:
        (B, H, units) int32, 0 where unused; with cumulative lengths, sequence s begins at entry
        cu_q[s] // unit + s.
    """
    B, T, H, D = q.shape
    T_k, H_kv = k.shape[1:3]
    pruned = log_pruning_tolerance is not None
    bound, reach, hidden = None, None, None
    if pruned and batch.seq_start is not None:
        hidden = torch.arange(T_k, device=q.device) < batch.seq_start[:, None]  # (B, T_k)
    if pruned:
        reach = -running
        if hidden is not None:
            reach.masked_fill_(hidden[:, None], torch.finfo(torch.float64).min)
        reach = reach.logcumsumexp(-1)
    if pruned and logit_bound is not None:
        bound = logit_bound.float().contiguous()
    elif pruned:
        norm = torch.linalg.vector_norm(k, dim=-1, dtype=torch.float32)  # (B, T_k, H_kv)
        if hidden is not None:
            norm.masked_fill_(hidden[:, :, None], 0.0)
        bound = NORM_MARGIN * norm.amax(1).repeat_interleave(H // H_kv, dim=1)
    units = batch.units(T, unit)
    key_start = torch.zeros(B, H, units, dtype=torch.int32, device=q.device)
    probes, rounds = 128, 1
    while probes**rounds < T_k:
        rounds += 1
    tiles = triton.cdiv(batch.rows, unit)
    with on_device(q):
        _key_starts[(tiles * H * batch.sequences,)](
            q, k, running, reach, key_start, bound, batch.seq_start, batch.cu_q, batch.cu_k,
            *q.stride()[:3], *k.stride()[:3], *running.stride(),
            H, H // H_kv, T, T_k, units, tiles, softmax_scale, log_pruning_tolerance or 0.0,
            min(window_size or 0, T_k), D=D, WIDTH=padded(D), UNIT=unit, PRECISION=precision(q),
            PROBES=probes, ROUNDS=rounds,
            WINDOWED=window_size is not None, PRUNED=pruned, BOUNDED=logit_bound is not None,
            **batch.flags(), enable_fp_fusion=True,
        )  # fmt: skip
    return key_start


def tile_share(
    key_start: Tensor, batch: Batch, tile: Tile, unit: int, window_size: int | None
) -> float:
    """The share of the tiles with a visible score that the forward pass computes.

    Args:
        key_start: (B, H, units) of key_starts, without cumulative lengths.
        batch: the sequences.
        tile, unit: sizes, as in forward.
        window_size: as in key_starts.
    """
    rows = torch.arange(0, batch.rows, tile.rows, device=key_start.device)
    position = batch.keys - batch.rows + rows
    end = -(-(position + tile.rows).clamp(max=batch.keys) // tile.keys)  # (tiles)
    used = triton.cdiv(batch.rows, unit)
    missing = len(rows) * tile.rows // unit - used
    starts = F.pad(key_start[..., :used], (0, missing), value=batch.keys)
    starts = starts.unflatten(-1, (len(rows), -1))
    begin = starts.amin(-1) // tile.keys  # (B, H, tiles)
    visible = torch.zeros_like(key_start[..., :1])
    if batch.seq_start is not None:
        visible = batch.seq_start[:, None, None].expand(-1, key_start.shape[1], -1)
    if window_size is not None:
        visible = torch.maximum(visible, position - window_size + 1)
    computed = (end - begin).clamp(min=0).sum()
    wanted = (end - visible // tile.keys).clamp(min=0).expand_as(begin).sum()
    return float(computed / wanted) if wanted else 1.0
