"""The forward pass: one program per tile of query rows, keys streamed past it.

Tiles of keys entirely in the past of all rows need no mask. In them the row term lambda_i of the
decay is left out, as softmax does not see it, and added to the maximum afterwards. The tiles on
the diagonal, and those that a window cuts, take the decay as a difference of two-float numbers.

Legend: B batch, T query rows, T_k keys, H query heads, H_kv key heads, D head size.
Source: Dao, FlashAttention-2, 2023; Lin et al., Forgetting Transformer, ICLR 2025.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fox.kernels.flash.layout import (
    LN2,
    LOG2E,
    SIZES,
    Batch,
    heads_sharing_cache,
    key_tiles,
    launch,
    load_rows,
    on_device,
    padded,
    place,
    precision,
    sequence,
    unit_offset,
)
from fox.kernels.flash.tuning import Tile


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    q, k, v, out, lse, high, low, bias, key_start, seq_start, cu_q, cu_k,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, o_b, o_t, o_h,
    H, GROUP, T, T_k, units, tiles, members, share, scale, window,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    UNIT: tl.constexpr, PRECISION: tl.constexpr,
    VARLEN: tl.constexpr, PADDED: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    m, member = place(tl.program_id(0), tiles, members, share)
    m = tiles - 1 - m  # the last rows see most keys
    s = member // H
    h = member % H
    b, row0, rows, key0, keys = sequence(s, cu_q, cu_k, T, T_k, VARLEN)
    if m * ROWS < rows:
        first = keys - rows + m * ROWS  # position of the first row
        position = first + tl.arange(0, ROWS)
        columns = tl.arange(0, KEYS)
        gates = (b * H + h) * T_k + key0
        high += gates
        low += gates
        bias += gates
        q += b * q_b + row0 * q_t + h.to(tl.int64) * q_h
        k += b * k_b + key0 * k_t + (h // GROUP).to(tl.int64) * k_h
        v += b * v_b + key0 * v_t + (h // GROUP).to(tl.int64) * v_h
        query = load_rows(q, m * ROWS, rows, q_t, D, ROWS, WIDTH)

        known = (position >= 0) & (position < keys)
        row_high = tl.load(high + position, mask=known, other=0.0)
        row_low = tl.load(low + position, mask=known, other=0.0)
        anchored = (first >= 0) & (first < keys)
        anchor_high = tl.load(high + first, mask=anchored, other=0.0)
        anchor_low = tl.load(low + first, mask=anchored, other=0.0)

        offset = unit_offset(s, b, row0, h, H, units, UNIT, VARLEN)
        begin, whole, whole_end, end = key_tiles(
            key_start + offset, m, rows, keys, window, ROWS, KEYS, UNIT, WINDOWED
        )

        peak = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, WIDTH], tl.float32)

        # The number per tile is loaded one tile ahead: it is needed before the keys arrive.
        last = whole * KEYS + KEYS - 1
        next_high = tl.load(high + last, mask=whole < whole_end, other=0.0)
        next_low = tl.load(low + last, mask=whole < whole_end, other=0.0)
        for n in range(whole, whole_end):
            shift = ((anchor_high - next_high) + (anchor_low - next_low)) * LOG2E
            last = n * KEYS + 2 * KEYS - 1
            next_high = tl.load(high + last, mask=n + 1 < whole_end, other=0.0)
            next_low = tl.load(low + last, mask=n + 1 < whole_end, other=0.0)
            key = load_rows(k, n * KEYS, keys, k_t, D, KEYS, WIDTH, WHOLE=True)
            score = tl.dot(query, tl.trans(key), input_precision=PRECISION)
            score = tl.fma(score, scale, tl.load(bias + n * KEYS + columns)[None, :])
            new_peak = tl.maximum(peak, tl.max(score, axis=1) + shift)
            weight = tl.exp2(score - (new_peak - shift)[:, None])
            kept = tl.exp2(peak - new_peak)
            total = total * kept + tl.sum(weight, axis=1)
            acc = acc * kept[:, None]
            value = load_rows(v, n * KEYS, keys, v_t, D, KEYS, WIDTH, WHOLE=True)
            acc = tl.dot(weight.to(value.dtype), value, acc, input_precision=PRECISION)
            peak = new_peak

        peak += ((row_high - anchor_high) + (row_low - anchor_low)) * LOG2E
        start = 0
        if PADDED:
            start = tl.load(seq_start + s).to(tl.int32)
        cut = whole - begin
        for i in range(cut + end - whole_end):
            n = tl.where(i < cut, begin + i, whole_end + i - cut)
            at = n * KEYS + columns
            key = load_rows(k, n * KEYS, keys, k_t, D, KEYS, WIDTH)
            score = tl.dot(query, tl.trans(key), input_precision=PRECISION)
            column_high = tl.load(high + at, mask=at < keys, other=0.0)
            column_low = tl.load(low + at, mask=at < keys, other=0.0)
            decay = row_high[:, None] - column_high[None, :]
            decay += row_low[:, None] - column_low[None, :]
            visible = (at[None, :] <= position[:, None]) & (at >= start)[None, :]
            if WINDOWED:
                visible &= at[None, :] > position[:, None] - window
            score = tl.where(visible, tl.fma(score, scale, decay * LOG2E), float("-inf"))
            new_peak = tl.maximum(peak, tl.max(score, axis=1))
            finite = tl.where(new_peak == float("-inf"), 0.0, new_peak)
            weight = tl.exp2(score - finite[:, None])
            kept = tl.exp2(peak - finite)
            total = total * kept + tl.sum(weight, axis=1)
            acc = acc * kept[:, None]
            value = load_rows(v, n * KEYS, keys, v_t, D, KEYS, WIDTH)
            acc = tl.dot(weight.to(value.dtype), value, acc, input_precision=PRECISION)
            peak = new_peak

        empty = total == 0.0
        acc = acc / tl.where(empty, 1.0, total)[:, None]
        row = m * ROWS + tl.arange(0, ROWS)
        out += b * o_b + row0 * o_t + h.to(tl.int64) * o_h
        depth = tl.arange(0, WIDTH)
        pointers = out + row.to(tl.int64)[:, None] * o_t + depth[None, :]
        tl.store(pointers, acc.to(query.dtype), mask=(row < rows)[:, None] & (depth < D)[None, :])
        log_sum = (peak + tl.log2(tl.where(empty, 1.0, total))) * LN2
        lse += (b * H + h) * T + row0
        tl.store(lse + row, tl.where(empty, float("-inf"), log_sum), mask=row < rows)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: tuple[Tensor, Tensor, Tensor],
    key_start: Tensor,
    batch: Batch,
    tile: Tile,
    unit: int,
    softmax_scale: float,
    window_size: int | None,
) -> tuple[Tensor, Tensor]:
    """out (B, T, H, D) in the dtype of q and lse (B, H, T) float32.

    Args:
        q: (B, T, H, D). k, v: (B, T_k, H_kv, D), last stride 1.
        gates: of split_gates, for tiles of tile.keys.
        key_start: of key_starts, for units of that many rows.
        batch: the sequences.
        tile, unit: sizes; see tuning.py.
        softmax_scale, window_size: as in forgetting_attention.
    """
    B, T, H, D = q.shape
    T_k, H_kv = k.shape[1:3]
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty(B, H, T, dtype=torch.float32, device=q.device)
    tiles = triton.cdiv(batch.rows, tile.rows)
    members = H * batch.sequences
    with on_device(q):
        forward_kernel[(tiles * members,)](
            q, k, v, out, lse, *gates, key_start, batch.seq_start, batch.cu_q, batch.cu_k,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
            H, H // H_kv, T, T_k, key_start.shape[-1], tiles, members, heads_sharing_cache(k, H),
            softmax_scale * LOG2E.value, min(window_size or 0, T_k),
            D=D, WIDTH=padded(D), ROWS=tile.rows, KEYS=tile.keys, UNIT=unit,
            PRECISION=precision(q), WINDOWED=window_size is not None,
            **batch.flags(), **launch(tile),
        )  # fmt: skip
    return out, lse
