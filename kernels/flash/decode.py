"""Decoding on a cache: append in place, then a few query rows against many slots (flash-decoding).

One program takes the query rows of all heads of a group as one tile, so that keys and values are
read once, and one share of the live slots; a second kernel merges the shares. What is live is found
in the kernel, from lengths on the device: the grid is fixed, the cost is not.

Legend: B batch, T query rows, S slots, H query heads, H_kv key heads, D head size. Row t of T
stands at position lengths[b] - T + t; a position is a slot.
Source: Dao et al., Flash-Decoding for long-context inference, 2023.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from fox.kernels.flash.layout import LOG2E, RESET_FALL, launch, on_device, padded
from fox.kernels.flash.tuning import Tile
from fox.kernels.gates import RESET_JUMP

TRITON_DTYPE = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
}

JUMP = tl.constexpr(RESET_JUMP)

# The maximum of no scores. Finite: -inf - (-inf) would be NaN where a row sees nothing.
LOWEST = tl.constexpr(-3.0e38)


@triton.jit
def _append(
    k_cache, v_cache, lambda_cache, k, v, log_f, filled, seq_start,
    kc_b, kc_s, kc_h, kc_d, vc_b, vc_s, vc_h, vc_d, l_b, l_s, l_h,
    k_b, k_t, k_h, k_d, v_b, v_t, v_h, v_d, f_b, f_t, f_h,
    S, T, H, H_kv, gate_blocks, copy_blocks,
    D: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """The first gate_blocks programs of a batch row sum HEADS gates each; the others copy."""
    pid = tl.program_id(0)
    b = (pid // (gate_blocks + copy_blocks)).to(tl.int64)
    block = pid % (gate_blocks + copy_blocks)
    slot = tl.load(filled + b).to(tl.int64)
    # What does not fit is dropped: the host cannot see it, and memory behind is not the cache's.
    fitting = tl.where(slot < 0, 0, tl.minimum(S - slot, T))
    if block < gate_blocks:
        silent = slot * 0
        if seq_start is not None:
            silent = tl.load(seq_start + b).to(tl.int64) - slot
        h = block * HEADS + tl.arange(0, HEADS).to(tl.int64)[None, :]
        _append_gates(
            lambda_cache + b * l_b + slot * l_s + h * l_h, l_s, log_f + b * f_b + h * f_h, f_t,
            h < H, h < tl.where((slot > 0) & (slot <= S), H, 0), silent, fitting, TOKENS,
        )  # fmt: skip
    else:
        row = (block - gate_blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        _copy_rows(
            k_cache + b * kc_b + slot * kc_s, kc_s, kc_h, kc_d, k + b * k_b, k_t, k_h, k_d,
            row, H_kv, fitting, D, WIDTH,
        )  # fmt: skip
        _copy_rows(
            v_cache + b * vc_b + slot * vc_s, vc_s, vc_h, vc_d, v + b * v_b, v_t, v_h, v_d,
            row, H_kv, fitting, D, WIDTH,
        )  # fmt: skip


@triton.jit
def _append_gates(gates, l_s, log_f, f_t, used, continued, silent, fitting, TOKENS: tl.constexpr):
    """Running sums of `fitting` gates per head, those of the first `silent` tokens counted as 0."""
    total = tl.load(gates - l_s, mask=continued, other=0.0)
    for first in range(0, fitting, TOKENS):
        t = first + tl.arange(0, TOKENS).to(tl.int64)[:, None]
        inside = (t < fitting) & used
        step = tl.load(log_f + t * f_t, mask=inside, other=0.0).to(tl.float64)
        step = tl.where(step < JUMP, JUMP, step)  # a maximum would hide NaN
        step = tl.where(t < silent, 0.0, step)
        tl.store(gates + t * l_s, total + tl.cumsum(step, axis=0), mask=inside)
        total += tl.sum(step, axis=0, keep_dims=True)


@triton.jit
def _copy_rows(
    target, target_t, target_h, target_d, source, source_t, source_h, source_d,
    row, H_kv, fitting, D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Rows of (fitting, H_kv, D), counted head by head."""
    t, h = (row // H_kv)[:, None], (row % H_kv)[:, None]
    d = tl.arange(0, WIDTH)[None, :]
    inside = (t < fitting) & (d < D)
    x = tl.load(source + t * source_t + h * source_h + d * source_d, mask=inside, other=0.0)
    x = x.to(target.dtype.element_ty)
    tl.store(target + t * target_t + h * target_h + d * target_d, x, mask=inside)


@triton.jit
def _first_live(
    gates, stride, used, here, floor, left, right, PROBES: tl.constexpr, SLACK: tl.constexpr
):
    """The first slot that a head still sees from slot `right`, or up to SLACK - 1 before it.

    Running gates never rise, so a head's dead slots are a prefix; each round looks at PROBES slots
    of all heads at once, the first of them left: where nothing is dead, one round tells.
    """
    while right - left >= SLACK:
        step = tl.cdiv(right - left, PROBES)
        slot = left + step * tl.arange(0, PROBES)
        inside = slot < right
        there = gates[None, :] + slot.to(tl.int64)[:, None] * stride
        there = tl.load(there, mask=inside[:, None] & used[None, :], other=0.0)
        margin = tl.where(used[None, :], here[None, :] - there - floor[None, :], float("-inf"))
        seen = tl.max(margin, axis=1)
        dead = tl.sum((inside & (seen < 0)).to(tl.int32), axis=0)
        right = tl.minimum(left + dead * step, right)
        left += tl.maximum((dead - 1) * step + 1, 0)
    return left


@triton.jit
def _attend(
    q, k_cache, v_cache, lambda_cache, out, lse, lengths, seq_start, logit_bound,
    q_b, q_t, q_h, q_d, k_b, k_s, k_h, k_d, v_b, v_s, v_h, v_d, l_b, l_s, l_h, u_b, u_h,
    S, T, H_kv, rows, tiles, window, scale, tolerance,
    D: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, PROBES: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of query rows (token by token, the group's heads of each) on one share of slots."""
    pid = tl.program_id(0)
    tile = pid % tiles
    group = pid // tiles % H_kv
    b = (pid // tiles // H_kv).to(tl.int64)
    split = tl.program_id(1)
    # A length beyond the cache cannot be refused here, but nothing behind it is read.
    length = tl.minimum(tl.load(lengths + b), S).to(tl.int32)
    start = 0
    if seq_start is not None:
        start = tl.load(seq_start + b).to(tl.int32)

    # Rows token by token, HEADS of each: gates are then loaded once per head, not once per row.
    TOKENS: tl.constexpr = ROWS // HEADS
    BLOCKS: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    token = tile // BLOCKS * TOKENS
    g = tile % BLOCKS * HEADS + tl.arange(0, HEADS)
    used = g < GROUP
    lambda_cache += b * l_b + group.to(tl.int64) * GROUP * l_h
    gates = lambda_cache + g.to(tl.int64) * l_h

    # Slots [left, end) are those that the tile sees. Its first row that sees any sees furthest.
    before = length - T
    first = tl.maximum(tl.maximum(before + token, start), 0)
    end = before + tl.minimum(token + TOKENS, T)
    left = tl.maximum(start, first - window + 1)
    known = g < tl.where(first < end, GROUP, 0)
    here = tl.load(gates + first.to(tl.int64) * l_s, mask=known, other=0.0)
    floor = tl.full([HEADS], RESET_FALL, tl.float64)
    if logit_bound is not None:
        bound = logit_bound + b * u_b + (group * GROUP + g).to(tl.int64) * u_h
        bound = tl.load(bound, mask=used, other=0.0)
        most = tl.maximum(tl.minimum(end - start, window), 1).to(tl.float32)
        floor = tl.maximum(floor, tolerance - tl.log(most) - 2.0 * bound)
    left = _first_live(gates, l_s, used, here, floor, left, first, PROBES, KEYS)
    count = tl.maximum(tl.cdiv(end - left, KEYS), 0)
    share = count // tl.num_programs(1)
    more = count % tl.num_programs(1)  # splits with a tile on top
    left += (split * share + tl.minimum(split, more)) * KEYS
    right = tl.minimum(left + (share + (split < more).to(tl.int32)) * KEYS, end)

    row = tl.arange(0, ROWS)
    t = token + row // HEADS
    row_g = tile % BLOCKS * HEADS + row % HEADS
    h = (group * GROUP + row_g).to(tl.int64)
    position = before + t
    d = tl.arange(0, WIDTH)
    n = tl.arange(0, KEYS).to(tl.int64)
    inside = (t < T) & (row_g < GROUP)
    q += b * q_b + (t.to(tl.int64) * q_t + h * q_h)[:, None] + (d * q_d)[None, :]
    query = tl.load(q, mask=inside[:, None] & (d < D)[None, :], other=0.0).to(DTYPE)
    here = lambda_cache + row_g.to(tl.int64) * l_h + position.to(tl.int64) * l_s
    here = tl.load(here, mask=inside & (position >= 0), other=0.0)
    gates = gates[:, None] + (n * l_s)[None, :]
    k_cache += b * k_b + group.to(tl.int64) * k_h + (d * k_d)[:, None] + (n * k_s)[None, :]
    v_cache += b * v_b + group.to(tl.int64) * v_h + (n * v_s)[:, None] + (d * v_d)[None, :]

    peak = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    for at in range(left, right, KEYS):
        skip = tl.cast(at, tl.int64)
        slot = at + tl.arange(0, KEYS)
        filled = slot < end
        # Values of unseen slots too must be 0, not what the memory holds: 0 * NaN is NaN.
        key = tl.load(k_cache + skip * k_s, mask=(d < D)[:, None] & filled[None, :], other=0.0)
        value = tl.load(v_cache + skip * v_s, mask=filled[:, None] & (d < D)[None, :], other=0.0)
        there = tl.load(gates + skip * l_s, mask=used[:, None] & filled[None, :], other=0.0)
        there = tl.broadcast_to(there[None, :, :], [TOKENS, HEADS, KEYS])
        decay = (here[:, None] - tl.reshape(there, [ROWS, KEYS])).to(tl.float32)
        visible = (slot[None, :] <= position[:, None]) & (decay >= RESET_FALL)
        visible &= slot[None, :] > position[:, None] - window
        score = tl.dot(query, key.to(DTYPE), input_precision=PRECISION)
        score = tl.where(visible, score * scale + decay * LOG2E, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(score, axis=1))
        weight = tl.exp2(score - new_peak[:, None])
        kept = tl.exp2(peak - new_peak)
        total = total * kept + tl.sum(weight, axis=1)
        acc = acc * kept[:, None]
        acc = tl.dot(weight.to(DTYPE), value.to(DTYPE), acc, input_precision=PRECISION)
        peak = new_peak

    total = tl.where(total == 0.0, 1.0, total)
    acc = acc / total[:, None]
    target = split.to(tl.int64) * rows + (b * T + t) * (H_kv * GROUP) + h
    out += target[:, None] * D + d[None, :]
    tl.store(out, acc.to(out.dtype.element_ty), mask=inside[:, None] & (d < D)[None, :])
    if lse is not None:
        tl.store(lse + target, peak + tl.log2(total), mask=inside)


@triton.jit
def _merge(
    parts, lse, out, rows, splits,
    D: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The parts of one row, weighted by their share of its softmax; lse is to base 2."""
    row = tl.program_id(0).to(tl.int64)
    every = tl.arange(0, SPLITS)
    logs = tl.load(lse + every.to(tl.int64) * rows + row, mask=every < splits, other=float("-inf"))
    peak = tl.max(logs, axis=0)
    whole = peak + tl.log2(tl.sum(tl.exp2(logs - peak), axis=0))
    d = tl.arange(0, WIDTH)
    acc = tl.zeros([WIDTH], tl.float32)
    for first in range(0, splits, CHUNK):
        split = first + tl.arange(0, CHUNK)
        target = split.to(tl.int64) * rows + row
        weight = tl.load(lse + target, mask=split < splits, other=float("-inf"))
        inside = (split < splits)[:, None] & (d < D)[None, :]
        part = tl.load(parts + target[:, None] * D + d[None, :], mask=inside, other=0.0)
        acc += tl.sum(tl.exp2(weight - whole)[:, None] * part, axis=0)
    tl.store(out + row * D + d, acc.to(out.dtype.element_ty), mask=d < D)


def append_to_cache(
    k_cache: Tensor,
    v_cache: Tensor,
    lambda_cache: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    filled: Tensor,
    seq_start: Tensor | None,
) -> None:
    """Write k, v and running gates behind the filled slots, in place; what does not fit is dropped.

    Args:
        k_cache, v_cache: (B, S, H_kv, D), any float dtype. lambda_cache: (B, S, H) float64.
        k, v: (B, T, H_kv, D), rounded to the dtype of the cache.
        log_f: (B, T, H) float32 or float64, as in running_log_gates.
        filled: (B,) integer, slots filled before, on the device.
        seq_start: (B,) integer or None; gates of slots before it count as 0.
    """
    B, S, H_kv, D = k_cache.shape
    T, H = log_f.shape[1:]
    width = padded(D)
    heads, copied_rows = 8, 2048 // width
    gate_blocks, copy_blocks = triton.cdiv(H, heads), triton.cdiv(T * H_kv, copied_rows)
    with on_device(k_cache):
        _append[(B * (gate_blocks + copy_blocks),)](
            k_cache, v_cache, lambda_cache, k, v, log_f,
            filled.contiguous(), None if seq_start is None else seq_start.contiguous(),
            *k_cache.stride(), *v_cache.stride(), *lambda_cache.stride(),
            *k.stride(), *v.stride(), *log_f.stride(),
            S, T, H, H_kv, gate_blocks, copy_blocks,
            D=D, WIDTH=width, TOKENS=16 if T <= 16 else 256, HEADS=heads, ROWS=copied_rows,
            enable_fp_fusion=True,
        )  # fmt: skip


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lambda_cache: Tensor,
    lengths: Tensor,
    softmax_scale: float,
    *,
    seq_start: Tensor | None = None,
    window_size: int | None = None,
    log_pruning_tolerance: float | None = None,
    logit_bound: Tensor | None = None,
    num_splits: int | None = None,
) -> Tensor:
    """Attention of the last T rows of a cache to all it holds: (B, T, H, D) in the dtype of q.

    Dot products are in the common dtype of q and the caches, or else in float32, and sums in
    float32. A row that sees no slot has out 0.

    Args:
        q: (B, T, H, D): row T - 1 of batch row b stands at slot lengths[b] - 1.
        k_cache, v_cache: (B, S, H_kv, D), 16 or 32 bit. lambda_cache: (B, S, H) float64, not
            rising from seq_start to the length.
        lengths: (B,) integer, filled slots, on the device; only slots before it are read.
        softmax_scale: factor on the dot products.
        seq_start: (B,) integer: slots before it are invisible.
        window_size: a row sees at most that many slots, its own included.
        log_pruning_tolerance, logit_bound: as in forgetting_attention, the bound (B, H) float64;
            without a bound nothing is pruned, as finding one would read every key. What a reset
            hides is never read.
        num_splits: shares that the live slots are cut into; from the sizes if None.
    """
    B, T, H, D = q.shape
    S, H_kv = k_cache.shape[1:3]
    group = H // H_kv
    mixed = not q.dtype == k_cache.dtype == v_cache.dtype
    dtype = torch.float32 if mixed else q.dtype
    tile, heads = decode_tile(T, group, D, dtype)
    tiles = triton.cdiv(T, tile.rows // heads) * triton.cdiv(group, heads)
    window = S if window_size is None else min(window_size, S)
    programs, rows = B * H_kv * tiles, B * T * H
    live = min(S, window + T - 1)
    splits = num_splits or _splits(programs, triton.cdiv(live, tile.keys), processors(q.device))
    if log_pruning_tolerance is None:
        logit_bound = None

    out = torch.empty((B, T, H, D), dtype=q.dtype, device=q.device)
    parts, lse = out, None
    if splits > 1:
        parts = torch.empty((splits, B, T, H, D), dtype=torch.float32, device=q.device)
        lse = torch.empty((splits, B, T, H), dtype=torch.float32, device=q.device)
    with on_device(q):
        _attend[(programs, splits)](
            q, k_cache, v_cache, lambda_cache, parts, lse,
            lengths.contiguous(), None if seq_start is None else seq_start.contiguous(),
            logit_bound, *q.stride(), *k_cache.stride(), *v_cache.stride(), *lambda_cache.stride(),
            *((0, 0) if logit_bound is None else logit_bound.stride()),
            S, T, H_kv, rows, tiles, window, softmax_scale * LOG2E.value,
            log_pruning_tolerance or 0.0,
            D=D, WIDTH=padded(D), GROUP=group, HEADS=heads, ROWS=tile.rows, KEYS=tile.keys,
            PROBES=max(16, min(128, 1024 // heads)),
            DTYPE=TRITON_DTYPE[dtype],
            PRECISION="tf32x3" if mixed and not torch.version.hip else "ieee",
            **launch(tile),
        )  # fmt: skip
        if splits > 1:
            _merge[(rows,)](
                parts, lse, out, rows, splits,
                D=D, WIDTH=padded(D), SPLITS=triton.next_power_of_2(splits), CHUNK=16,
                enable_fp_fusion=True,
            )  # fmt: skip
    return out


def decode_tile(T: int, group: int, D: int, dtype: torch.dtype) -> tuple[Tile, int]:
    """Sizes that registers hold, and the heads of a tile; its rows are those heads, token by token.

    They fit in 100 KB of shared memory, 64 KB on AMD, and so on any GPU: at most 16 KB of keys, of
    values and 8 KB of gates, two tiles ahead. Few warps are enough, as the time goes by in loads.
    """
    most = 16 if dtype == torch.float32 else 32
    heads = min(most, triton.next_power_of_2(group))
    # Rows of an odd size are loaded element by element, which takes registers.
    keys = 16 if D % 16 else min(64, 2**14 // (padded(D) * dtype.itemsize), 2**10 // heads)
    rows = max(16, min(most, triton.next_power_of_2(T) * heads))
    amd = torch.version.hip is not None
    warps = 8 if dtype == torch.float32 and not amd else 4
    return Tile(rows, max(16, keys), warps, stages=2 if amd else 3), heads


def _splits(programs: int, key_tiles: int, processors: int) -> int:
    """Two to four programs per processor, each with at least four tiles of keys."""
    return max(1, min(4 * processors // max(1, programs), key_tiles // 4))


@cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors; a few where the interpreter runs the programs one by one."""
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count
