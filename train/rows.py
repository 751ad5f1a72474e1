"""Rows of equal length out of documents, each found again from the seed and its number.

Legend: B rows of a batch, T tokens of a row.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fox.loss import IGNORED
from fox.train.shards import Part

SHARED_ROWS = 10_000  # rows that sources share by their weights
Batch = dict[str, Tensor]
Row = tuple[np.ndarray, np.ndarray]  # token ids (T,), and where a document starts (T,) bool


class Rows(Protocol):
    """Rows that are known by a number; the last one may be shorter than seq_len."""

    seq_len: int

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row:
        """Token ids (T,) and, also (T,), where a document starts."""
        ...


class Packing:
    """Documents in some order, joined and cut into rows.

    Args:
        part: the documents.
        order: (documents,) their order.
        seq_len: T. The last row may be shorter.
    """

    def __init__(self, part: Part, order: np.ndarray, seq_len: int) -> None:
        self.part, self.seq_len = part, seq_len
        self.firsts = part.bounds[order]  # where each document begins in part.tokens
        self.ends = np.cumsum(part.bounds[order + 1] - self.firsts)  # where it ends in the joined

    def __len__(self) -> int:
        return -(-int(self.ends[-1]) // self.seq_len)

    def row(self, index: int) -> Row:
        """Token ids (T,) and, also (T,), where a document starts."""
        begin = index * self.seq_len
        end = min(begin + self.seq_len, int(self.ends[-1]))
        pieces, starts = [], np.zeros(end - begin, dtype=bool)
        document = int(np.searchsorted(self.ends, begin, side="right"))
        at = begin
        while at < end:
            document_end = int(self.ends[document])
            length = int(document_end - (self.ends[document - 1] if document else 0))
            offset = at - (document_end - length)
            starts[at - begin] = offset == 0
            count = min(document_end, end) - at
            first = int(self.firsts[document]) + offset
            pieces.append(self.part.tokens[first : first + count])
            at += count
            document += 1
        return np.concatenate(pieces), starts


class Columns:
    """Slices of documents: the first of every document, then every second one, and so on.

    The order of LongCrawl64's official training, with its input: each slice of T tokens is read
    as the end of text and then its first T - 1 tokens. Officially all T tokens are predicted; by
    shifting inside the row the last one is not, and that is the only difference. What is left of
    a document behind its last whole slice is never read.

    Args:
        part: the documents.
        seq_len: T.
        end_of_text: the id in front of every slice.
    """

    def __init__(self, part: Part, seq_len: int, end_of_text: int) -> None:
        self.part, self.seq_len, self.end_of_text = part, seq_len, end_of_text
        self.slices = np.diff(part.bounds) // seq_len  # of each document
        longer = np.cumsum(np.bincount(self.slices)[::-1])[::-1]  # documents of so many or more
        self.ends = np.cumsum(longer[1:])  # where each column ends
        self.column = -1

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def row(self, index: int) -> Row:
        """Token ids (T,) and, also (T,), True at the first alone."""
        column = int(np.searchsorted(self.ends, index, side="right"))
        if column != self.column:
            self.documents = np.flatnonzero(self.slices > column)
            self.column = column
        document = self.documents[index - (int(self.ends[column - 1]) if column else 0)]
        first = int(self.part.bounds[document]) + column * self.seq_len
        starts = np.zeros(self.seq_len, dtype=bool)
        starts[0] = True
        ids = self.part.tokens[first : first + self.seq_len - 1]
        return np.concatenate([np.array([self.end_of_text], ids.dtype), ids]), starts


class Stream(Protocol):
    """Rows without end, in epochs."""

    rows_per_epoch: int

    def row(self, number: int) -> Row:
        """The row of a number, a function of the seed and the number alone."""
        ...


class Shuffled:
    """Packed rows; every epoch joins the documents in a new order, and draws rows in a new order.

    What the last whole row of an epoch leaves over is not read in that epoch.

    Args:
        part: the documents.
        seq_len: T.
        seed: of the orders.
    """

    def __init__(self, part: Part, seq_len: int, seed: Sequence[int]) -> None:
        self.part, self.seq_len, self.seed = part, seq_len, seed
        self.rows_per_epoch = int(part.bounds[-1]) // seq_len
        self.epoch = -1

    def row(self, number: int) -> Row:
        """Row number % rows_per_epoch of its epoch."""
        epoch, index = divmod(number, self.rows_per_epoch)
        if epoch != self.epoch:
            rng = np.random.default_rng([*self.seed, epoch])
            order = rng.permutation(len(self.part.bounds) - 1)
            self.packing = Packing(self.part, order, self.seq_len)
            # A whole batch from one long document would be a poor sample: draw rows, too.
            self.order = rng.permutation(self.rows_per_epoch)
            self.epoch = epoch
        return self.packing.row(int(self.order[index]))


class InOrder:
    """Rows as they stand, again and again."""

    def __init__(self, rows: Rows) -> None:
        self.rows, self.rows_per_epoch = rows, len(rows)

    def row(self, number: int) -> Row:
        """Row number % rows_per_epoch."""
        return self.rows.row(number % self.rows_per_epoch)


class Mixture:
    """Rows of several streams, which share them by weight.

    Of every SHARED_ROWS rows each stream gives its share, rounded to a whole number, in an order
    drawn from the seed. A stream that is through begins its next epoch, whatever the others do.

    Args:
        streams: where the rows come from.
        weights: of each; their sum does not matter.
        seed: of the order.

    Raises:
        ValueError: a weight gives no row of SHARED_ROWS, or a stream has none.
    """

    def __init__(self, streams: Sequence[Stream], weights: Sequence[float], seed: int) -> None:
        self.streams, self.seed = streams, seed
        positive = np.maximum(weights, 0.0)
        shares = np.cumsum(positive) / max(positive.sum(), np.finfo(float).tiny)
        self.counts = np.diff(np.round(shares * SHARED_ROWS).astype(np.int64), prepend=0)
        if min(self.counts) < 1:
            raise ValueError(
                f"expected weights that give every source at least one of {SHARED_ROWS:,} rows, "
                f"but got {', '.join(f'{weight:g}' for weight in weights)}"
            )
        rows = [stream.rows_per_epoch for stream in streams]
        if min(rows) < 1:
            raise ValueError(
                f"expected at least one whole row in every source, but they have {rows}: lower "
                "data.seq_len, or leave out what is too small"
            )
        self.rows_per_epoch = sum(rows)
        self.block = -1

    def row(self, number: int) -> Row:
        """The next row of the stream whose turn it is."""
        block, place = divmod(number, SHARED_ROWS)
        if block != self.block:
            rng = np.random.default_rng([self.seed, block])
            self.turns = rng.permutation(np.repeat(np.arange(len(self.streams)), self.counts))
            # How many rows the stream of each turn has given before, in this block.
            by_stream = np.argsort(self.turns, kind="stable")
            firsts = np.cumsum(self.counts) - self.counts
            self.before = np.empty(SHARED_ROWS, np.int64)
            self.before[by_stream] = np.arange(SHARED_ROWS) - np.repeat(firsts, self.counts)
            self.block = block
        stream = int(self.turns[place])
        earlier = block * int(self.counts[stream])
        return self.streams[stream].row(earlier + int(self.before[place]))

    def epochs(self, num_rows: int) -> list[float]:
        """How often a run of so many rows reads each stream."""
        shares = self.counts / SHARED_ROWS
        return [
            float(num_rows * share / stream.rows_per_epoch)
            for share, stream in zip(shares, self.streams, strict=True)
        ]


def collate(rows: Rows, chosen: Sequence[int | None]) -> Batch:
    """Rows as tensors, all (B, T): input_ids and labels int64, document_starts bool.

    A label is the token itself (the model shifts), or -100 where nothing is to be predicted: at
    the first token of a document, at padding, and in a row that is None.
    """
    return as_batch([None if i is None else rows.row(i) for i in chosen], rows.seq_len)


def as_batch(rows: Sequence[Row | None], seq_len: int) -> Batch:
    """What collate gives, from the rows themselves."""
    shape = (len(rows), seq_len)
    input_ids = np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    document_starts = np.zeros(shape, dtype=bool)
    for b, row in enumerate(rows):
        if row is None:
            continue
        ids, starts = row
        input_ids[b, : len(ids)] = ids
        document_starts[b, : len(ids)] = starts
        labels[b, : len(ids)] = ids
    labels[document_starts] = IGNORED
    return {
        "input_ids": torch.from_numpy(input_ids),
        "labels": torch.from_numpy(labels),
        "document_starts": torch.from_numpy(document_starts),
    }


class TrainingBatches:
    """Batches without end; batch i is rows i B to (i + 1) B - 1 of the stream.

    So it is a function of the corpus, the seed and i alone, whatever the number of ranks, and
    each row of an epoch is read once before the next epoch begins.

    Args:
        stream: the rows.
        identity: what must be equal for two runs to see the same batches.
        seq_len: T.
        batch_size: B, over all ranks.
        rank, world_size: this process takes rows rank, rank + world_size, ... of each batch.
        consumed: tells how many batches training has used, which is what a checkpoint keeps;
            batches that were drawn ahead do not count.

    Raises:
        ValueError: an epoch does not fill one batch.
    """

    def __init__(
        self,
        stream: Stream,
        identity: dict[str, Any],
        *,
        seq_len: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        consumed: Callable[[], int] = lambda: 0,
    ) -> None:
        if stream.rows_per_epoch < batch_size:
            raise ValueError(
                f"expected a corpus of at least one batch, {batch_size} rows of {seq_len} tokens, "
                f"but it has {stream.rows_per_epoch} such rows: lower data.batch_size or "
                "data.seq_len"
            )
        self.stream, self.identity, self.consumed = stream, identity, consumed
        self.seq_len, self.batch_size = seq_len, batch_size
        self.rank, self.world_size = rank, world_size
        self.first = 0

    def batch(self, index: int) -> Batch:
        """This rank's rows of batch `index`."""
        first = index * self.batch_size
        numbers = range(first + self.rank, first + self.batch_size, self.world_size)
        return as_batch([self.stream.row(number) for number in numbers], self.seq_len)

    def __iter__(self) -> Iterator[Batch]:
        index = self.first
        while True:
            yield self.batch(index)
            index += 1

    def state_dict(self) -> dict[str, Any]:
        """The number of batches that training has used, and the identity."""
        return {"batches": self.consumed()} | self.identity

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on after the batches that were used.

        Raises:
            ValueError: the checkpoint's batches are not those of this corpus and shape.
        """
        for name, value in self.identity.items():
            if state.get(name) != value:
                raise ValueError(
                    f"expected the {name} that the checkpoint was trained with, "
                    f"{state.get(name)}, but got {value}: the batches would not be the ones that "
                    "come next"
                )
        self.first = state["batches"]


class ValidationBatches:
    """Every row once, in an order that never changes; the last batch is filled up.

    The order is shuffled, so that the first few batches are a fair sample of all.

    Args:
        rows: the rows.
        batch_size, rank, world_size: as in TrainingBatches.
    """

    def __init__(self, rows: Rows, *, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.rows, self.batch_size = rows, batch_size
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = np.random.default_rng(0).permutation(len(self.rows)).tolist()
        order += [None] * (len(self) * self.batch_size - len(order))
        for i in range(0, len(order), self.batch_size):
            batch = order[i : i + self.batch_size]
            yield collate(self.rows, batch[self.rank :: self.world_size])
