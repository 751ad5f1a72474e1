"""What every kernel needs to know first: which sequence, head and tile a program works on.

Legend: B batch, T query rows, T_k keys, H query heads. Within a sequence rows and keys count from
0; row r stands at position keys - rows + r among the keys.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fox.kernels.flash.tuning import Tile

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

# What falls further is behind a reset, or as good as that; see gates.RESET_JUMP.
RESET_FALL = tl.constexpr(-8192.0)

# Arguments that change from call to call. Triton would compile again for each that is 1 or becomes
# a multiple of 16; for T and T_k that pays, as it aligns what is read.
SIZES = ["units", "tiles", "members", "share", "window"]


class Batch(NamedTuple):
    """The sequences of a call: batch rows, or pieces of one row between cumulative lengths.

    Args:
        sequences: how many.
        rows, keys: of the longest; of each, without cumulative lengths.
        seq_start: (B,) integer, keys before it are invisible; None with cumulative lengths.
        cu_q, cu_k: (sequences + 1,) integer, or None.
    """

    sequences: int
    rows: int
    keys: int
    seq_start: Tensor | None
    cu_q: Tensor | None
    cu_k: Tensor | None

    def units(self, T: int, unit: int) -> int:
        """Room per head for boundaries of `unit` rows; no sequence shares one with another.

        Two at least, as torch.export would take a size of 1 for a constant.
        """
        return T // unit + (2 if self.cu_q is None else self.sequences + 1)

    def flags(self) -> dict[str, bool]:
        return {"VARLEN": self.cu_q is not None, "PADDED": self.seq_start is not None}


def packed(x: Tensor | None) -> Tensor | None:
    """Kernels read vectors of integers without a stride."""
    return None if x is None else x.contiguous()


def padded(D: int) -> int:
    """The power of two, 16 at least, that a head size is padded to inside the kernels."""
    return max(16, triton.next_power_of_2(D))


def last_contiguous(x: Tensor) -> Tensor:
    """x itself where a kernel can read it: a unit last stride, and tiles within 32-bit offsets."""
    return x if x.stride(-1) == 1 and 256 * x.stride(1) < 2**31 else x.contiguous()


def precision(x: Tensor) -> str:
    """float32 inputs are never rounded to TF32: tensor cores take them in three TF32 products."""
    return "tf32x3" if x.dtype == torch.float32 and not torch.version.hip else "ieee"


@cache
def _cache_bytes(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).L2_cache_size


def heads_sharing_cache(k: Tensor, heads: int) -> int:
    """How many heads' keys and values fit in half of the L2 cache, a power of two."""
    if not k.is_cuda:
        return 32
    _, T_k, H_kv, D = k.shape
    fit = _cache_bytes(k.device) * heads // (4 * max(1, T_k) * H_kv * D * k.element_size())
    return 1 << max(0, min(fit, 64).bit_length() - 1)


def launch(tile: Tile) -> dict[str, int | bool]:
    """The options of a launch. Said in so many words, as Triton's default for fusion changes."""
    return {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


@triton.jit
def place(pid, tiles, members, share):
    """Tile and member (sequence and head) of a program; tile 0 of the first `share` members first.

    Programs start in the order of pid: the heaviest tiles come first, so that no long one is left
    alone at the end, and only `share` members at a time, so that their keys stay in the L2 cache.
    """
    section = pid // (share * tiles)
    first = section * share
    size = tl.minimum(members - first, share)
    local = pid - first * tiles
    return local // size, first + local % size


@triton.jit
def sequence(s, cu_q, cu_k, T, T_k, VARLEN: tl.constexpr):
    """Batch row, first row, rows, first key, keys of sequence s."""
    if VARLEN:
        row0 = tl.load(cu_q + s).to(tl.int64)
        key0 = tl.load(cu_k + s).to(tl.int64)
        rows = (tl.load(cu_q + s + 1).to(tl.int64) - row0).to(tl.int32)
        keys = (tl.load(cu_k + s + 1).to(tl.int64) - key0).to(tl.int32)
        b = s.to(tl.int64) * 0
    else:
        row0 = s.to(tl.int64) * 0
        key0 = s.to(tl.int64) * 0
        rows = T
        keys = T_k
        b = s.to(tl.int64)
    return b, row0, rows, key0, keys


@triton.jit
def unit_offset(s, b, row0, h, H, units, UNIT: tl.constexpr, VARLEN: tl.constexpr):
    """Where the units of UNIT rows of a sequence and head begin in key_start (B, H, units)."""
    offset = (b * H + h) * units
    if VARLEN:
        offset += row0 // UNIT + s
    return offset


@triton.jit
def load_rows(
    base, first, count, stride,
    D: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr = False,
):  # fmt: skip
    """Rows first .. first + ROWS of a (count, D) matrix, 0 outside: (ROWS, WIDTH).

    WHOLE promises that all these rows exist.
    """
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    wide = tl.full([], 0, tl.int64) + first
    pointers = base + wide * stride + (rows[:, None] * stride + columns[None, :])
    inside = (first + rows >= 0) & (first + rows < count)
    if WHOLE and D == WIDTH:
        return tl.load(pointers)
    if WHOLE:
        return tl.load(pointers, mask=(columns < D)[None, :], other=0.0)
    return tl.load(pointers, mask=inside[:, None] & (columns < D)[None, :], other=0.0)


@triton.jit
def key_tiles(
    key_start, m, rows, keys, window,
    ROWS: tl.constexpr, KEYS: tl.constexpr, UNIT: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    """The tiles of keys that tile m of rows meets: begin .. end, without masks whole .. whole_end.

    The tiles before `whole` are cut by the window, those from `whole_end` on by the diagonal.
    """
    unit = m * (ROWS // UNIT) + tl.arange(0, ROWS // UNIT)
    starts = tl.load(key_start + unit, mask=unit * UNIT < rows, other=2**31 - 1)
    begin = tl.min(starts, axis=0) // KEYS
    first = keys - rows + m * ROWS
    behind = tl.minimum(first + ROWS, keys)
    end = (tl.maximum(behind, 0) + KEYS - 1) // KEYS
    whole_end = tl.maximum(tl.maximum(first + 1, 0) // KEYS, begin)
    whole = begin
    if WINDOWED:
        uncut = (tl.maximum(behind - window, 0) + KEYS - 1) // KEYS
        whole = tl.minimum(tl.maximum(uncut, begin), whole_end)
    return begin, whole, whole_end, end
