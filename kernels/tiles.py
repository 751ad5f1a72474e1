"""Which rows meet which keys: the plan that every blocked computation follows.

A tile is one call of an engine: a number of chunks of `rows` queries, each against `keys` keys. A
causal tile is the chunk against itself; every other tile lies entirely in the past of its rows, so
no tile needs a mask. Rows are cut where a gate resets (nothing behind is visible) and where the
running gate would fall too far within a chunk for one float32 number per key.

Legend: B batch, H query heads, T_k keys; a position is an index among the keys.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from fox.kernels.gates import RESET_JUMP

# How far the gate may fall within a chunk: the bias per key is then at most 32, which float32
# rounds by 1e-6, and the weights of its far corner stay clear of denormal numbers.
LARGEST_FALL = 64.0

# One step this steep gets a chunk border; a step of half the reset jump or more is a reset.
STEEP_STEP = -128.0
RESET_STEP = RESET_JUMP / 2

CHUNKS = (2048, 1536, 1024, 768, 512, 384, 256, 192, 128, 96, 64, 48, 32, 16, 8, 4, 2, 1)
CHEAP_CHUNKS = (768, 512, 256, 128)
KEY_STEP = 16

# What one more call costs, in scores that could have been computed instead.
CALL = 12000.0


class Span(NamedTuple):
    """Query rows [row0, row1) of some batch rows and heads, aligned to the end of [key0, key1)."""

    batch: slice
    heads: slice
    row0: int
    row1: int
    key0: int
    key1: int

    @property
    def members(self) -> int:
        return (self.batch.stop - self.batch.start) * (self.heads.stop - self.heads.start)

    @property
    def scores(self) -> int:
        rows = min(self.row1 - self.row0, self.key1 - self.key0)
        return self.members * (rows * (self.key1 - self.key0) - rows * (rows - 1) // 2)

    def halves(self) -> tuple["Span", "Span"]:
        first, last = self.batch.start, self.batch.stop
        if last - first > 1:
            middle = (first + last) // 2
            return (
                self._replace(batch=slice(first, middle)),
                self._replace(batch=slice(middle, last)),
            )
        first, last = self.heads.start, self.heads.stop
        middle = (first + last) // 2
        return (
            self._replace(heads=slice(first, middle)),
            self._replace(heads=slice(middle, last)),
        )


class Tile(NamedTuple):
    """Chunk c of `chunks` holds rows [row + c rows, + rows) and keys [key + c rows, + keys)."""

    batch: slice
    heads: slice
    row: int
    position: int  # of the first row, among the keys
    key: int
    rows: int
    keys: int
    chunks: int

    @property
    def causal(self) -> bool:
        return self.key == self.position

    @property
    def members(self) -> int:
        return (self.batch.stop - self.batch.start) * (self.heads.stop - self.heads.start)

    @property
    def scores(self) -> int:
        chunk = self.rows * (self.rows + 1) // 2 if self.causal else self.rows * self.keys
        return self.members * self.chunks * chunk


class Lanes(NamedTuple):
    """An engine's rows per chunk at most, and what it computes at once: a call idles them all."""

    rows: int | None
    width: int


Threshold = Callable[[Span], np.ndarray]


def plan(
    running: np.ndarray, spans: list[Span], lanes: Lanes, threshold: Threshold | None = None
) -> list[Tile]:
    """The tiles that compute the given spans; the causal tile of a row comes before its others.

    Args:
        running: (B, H, T_k) float64 running log gates.
        spans: disjoint in their rows; rows of one span see keys of that span alone.
        lanes: what suits the engine.
        threshold: gives for a span the decay, per (batch row, head), below which keys are dropped;
            None keeps every key.
    """
    steep = None
    if running.size and (running[..., 0] - running[..., -1]).max() >= -STEEP_STEP:
        steps = np.diff(running, axis=-1)
        if steps.min() <= STEEP_STEP:
            steep = (steps <= STEEP_STEP).astype(np.int8) + (steps <= RESET_STEP)
    tiles: list[Tile] = []
    for span in spans:
        for piece in _pieces(span, steep):
            tiles.extend(_chunks(piece, running, lanes, threshold))
    return tiles


def _pieces(span: Span, steep: np.ndarray | None) -> Iterator[Span]:
    """Cut a span so that no piece has a reset or a steep step between two of its rows."""
    blind = max(span.row1 - span.row0 - (span.key1 - span.key0), 0)
    span = span._replace(row0=span.row0 + blind)
    if span.row0 == span.row1 or not span.members:
        return
    if steep is None:
        yield span
        return
    kind = steep[span.batch, span.heads, span.key0 : span.key1 - 1]
    if (kind != kind[:1, :1]).any():
        for half in span.halves():
            yield from _pieces(half, steep)
        return
    shift = span.key1 - span.row1
    row0, key0 = span.row0, span.key0
    for at in np.flatnonzero(kind[0, 0]):
        position = span.key0 + int(at) + 1
        if position - shift > row0:
            yield span._replace(row0=row0, row1=position - shift, key0=key0, key1=position)
            row0 = position - shift
        if kind[0, 0, at] == 2:
            key0 = position
    yield span._replace(row0=row0, key0=key0)


def _chunks(
    span: Span, running: np.ndarray, lanes: Lanes, threshold: Threshold | None
) -> list[Tile]:
    """Tiles of a piece, in the chunks that cost least; split where members differ much."""
    length = span.row1 - span.row0
    falling = running[span.batch, span.heads]
    largest = _chunk_rows(falling[..., span.key1 - length : span.key1], lanes.rows)
    first = np.arange(span.key1 - length, span.key1, largest) - span.key0
    if threshold is None:
        return list(_tiles(span, largest, first))

    floor = threshold(span)
    cost, best_rows, best_reach = math.inf, largest, first
    alone = np.full(falling.shape[:2], np.inf)
    for rows in (largest, *(rows for rows in CHEAP_CHUNKS if rows < largest)):
        first = np.arange(span.key1 - length, span.key1, rows) - span.key0
        chunk = np.minimum(rows, length - rows * np.arange(len(first)))
        reach = _reach(falling, floor, span, first)  # (batch, heads, chunks)
        widest = reach.max((0, 1))
        together = span.members * float(_cost(chunk, widest))
        together += CALL * lanes.width * _calls(span, rows, widest)
        if together < cost:
            cost, best_rows, best_reach = together, rows, widest
        alone = np.minimum(alone, _cost(chunk, reach) + CALL * lanes.width * 2)
    if span.members > 1 and cost > 1.05 * alone.sum():
        return [t for h in span.halves() for t in _chunks(h, running, lanes, threshold)]
    return list(_tiles(span, best_rows, best_reach))


def _cost(chunk: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """What chunks cost in scores: edges cost too, and short causal chunks skip nothing."""
    diagonal = np.where(chunk < 768, chunk, chunk / 2 + 240)
    return ((chunk + 64) * (reach + diagonal + 64)).sum(-1)


def _calls(span: Span, rows: int, reach: np.ndarray) -> int:
    """Engine calls for a span: chunk by chunk for all batch rows, or all chunks per batch row."""
    return min(
        2 * len(reach), _calls_per_batch_row(rows, reach) * (span.batch.stop - span.batch.start)
    )


def _calls_per_batch_row(rows: int, reach: np.ndarray) -> int:
    return 1 + -(-int(reach.max()) // rows)


def _chunk_rows(falling: np.ndarray, largest: int | None) -> int:
    """Rows per chunk, so that the gate falls by at most LARGEST_FALL within any chunk."""
    length = falling.shape[-1]
    whole = length if largest is None else min(length, largest)
    if (falling[..., 0] - falling[..., -1]).max() <= LARGEST_FALL:
        return whole
    for rows in (whole, *(size for size in CHUNKS if size < whole)):
        last = np.minimum(np.arange(rows - 1, length + rows - 1, rows), length - 1)
        if (falling[..., ::rows] - falling[..., last]).max() <= LARGEST_FALL:
            return rows
    raise AssertionError("a chunk of one row falls by nothing")


def _reach(falling: np.ndarray, floor: np.ndarray, span: Span, first: np.ndarray) -> np.ndarray:
    """How many keys before each chunk are above the floor, in steps of KEY_STEP."""
    start = key_starts(falling[..., span.key0 : span.key1], first, floor)
    return np.minimum(-((start - first) // KEY_STEP) * KEY_STEP, first)


def key_starts(running: np.ndarray, first: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """The first key j with lambda_i - lambda_j >= floor, for rows i at positions `first`.

    Args:
        running: (..., T_k) float64, non-increasing.
        first: (chunks,) positions of the first row of each chunk.
        floor: (...), at most 0; a decay below it is dropped.

    Returns:
        (..., chunks) int64, at most `first`.
    """
    wanted = torch.from_numpy(np.ascontiguousarray(floor[..., None] - running[..., first]))
    return np.minimum(
        torch.searchsorted(torch.from_numpy(np.negative(running, order="C")), wanted).numpy(), first
    )


def _tiles(span: Span, rows: int, reach: np.ndarray) -> Iterator[Tile]:
    """Tiles of a span in chunks of `rows`, chunk c seeing reach[c] keys before it."""
    length = span.row1 - span.row0
    row, position = span.row0, span.key1 - length
    batch_rows = span.batch.stop - span.batch.start
    chunks = length // rows
    if chunks < 2 or batch_rows * _calls_per_batch_row(rows, reach) > 2 * len(reach):
        chunks = 0
    else:
        for b in range(span.batch.start, span.batch.stop):
            one = span._replace(batch=slice(b, b + 1))
            yield Tile(one.batch, span.heads, row, position, position, rows, rows, chunks)
            yield from _past(one, rows, reach[:chunks])
    for chunk in range(chunks, len(reach)):
        at = chunk * rows
        size = min(rows, length - at)
        here = Tile(span.batch, span.heads, row + at, position + at, position + at, size, size, 1)
        yield here
        if seen := int(reach[chunk]):
            yield here._replace(key=position + at - seen, keys=seen)


def _past(span: Span, rows: int, reach: np.ndarray) -> Iterator[Tile]:
    """Tiles at a fixed distance behind their chunks, so that many chunks share one call."""
    position = span.key1 - (span.row1 - span.row0)
    for behind in range(0, int(reach.max()), rows):
        chunk = 0
        while chunk < len(reach):
            if reach[chunk] <= behind:
                chunk += 1
                continue
            first = chunk
            room = position + first * rows - behind - span.key0
            keys = min(int(reach[first]) - behind, rows)
            while chunk < len(reach) and reach[chunk] > behind:
                wanted = max(keys, min(int(reach[chunk]) - behind, rows))
                if wanted > room:
                    break
                keys = wanted
                chunk += 1
            start = position + first * rows
            yield Tile(
                span.batch, span.heads, span.row0 + first * rows, start,
                start - behind - keys, rows, keys, chunk - first,
            )  # fmt: skip


def references(running: np.ndarray, tiles: list[Tile]) -> np.ndarray:
    """For each position the middle of the running gates of its chunk, (B, H, T_k) float64."""
    reference = running.copy()
    for tile in tiles:
        if tile.causal:
            part = reference[
                tile.batch, tile.heads, tile.position : tile.position + tile.chunks * tile.rows
            ]
            chunks = part.reshape(*part.shape[:2], tile.chunks, tile.rows)
            chunks[...] = (chunks[..., :1] + chunks[..., -1:]) / 2
    return reference
