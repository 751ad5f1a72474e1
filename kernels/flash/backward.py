"""The backward pass: dq from one program per tile of rows, dk and dv from one per tile of keys.

With p_ij the attention weights and w_i = sum_d out_id d_out_id (less the gradient of lse),

    ds_ij = p_ij (<d_out_i, v_j> - w_i),   dq = scale ds k,   dk = scale ds^T q,   dv = p^T d_out,

and d lambda_t is the row sum of ds less its column sum. On paper the row sum is the gradient of
lse; in numbers it also shows how far the rounding of out to 16 bits has spoilt w. dq is computed
first, and its row sums mend w before dk, dv and the column sums are: otherwise the gradient of a
gate, a sum over all later rows, would collect those errors. No atomics: gradients are the same in
every run.

Legend: B batch, T query rows, T_k keys, H query heads, H_kv key heads, D head size.
Source: Dao, FlashAttention-2, 2023.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fox.kernels.flash.layout import (
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
from fox.kernels.flash.tuning import Plan


@triton.jit(do_not_specialize=SIZES)
def rows_kernel(
    out, d_out, d_lse, lse, high, low, weight, bias, cu_q, cu_k,
    o_b, o_t, o_h, d_b, d_t, d_h, H, T, T_k, tiles,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, VARLEN: tl.constexpr,
):  # fmt: skip
    """w per row, and for dk and dv what the row adds to every score of its tile."""
    pid = tl.program_id(0)
    m = pid % tiles
    h = pid // tiles % H
    s = pid // tiles // H
    b, row0, rows, key0, keys = sequence(s, cu_q, cu_k, T, T_k, VARLEN)
    if m * ROWS < rows:
        row = m * ROWS + tl.arange(0, ROWS)
        inside = row < rows
        first = keys - rows + m * ROWS
        position = keys - rows + row
        out += b * o_b + row0 * o_t + h.to(tl.int64) * o_h
        d_out += b * d_b + row0 * d_t + h.to(tl.int64) * d_h
        o = load_rows(out, m * ROWS, rows, o_t, D, ROWS, WIDTH).to(tl.float32)
        do = load_rows(d_out, m * ROWS, rows, d_t, D, ROWS, WIDTH).to(tl.float32)
        here = (b * H + h) * T + row0 + row
        log_sum = tl.load(lse + here, mask=inside, other=float("-inf"))
        empty = log_sum == float("-inf")
        w = tl.sum(o * do, axis=1)
        if d_lse is not None:
            w -= tl.load(d_lse + here, mask=inside, other=0.0)
        tl.store(weight + here, tl.where(empty, 0.0, w), mask=inside)

        gates = (b * H + h) * T_k + key0
        known = inside & (position >= 0)
        anchored = (first >= 0) & (first < keys)
        fall = tl.load(high + gates + position, mask=known, other=0.0)
        fall -= tl.load(high + gates + first, mask=anchored, other=0.0)
        below = tl.load(low + gates + position, mask=known, other=0.0)
        below -= tl.load(low + gates + first, mask=anchored, other=0.0)
        term = ((fall + below) - log_sum) * LOG2E
        tl.store(bias + here, tl.where(empty, float("-inf"), term), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def dq_kernel(
    q, k, v, d_out, d_lse, lse, weight, dq, row_sum, high, low, bias, key_start, seq_start,
    cu_q, cu_k,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, d_b, d_t, d_h, g_b, g_t, g_h,
    H, GROUP, T, T_k, units, tiles, members, share, scale, window,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    UNIT: tl.constexpr, PRECISION: tl.constexpr,
    VARLEN: tl.constexpr, PADDED: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    m, member = place(tl.program_id(0), tiles, members, share)
    m = tiles - 1 - m
    s = member // H
    h = member % H
    b, row0, rows, key0, keys = sequence(s, cu_q, cu_k, T, T_k, VARLEN)
    if m * ROWS < rows:
        first = keys - rows + m * ROWS
        position = first + tl.arange(0, ROWS)
        columns = tl.arange(0, KEYS)
        gates = (b * H + h) * T_k + key0
        high += gates
        low += gates
        bias += gates
        q += b * q_b + row0 * q_t + h.to(tl.int64) * q_h
        k += b * k_b + key0 * k_t + (h // GROUP).to(tl.int64) * k_h
        v += b * v_b + key0 * v_t + (h // GROUP).to(tl.int64) * v_h
        d_out += b * d_b + row0 * d_t + h.to(tl.int64) * d_h
        query = load_rows(q, m * ROWS, rows, q_t, D, ROWS, WIDTH)
        do = load_rows(d_out, m * ROWS, rows, d_t, D, ROWS, WIDTH)
        row = m * ROWS + tl.arange(0, ROWS)
        here = (b * H + h) * T + row0 + row
        log_sum = tl.load(lse + here, mask=row < rows, other=float("inf")) * LOG2E
        w = tl.load(weight + here, mask=row < rows, other=0.0)

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

        acc = tl.zeros([ROWS, WIDTH], tl.float32)
        sums = tl.zeros([ROWS], tl.float32)
        term = ((row_high - anchor_high) + (row_low - anchor_low)) * LOG2E - log_sum

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
            p = tl.exp2(score + (term + shift)[:, None])
            value = load_rows(v, n * KEYS, keys, v_t, D, KEYS, WIDTH, WHOLE=True)
            dp = tl.dot(do, tl.trans(value), input_precision=PRECISION)
            ds = p * (dp - w[:, None])
            sums += tl.sum(ds, axis=1)
            acc = tl.dot(ds.to(key.dtype), key, acc, input_precision=PRECISION)

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
            score = tl.fma(score, scale, decay * LOG2E) - log_sum[:, None]
            p = tl.exp2(tl.where(visible, score, float("-inf")))
            value = load_rows(v, n * KEYS, keys, v_t, D, KEYS, WIDTH)
            dp = tl.dot(do, tl.trans(value), input_precision=PRECISION)
            ds = p * (dp - w[:, None])
            sums += tl.sum(ds, axis=1)
            acc = tl.dot(ds.to(key.dtype), key, acc, input_precision=PRECISION)

        acc *= scale / LOG2E
        dq += b * g_b + row0 * g_t + h.to(tl.int64) * g_h
        depth = tl.arange(0, WIDTH)
        pointers = dq + row.to(tl.int64)[:, None] * g_t + depth[None, :]
        tl.store(pointers, acc.to(query.dtype), mask=(row < rows)[:, None] & (depth < D)[None, :])
        if d_lse is not None:
            paper = tl.load(d_lse + here, mask=row < rows, other=0.0)
            paper = tl.where(log_sum == float("-inf"), 0.0, paper)
            tl.store(row_sum + gates + position, paper, mask=known)
            sums -= paper
        tl.store(weight + here, w + sums, mask=row < rows)


@triton.jit
def last_unit(key_start, first, count, key, WIDTH: tl.constexpr):
    """The last of the units first .. count that keeps a key; first - 1 if none does."""
    found = first - 1
    for u in range(first, count, WIDTH):
        units = u + tl.arange(0, WIDTH)
        starts = tl.load(key_start + units, mask=units < count, other=2**31 - 1)
        found = tl.maximum(found, tl.max(tl.where(starts <= key, units, -1), axis=0))
    return found


@triton.jit(do_not_specialize=SIZES)
def dkdv_kernel(
    q, k, v, d_out, lse, weight, dk, dv, column_sum, high, low, row_bias, key_start, seq_start,
    cu_q, cu_k,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, d_b, d_t, d_h, g_b, g_t, g_h,
    H, GROUP, T, T_k, units, tiles, members, share, scale, window,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    UNIT: tl.constexpr, PRECISION: tl.constexpr,
    VARLEN: tl.constexpr, PADDED: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    n, member = place(tl.program_id(0), tiles, members, share)  # the first keys are seen by most
    s = member // (H // GROUP)
    g = member % (H // GROUP)
    b, row0, rows, key0, keys = sequence(s, cu_q, cu_k, T, T_k, VARLEN)
    if n * KEYS < keys:
        at = n * KEYS + tl.arange(0, KEYS)
        last = tl.minimum(n * KEYS + KEYS, keys) - 1
        lines = tl.arange(0, ROWS)
        past = keys - rows  # position of row 0
        start = 0
        if PADDED:
            start = tl.load(seq_start + s).to(tl.int32)
        exists = (at < keys) & (at >= start)
        k += b * k_b + key0 * k_t + g.to(tl.int64) * k_h
        v += b * v_b + key0 * v_t + g.to(tl.int64) * v_h
        key = load_rows(k, n * KEYS, keys, k_t, D, KEYS, WIDTH)
        value = load_rows(v, n * KEYS, keys, v_t, D, KEYS, WIDTH)
        dk_acc = tl.zeros([KEYS, WIDTH], tl.float32)
        dv_acc = tl.zeros([KEYS, WIDTH], tl.float32)

        top = tl.maximum(n * KEYS - past, 0) // ROWS
        whole_top = (tl.maximum(last - past, 0) + ROWS - 1) // ROWS
        for i in range(GROUP):
            h = g * GROUP + i
            gates = (b * H + h) * T_k + key0
            key_high = tl.load(high + gates + at, mask=at < keys, other=0.0)
            key_low = tl.load(low + gates + at, mask=at < keys, other=0.0)
            last_high = tl.load(high + gates + last)
            last_low = tl.load(low + gates + last)
            fall = ((last_high - key_high) + (last_low - key_low)) * LOG2E
            fall = tl.where(exists, fall, float("-inf"))
            q_rows = q + b * q_b + row0 * q_t + h.to(tl.int64) * q_h
            d_rows = d_out + b * d_b + row0 * d_t + h.to(tl.int64) * d_h
            row_offset = (b * H + h) * T + row0
            sums = tl.zeros([KEYS], tl.float32)

            offset = unit_offset(s, b, row0, h, H, units, UNIT, VARLEN)
            count = (rows + UNIT - 1) // UNIT
            unit = last_unit(key_start + offset, top * (ROWS // UNIT), count, last, 1024)
            bottom = (unit + ROWS // UNIT) // (ROWS // UNIT)
            whole = tl.minimum(whole_top, bottom)
            whole_end = tl.minimum(rows // ROWS, bottom)
            if WINDOWED:
                whole_end = tl.minimum(whole_end, tl.maximum(n * KEYS + window - past, 0) // ROWS)
            whole_end = tl.maximum(whole_end, whole)

            at_row = whole * ROWS + past
            next_high = tl.load(high + gates + at_row, mask=whole < whole_end, other=0.0)
            next_low = tl.load(low + gates + at_row, mask=whole < whole_end, other=0.0)
            for m in range(whole, whole_end):
                shift = ((next_high - last_high) + (next_low - last_low)) * LOG2E
                at_row = m * ROWS + ROWS + past
                next_high = tl.load(high + gates + at_row, mask=m + 1 < whole_end, other=0.0)
                next_low = tl.load(low + gates + at_row, mask=m + 1 < whole_end, other=0.0)
                query = load_rows(q_rows, m * ROWS, rows, q_t, D, ROWS, WIDTH, WHOLE=True)
                score = tl.dot(key, tl.trans(query), input_precision=PRECISION)  # (KEYS, ROWS)
                row_term = tl.load(row_bias + row_offset + m * ROWS + lines)
                score = tl.fma(score, scale, row_term[None, :])
                p = tl.exp2(score + (fall + shift)[:, None])
                do = load_rows(d_rows, m * ROWS, rows, d_t, D, ROWS, WIDTH, WHOLE=True)
                dv_acc = tl.dot(p.to(do.dtype), do, dv_acc, input_precision=PRECISION)
                dp = tl.dot(value, tl.trans(do), input_precision=PRECISION)
                w = tl.load(weight + row_offset + m * ROWS + lines)
                ds = p * (dp - w[None, :])
                sums += tl.sum(ds, axis=1)
                dk_acc = tl.dot(ds.to(query.dtype), query, dk_acc, input_precision=PRECISION)

            cut = whole - top
            for j in range(cut + bottom - whole_end):
                m = tl.where(j < cut, top + j, whole_end + j - cut)
                row = m * ROWS + lines
                position = past + row
                known = (row < rows) & (position >= 0)
                query = load_rows(q_rows, m * ROWS, rows, q_t, D, ROWS, WIDTH)
                score = tl.dot(key, tl.trans(query), input_precision=PRECISION)
                row_high = tl.load(high + gates + position, mask=known, other=0.0)
                row_low = tl.load(low + gates + position, mask=known, other=0.0)
                decay = row_high[None, :] - key_high[:, None]
                decay += row_low[None, :] - key_low[:, None]
                log_sum = tl.load(lse + row_offset + row, mask=known, other=float("inf")) * LOG2E
                visible = (at[:, None] <= position[None, :]) & exists[:, None]
                if WINDOWED:
                    visible &= at[:, None] > position[None, :] - window
                score = tl.fma(score, scale, decay * LOG2E) - log_sum[None, :]
                p = tl.exp2(tl.where(visible, score, float("-inf")))
                do = load_rows(d_rows, m * ROWS, rows, d_t, D, ROWS, WIDTH)
                dv_acc = tl.dot(p.to(do.dtype), do, dv_acc, input_precision=PRECISION)
                dp = tl.dot(value, tl.trans(do), input_precision=PRECISION)
                w = tl.load(weight + row_offset + row, mask=known, other=0.0)
                ds = p * (dp - w[None, :])
                sums += tl.sum(ds, axis=1)
                dk_acc = tl.dot(ds.to(query.dtype), query, dk_acc, input_precision=PRECISION)
            tl.store(column_sum + gates + at, sums, mask=at < keys)

        depth = tl.arange(0, WIDTH)
        target = b * g_b + key0 * g_t + g.to(tl.int64) * g_h
        target += at.to(tl.int64)[:, None] * g_t + depth[None, :]
        inside = (at < keys)[:, None] & (depth < D)[None, :]
        dk_acc *= scale / LOG2E
        tl.store(dk + target, dk_acc.to(key.dtype), mask=inside)
        tl.store(dv + target, dv_acc.to(key.dtype), mask=inside)


def backward(
    d_out: Tensor,
    d_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    gates: tuple[Tensor, Tensor, Tensor],
    key_start: Tensor,
    batch: Batch,
    plan: Plan,
    softmax_scale: float,
    window_size: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv in the shapes and dtypes of q, k, v, and d lambda (B, H, T_k) float64.

    Args:
        d_out: (B, T, H, D), last stride 1. d_lse: (B, H, T) float32, contiguous, or None.
        q, k, v, out, lse: of the forward pass.
        gates: of split_gates, for tiles of plan.dq.keys.
        key_start: of key_starts, for units of plan.unit rows.
        batch, plan: the sequences, and the sizes of tiles.
        softmax_scale, window_size: as in forgetting_attention.
    """
    _, T, H, D = q.shape
    T_k, H_kv = k.shape[1:3]
    high, low, bias = gates
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    weight, row_bias = torch.empty_like(lse), torch.empty_like(lse)
    column_sum = torch.empty_like(high)
    row_sum = None if d_lse is None else torch.zeros_like(high)
    units, scale, window = (
        key_start.shape[-1],
        softmax_scale * LOG2E.value,
        min(window_size or 0, T_k),
    )
    sharing = heads_sharing_cache(k, H)
    shared = (batch.seq_start, batch.cu_q, batch.cu_k)
    outer = [stride for x in (q, k, v, d_out) for stride in x.stride()[:3]]
    flags = dict(batch.flags(), WINDOWED=window_size is not None, PRECISION=precision(q))
    sizes = {"D": D, "WIDTH": padded(D), "UNIT": plan.unit}

    def grid(longest: int, size: int, heads: int) -> tuple[int, int, tuple[int]]:
        tiles, members = triton.cdiv(longest, size), heads * batch.sequences
        return tiles, members, (tiles * members,)

    with on_device(q):
        tiles, _, programs = grid(batch.rows, plan.dkdv.rows, H)
        rows_kernel[programs](
            out, d_out, d_lse, lse, high, low, weight, row_bias, batch.cu_q, batch.cu_k,
            *out.stride()[:3], *d_out.stride()[:3], H, T, T_k, tiles,
            D=D, WIDTH=padded(D), ROWS=plan.dkdv.rows, VARLEN=batch.cu_q is not None,
            enable_fp_fusion=True,
        )  # fmt: skip
        tile = plan.dq
        tiles, members, programs = grid(batch.rows, tile.rows, H)
        dq_kernel[programs](
            q, k, v, d_out, d_lse, lse, weight, dq, row_sum, high, low, bias, key_start,
            *shared, *outer, *dq.stride()[:3],
            H, H // H_kv, T, T_k, units, tiles, members, sharing, scale, window,
            ROWS=tile.rows, KEYS=tile.keys, **sizes, **flags,
            **launch(tile),
        )  # fmt: skip
        tile = plan.dkdv
        tiles, members, programs = grid(batch.keys, tile.keys, H_kv)
        dkdv_kernel[programs](
            q, k, v, d_out, lse, weight, dk, dv, column_sum, high, low, row_bias, key_start,
            *shared, *outer, *dk.stride()[:3],
            H, H // H_kv, T, T_k, units, tiles, members, max(1, sharing * H_kv // H), scale, window,
            ROWS=tile.rows, KEYS=tile.keys, **sizes, **flags,
            **launch(tile),
        )  # fmt: skip
    d_lambda = -column_sum.double()
    return dq, dk, dv, d_lambda if row_sum is None else d_lambda + row_sum
