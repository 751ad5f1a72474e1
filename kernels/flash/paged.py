"""Decoding on pages: one query row per batch row against keys that lie wherever there was room.

Pages are read in the order of their owners. A program takes as many of them as any other, whoever
they belong to, so that heads that forget late and heads that forget soon load the GPU alike; it
leaves one part per owner that it meets, and a second kernel merges the parts of each query head.

Legend: B batch, H query heads, H_kv key heads, D head size, P pages, S slots of a page, G query
heads of a key head. An owner is a batch row and a key head, b * H_kv + head. Owner o has the
neighbours borders[o] .. borders[o + 1] in order, and of program p the part p + o: both numbers
only rise along the order, one of them with every part, so the parts of an owner lie side by side.
Source: Dao et al., Flash-Decoding for long-context inference, 2023; equal shares of unequal work as
in Osama et al., Stream-K, PPoPP 2023.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fox.kernels.checks import require_flash
from fox.kernels.flash.decode import LOWEST, TRITON_DTYPE, decode_tile, processors
from fox.kernels.flash.layout import LOG2E, launch, on_device, padded
from fox.kernels.paged import sort_pages


@triton.jit(do_not_specialize=["pages", "share"])
def _attend(
    q, k_pages, v_pages, bias, owner, order, borders, parts, lse,
    q_b, q_h, q_d, k_p, k_s, k_d, v_p, v_s, v_d, bias_p, bias_g, bias_s,
    pages, share, H_kv, scale,
    D: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr, SLOTS: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """ROWS query heads of each owner met on `share` neighbours in the order of owners."""
    TILES: tl.constexpr = SLOTS // KEYS
    program = tl.program_id(0)
    g = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, WIDTH)
    n = tl.arange(0, KEYS).to(tl.int64)
    used, real = g < GROUP, d < D
    k_pages += (d * k_d)[:, None] + (n * k_s)[None, :]
    v_pages += (n * v_s)[:, None] + (d * v_d)[None, :]
    bias += (g * bias_g)[:, None] + (n * bias_s)[None, :]

    at = program * share
    end = tl.minimum(at + share, pages)
    while at < end:
        whose = tl.load(owner + tl.load(order + at)).to(tl.int64)
        stop = tl.minimum(tl.load(borders + whose + 1), end).to(tl.int32)
        rows = q + whose // H_kv * q_b + (whose % H_kv * GROUP + g)[:, None] * q_h
        query = tl.load(rows + (d * q_d)[None, :], mask=used[:, None] & real[None, :], other=0.0)
        query = query.to(DTYPE)

        peak = tl.full([ROWS], LOWEST, tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, WIDTH], tl.float32)
        for tile in range(at * TILES, stop * TILES):
            page = tl.load(order + tile // TILES).to(tl.int64)
            slot = tile % TILES * KEYS
            # Loaded without a look at the bias, so that nothing waits: what is hidden goes later.
            key = tl.load(k_pages + page * k_p + slot * k_s, mask=real[:, None], other=0.0)
            value = tl.load(v_pages + page * v_p + slot * v_s, mask=real[None, :], other=0.0)
            fall = bias + page * bias_p + slot * bias_s
            fall = tl.load(fall, mask=used[:, None], other=float("-inf"))
            visible = fall > float("-inf")
            score = tl.dot(query, key.to(DTYPE), input_precision=PRECISION)
            score = tl.where(visible, score * scale + fall * LOG2E, float("-inf"))
            new_peak = tl.maximum(peak, tl.max(score, axis=1))
            weight = tl.exp2(score - new_peak[:, None])
            kept = tl.exp2(peak - new_peak)
            total = total * kept + tl.sum(weight, axis=1)
            # A weight of 0 does not hide what an empty slot may hold: 0 * NaN is NaN.
            seen = tl.max(visible.to(tl.int32), axis=0) > 0
            value = tl.where(seen[:, None], value, 0.0)
            acc = acc * kept[:, None]
            acc = tl.dot(weight.to(DTYPE), value.to(DTYPE), acc, input_precision=PRECISION)
            peak = new_peak

        total = tl.where(total == 0.0, 1.0, total)
        part = (program + whose) * GROUP + g
        target = parts + part[:, None] * D + d[None, :]
        tl.store(target, acc / total[:, None], mask=used[:, None] & real[None, :])
        tl.store(lse + part, peak + tl.log2(total), mask=used)
        at = stop


@triton.jit(do_not_specialize=["share"])
def _merge(
    parts, lse, borders, out, share,
    D: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """WIDTH columns of one query head: its parts, weighted by their share; lse is to base 2.

    One head may have the parts of nearly all programs: many at a time, of few columns each.
    """
    row = tl.program_id(0).to(tl.int64)
    whose, g = row // GROUP, row % GROUP
    d = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    begin, end = tl.load(borders + whose), tl.load(borders + whose + 1)
    first = begin // share
    count = tl.where(begin < end, (end - 1) // share - first + 1, 0).to(tl.int32)
    peak = tl.full([], LOWEST, tl.float32)
    total = tl.full([], 0.0, tl.float32)
    acc = tl.zeros([WIDTH], tl.float32)
    for at in range(0, count, PARTS):
        n = at + tl.arange(0, PARTS)
        part = (first + whose + n) * GROUP + g
        inside = (n < count)[:, None] & (d < D)[None, :]
        logs = tl.load(lse + part, mask=n < count, other=float("-inf"))
        rows = tl.load(parts + part[:, None] * D + d[None, :], mask=inside, other=0.0)
        new_peak = tl.maximum(peak, tl.max(logs, axis=0))
        weight = tl.exp2(logs - new_peak)
        kept = tl.exp2(peak - new_peak)
        total = total * kept + tl.sum(weight, axis=0)
        acc = acc * kept + tl.sum(weight[:, None] * rows, axis=0)
        peak = new_peak
    acc = acc / tl.where(total == 0.0, 1.0, total)
    tl.store(out + row * D + d, acc.to(out.dtype.element_ty), mask=d < D)


@torch.library.custom_op("fox::flash_paged", mutates_args=())
def flash_paged(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    bias: Tensor,
    owner: Tensor,
    softmax_scale: float,
    order: Tensor | None = None,
    borders: Tensor | None = None,
) -> Tensor:
    """Attention of one row per batch row to the pages of its key heads: (B, H, D) like q.

    out[b, h] = sum_s softmax_s(softmax_scale <q[b, h], k_s> + bias_s) v_s over the slots s of all
    pages of owner b * H_kv + h // G; 0 where none is visible. Sums are in float32, in an order
    that depends on nothing but the arguments and the GPU.

    Args:
        q: (B, H, D), 16 or 32 bit.
        k_pages, v_pages: (P, S, D), 16 or 32 bit. Dot products are in the common dtype of the
            three, or else in float32.
        bias: (P, G, S) float32, what is added to each score; -inf hides a slot from a query head,
            and a slot that is hidden from all of them may hold anything.
        owner: (P,) integer, b * H_kv + key head, where H_kv = H // G.
        softmax_scale: factor on the dot products.
        order, borders: what sort_pages gives for owner; sorted here if None.
    """
    require_flash(q)
    return attend_pages(q, k_pages, v_pages, bias, owner, softmax_scale, order, borders)


@flash_paged.register_fake
def _(q: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


def attend_pages(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    bias: Tensor,
    owner: Tensor,
    softmax_scale: float,
    order: Tensor | None = None,
    borders: Tensor | None = None,
) -> Tensor:
    """flash_paged, launched on whatever q lies on."""
    B, H, D = q.shape
    P, group, slots = bias.shape
    if not P:
        return torch.zeros((B, H, D), dtype=q.dtype, device=q.device)
    owner, owners = owner.contiguous(), B * H // group
    if order is None or borders is None:
        order, borders = sort_pages(owner, owners)
    mixed = not q.dtype == k_pages.dtype == v_pages.dtype
    dtype = torch.float32 if mixed else q.dtype
    tile = decode_tile(1, group, D, dtype)[0]
    share = _share(P, processors(q.device))
    programs = triton.cdiv(P, share)

    out = torch.empty((B, H, D), dtype=q.dtype, device=q.device)
    parts = torch.empty((programs + owners, group, D), dtype=torch.float32, device=q.device)
    lse = torch.empty((programs + owners, group), dtype=torch.float32, device=q.device)
    with on_device(q):
        _attend[(programs, triton.cdiv(group, tile.rows))](
            q, k_pages, v_pages, bias, owner, order, borders, parts, lse,
            *q.stride(), *k_pages.stride(), *v_pages.stride(), *bias.stride(),
            P, share, H // group, softmax_scale * LOG2E.value,
            D=D, WIDTH=padded(D), GROUP=group, SLOTS=slots, ROWS=tile.rows, KEYS=tile.keys,
            DTYPE=TRITON_DTYPE[dtype],
            PRECISION="tf32x3" if mixed and not torch.version.hip else "ieee",
            **launch(tile),
        )  # fmt: skip
        _merge[(B * H, triton.cdiv(D, 32))](
            parts, lse, borders, out, share,
            D=D, WIDTH=32, GROUP=group, PARTS=128, enable_fp_fusion=True,
        )  # fmt: skip
    return out


def _share(pages: int, processors: int) -> int:
    """Pages per program, so that there are two to four programs per processor if pages allow."""
    return triton.cdiv(pages, 4 * processors)
