"""Rows of equal length out of documents: packed, shuffled and found again from (seed, number).

Legend: B rows of a batch, T tokens of a row.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fox.train.shards import Part

IGNORED = -100  # a label that is not counted
Batch = dict[str, Tensor]


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

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
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


def collate(packing: Packing, rows: list[int | None]) -> Batch:
    """Rows as tensors, all (B, T): input_ids and labels int64, document_starts bool.

    A label is the token itself (the model shifts), or -100 where nothing is to be predicted: at
    the first token of a document, at padding, and in a row that is None.
    """
    shape = (len(rows), packing.seq_len)
    input_ids = np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    document_starts = np.zeros(shape, dtype=bool)
    for b, index in enumerate(rows):
        if index is None:
            continue
        ids, starts = packing.row(index)
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
    """Batches without end; batch i is a function of the corpus, the seed and i alone.

    Every epoch packs the documents in a new order and draws the rows in a new order; rows that do
    not fill a batch are left out of that epoch.

    Args:
        part: the documents.
        identity: what must be equal for two runs to see the same batches.
        seq_len: T.
        batch_size: rows of a batch, over all ranks.
        seed: of the shuffling.
        rank, world_size: this process takes rows rank, rank + world_size, ... of each batch.
        consumed: tells how many batches training has used, which is what a checkpoint keeps;
            batches that were drawn ahead do not count.

    Raises:
        ValueError: the documents do not fill one batch.
    """

    def __init__(
        self,
        part: Part,
        identity: dict[str, Any],
        *,
        seq_len: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        consumed: Callable[[], int] = lambda: 0,
    ) -> None:
        num_rows = len(part.tokens) // seq_len
        if num_rows < batch_size:
            raise ValueError(
                f"expected a corpus of at least one batch, {batch_size} rows of {seq_len} tokens, "
                f"but it has {num_rows} such rows: lower data.batch_size or data.seq_len"
            )
        self.part, self.identity, self.consumed = part, identity, consumed
        self.seq_len, self.batch_size, self.seed = seq_len, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.batches_per_epoch = num_rows // batch_size
        self.first = 0
        self.epoch: int | None = None

    def batch(self, index: int) -> Batch:
        """This rank's rows of batch `index`."""
        epoch, index = divmod(index, self.batches_per_epoch)
        if epoch != self.epoch:
            rng = np.random.default_rng([self.seed, epoch])
            order = rng.permutation(len(self.part.bounds) - 1)
            self.packing = Packing(self.part, order, self.seq_len)
            # A whole batch from one long document would be a poor sample: draw rows, too.
            self.rows = rng.permutation(len(self.part.tokens) // self.seq_len)
            self.epoch = epoch
        rows = self.rows[index * self.batch_size : (index + 1) * self.batch_size]
        return collate(self.packing, rows[self.rank :: self.world_size].tolist())

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
            if state[name] != value:
                raise ValueError(
                    f"expected the {name} that the checkpoint was trained with, {state[name]}, "
                    f"but got {value}: the batches would not be the ones that come next"
                )
        self.first = state["batches"]


class ValidationBatches:
    """Every row of a part once, in an order that never changes; the last batch is filled up.

    The order is shuffled, so that the first few batches are a fair sample of all.

    Args:
        part, seq_len, batch_size, rank, world_size: as in TrainingBatches.
    """

    def __init__(
        self, part: Part, *, seq_len: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.packing = Packing(part, np.arange(len(part.bounds) - 1), seq_len)
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size

    def __len__(self) -> int:
        return -(-len(self.packing) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        rows = np.random.default_rng(0).permutation(len(self.packing)).tolist()
        rows += [None] * (len(self) * self.batch_size - len(rows))
        for i in range(0, len(rows), self.batch_size):
            batch = rows[i : i + self.batch_size]
            yield collate(self.packing, batch[self.rank :: self.world_size])
