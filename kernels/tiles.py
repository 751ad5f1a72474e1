"""Which rows meet which keys: the plan that every blocked computation follows.

A tile is one call of an engine: a number of chunks of `rows` queries, each against `keys` keys. A
causal tile is the chunk against itself, a past tile is seen whole. With a window, chunks are no
longer than it, and behind the keys that all rows of a chunk see stands an edge tile: row r sees its
keys from r on, which is a causal tile with rows and keys in reverse order. So no tile needs a mask.
Rows are cut where a gate resets (nothing behind is visible) and where the running gate would fall
too far within a chunk for one float32 number per key.

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
    """Query rows [row0, row1) of some batch rows and heads, aligned to the end of [key0, key1).

    A row sees at most `window` keys, its own included; None hides nothing.
    """

    batch: slice
    heads: slice
    row0: int
    row1: int
    key0: int
    key1: int
    window: int | None = None

    @property
    def members(self) -> int:
        return (self.batch.stop - self.batch.start) * (self.heads.stop - self.heads.start)

    @property
    def visible(self) -> int:
        """How many keys a row sees at most."""
        keys = self.key1 - self.key0
        return keys if self.window is None else min(keys, self.window)

    @property
    def scores(self) -> int:
        keys = self.key1 - self.key0
        before = keys - min(self.row1 - self.row0, keys)
        hidden = _triangle(keys - self.visible) - _triangle(before - self.visible)
        return self.members * (_triangle(keys) - _triangle(before) - hidden)

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


def _triangle(n: int) -> int:
    """1 + ... + n; 0 for negative n."""
    return n * (n + 1) // 2 if n > 0 else 0


class Tile(NamedTuple):
    """Chunk c of `chunks` holds rows [row + c step, + rows) and keys [key + c step, + keys)."""

    batch: slice
    heads: slice
    row: int
    position: int  # of the first row, among the keys
    key: int
    rows: int
    keys: int
    chunks: int
    edge: bool = False

    @property
    def causal(self) -> bool:
        return self.key == self.position

    @property
    def half(self) -> bool:
        """Whether an engine computes it as causal."""
        return self.causal or self.edge

    @property
    def step(self) -> int:
        """Rows per chunk: an edge tile is without the last one, which sees none of its keys."""
        return self.rows + 1 if self.edge else self.rows

    @property
    def members(self) -> int:
        return (self.batch.stop - self.batch.start) * (self.heads.stop - self.heads.start)

    @property
    def scores(self) -> int:
        chunk = _triangle(self.rows) if self.half else self.rows * self.keys
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
            for part in _parts(piece):
                tiles.extend(_chunks(part, running, lanes, threshold))
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


def _parts(span: Span) -> Iterator[Span]:
    """First the rows from which the window hides nothing, then those from which it does."""
    if span.window is None:
        yield span
        return
    shift = span.key1 - span.row1
    hiding = min(max(span.key0 + span.window - shift, span.row0), span.row1)
    if hiding > span.row0:
        yield span._replace(row1=hiding, key1=hiding + shift, window=None)
    if hiding < span.row1:
        yield span._replace(row0=hiding, key0=hiding + shift - span.window + 1)


def _chunks(
    span: Span, running: np.ndarray, lanes: Lanes, threshold: Threshold | None
) -> list[Tile]:
    """Tiles of a part, in the chunks that cost least; split where members differ much."""
    length = span.row1 - span.row0
    falling = running[span.batch, span.heads]
    longest = min(n for n in (length, lanes.rows, span.window) if n is not None)
    largest = _chunk_rows(falling[..., span.key1 - length : span.key1], longest)
    if threshold is None and span.window is None:
        return list(_tiles(span, largest, _first(span, largest)))

    floor = None if threshold is None else threshold(span)
    cost, best_rows, best_reach = math.inf, largest, _first(span, largest)
    alone = np.full(falling.shape[:2], np.inf)
    for rows in (largest, *(rows for rows in CHEAP_CHUNKS if rows < largest)):
        reach = _reach(falling, floor, span, _first(span, rows))  # (batch, heads, chunks)
        widest = reach.max((0, 1))
        together = span.members * float(_cost(span, rows, widest))
        together += CALL * lanes.width * _calls(span, rows, widest)
        if together < cost:
            cost, best_rows, best_reach = together, rows, widest
        alone = np.minimum(alone, _cost(span, rows, reach) + CALL * lanes.width * 2)
    if floor is not None and span.members > 1 and cost > 1.05 * alone.sum():
        return [t for h in span.halves() for t in _chunks(h, running, lanes, threshold)]
    return list(_tiles(span, best_rows, best_reach))


def _first(span: Span, rows: int) -> np.ndarray:
    """Where chunks of a span begin, counted from its first key."""
    return np.arange(span.key1 - span.key0 - (span.row1 - span.row0), span.key1 - span.key0, rows)


def _sizes(span: Span, rows: int, chunks: int) -> np.ndarray:
    return np.minimum(rows, span.row1 - span.row0 - rows * np.arange(chunks))


def _seen(span: Span, rows: int, reach: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys that all rows of a chunk see before it, of those in reach; whether some see others."""
    if span.window is None:
        return reach, np.zeros(reach.shape, dtype=bool)
    past = np.minimum(reach, span.window - _sizes(span, rows, reach.shape[-1]))
    return past, reach > past


def _cost(span: Span, rows: int, reach: np.ndarray) -> np.ndarray:
    """What chunks cost in scores: edges cost too, and short causal chunks skip nothing."""
    chunk = _sizes(span, rows, reach.shape[-1])
    past, edge = _seen(span, rows, reach)
    diagonal = np.where(chunk < 768, chunk, chunk / 2 + 240)
    return ((chunk + 64) * (past + (1 + edge) * diagonal + 64)).sum(-1)


def _calls(span: Span, rows: int, reach: np.ndarray) -> int:
    """Engine calls for a span: chunk by chunk for all batch rows, or all chunks per batch row."""
    past, edge = _seen(span, rows, reach)
    together = _calls_per_batch_row(rows, past, edge) * (span.batch.stop - span.batch.start)
    return min(_calls_chunk_by_chunk(past, edge), together)


def _calls_chunk_by_chunk(past: np.ndarray, edge: np.ndarray) -> int:
    return 2 * len(past) + int(edge.sum())


def _calls_per_batch_row(rows: int, past: np.ndarray, edge: np.ndarray) -> int:
    return 1 + -(-int(past.max()) // rows) + int(edge.any())


def _chunk_rows(falling: np.ndarray, whole: int) -> int:
    """Rows per chunk, so that the gate falls by at most LARGEST_FALL within any chunk."""
    length = falling.shape[-1]
    if (falling[..., 0] - falling[..., -1]).max() <= LARGEST_FALL:
        return whole
    for rows in (whole, *(size for size in CHUNKS if size < whole)):
        last = np.minimum(np.arange(rows - 1, length + rows - 1, rows), length - 1)
        if (falling[..., ::rows] - falling[..., last]).max() <= LARGEST_FALL:
            return rows
    raise AssertionError("a chunk of one row falls by nothing")


def _reach(
    falling: np.ndarray, floor: np.ndarray | None, span: Span, first: np.ndarray
) -> np.ndarray:
    """How many keys before each chunk its first row may see, in steps of KEY_STEP."""
    reach = np.minimum(first, span.visible - 1)[None, None]
    if floor is None:
        return reach
    start = key_starts(falling[..., span.key0 : span.key1], first, floor)
    return np.minimum(-((start - first) // KEY_STEP) * KEY_STEP, reach)


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
    """Tiles of a span in chunks of `rows`; the first row of chunk c sees reach[c] keys before."""
    length = span.row1 - span.row0
    row, position = span.row0, span.key1 - length
    batch_rows = span.batch.stop - span.batch.start
    past, edge = _seen(span, rows, reach)
    together = batch_rows * _calls_per_batch_row(rows, past, edge)
    chunks = length // rows
    if chunks < 2 or together > _calls_chunk_by_chunk(past, edge):
        chunks = 0
    else:
        for b in range(span.batch.start, span.batch.stop):
            one = span._replace(batch=slice(b, b + 1))
            yield Tile(one.batch, span.heads, row, position, position, rows, rows, chunks)
            yield from _past(one, rows, past[:chunks])
            yield from _edges(one, rows, edge[:chunks])
    for chunk in range(chunks, len(reach)):
        at = chunk * rows
        size = min(rows, length - at)
        here = Tile(span.batch, span.heads, row + at, position + at, position + at, size, size, 1)
        yield here
        if seen := int(past[chunk]):
            yield here._replace(key=position + at - seen, keys=seen)
        if edge[chunk]:
            yield _edge(span, here)


def _edge(span: Span, causal: Tile) -> Tile:
    """The keys that the window hides from some rows of each chunk of a causal tile."""
    assert span.window is not None
    size = causal.rows - 1
    key = causal.position - span.window + 1
    return causal._replace(key=key, rows=size, keys=size, edge=True)


def _edges(span: Span, rows: int, edge: np.ndarray) -> Iterator[Tile]:
    """Edge tiles of neighbouring chunks share one call."""
    position = span.key1 - (span.row1 - span.row0)
    borders = np.flatnonzero(np.diff(edge, prepend=False, append=False)).tolist()
    for first, last in zip(borders[::2], borders[1::2], strict=True):
        row, at = span.row0 + first * rows, position + first * rows
        here = Tile(span.batch, span.heads, row, at, at, rows, rows, last - first)
        yield _edge(span, here)


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
