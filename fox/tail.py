"""Tail: the newest rows of a stream, so that a few tokens can be taken back."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

# Rows that fit behind the kept ones before these are moved to the front of the buffer again.
SLACK = 16


class Tail:
    """The last `rollback` + 1 rows of each sequence of a batch, aligned at their ends.

    Args:
        before: (B, ...), what stands before the first row.
        rollback: how many rows can be dropped from the end and still leave a last one.
    """

    def __init__(self, before: Tensor, rollback: int) -> None:
        self.depth = rollback + 1
        width = self.depth + SLACK
        self.rows = before.unsqueeze(1).repeat(1, width, *(1,) * (before.ndim - 1))
        self.end = self.depth

    def back(self, rows: int) -> Tensor:
        """(B, ...), the row so many before the last, or the oldest that crops have left."""
        return self.rows[:, max(self.end - 1 - rows, 0)]

    def append(self, new: Tensor, tokens: Sequence[int]) -> None:
        """Adds the last tokens[b] of the rows (B, T, ...) to sequence b."""
        T = new.shape[1]
        if min(tokens, default=T) < T:
            self._append_ragged(new, tokens)
        elif self.end + T <= self.rows.shape[1]:
            self.rows[:, self.end : self.end + T] = new
            self.end += T
        else:
            self._restart(torch.cat([self.rows[:, : self.end], new], dim=1)[:, -self.depth :])

    def crop(self, dropped: Sequence[int]) -> None:
        """Takes back the last dropped[b] rows of sequence b."""
        if len(set(dropped)) <= 1:
            self.end -= max(dropped, default=0)
            return
        self._append_ragged(self.rows[:, :0], [-n for n in dropped])

    def fill(self, sequences: Sequence[int], value: float) -> None:
        """Makes these sequences as if nothing but this value had come before."""
        self.rows[list(sequences)] = value

    def select(self, index: Tensor) -> "Tail":
        """The sequences at these places of the batch."""
        chosen = copy.copy(self)
        chosen.rows = self.rows[index]
        return chosen

    def to(self, device: torch.device) -> "Tail":
        moved = copy.copy(self)
        moved.rows = self.rows.to(device, copy=True)
        return moved

    @staticmethod
    def cat(tails: Sequence["Tail"]) -> "Tail":
        """The sequences of several batches, one after the other."""
        joined = copy.copy(tails[0])
        rows = torch.cat([tail._last_rows() for tail in tails])
        joined.end = joined.depth
        joined.rows = rows.new_zeros(len(rows), joined.depth + SLACK, *rows.shape[2:])
        joined._restart(rows)
        return joined

    def _last_rows(self) -> Tensor:
        """(B, depth, ...), aligned at the right; the oldest repeats where a crop has used rows."""
        place = torch.arange(self.end - self.depth, self.end, device=self.rows.device)
        return self.rows[:, place.clamp(min=0)]

    def _restart(self, rows: Tensor) -> None:
        self.rows[:, : self.depth] = rows
        self.end = self.depth

    def _append_ragged(self, new: Tensor, tokens: Sequence[int]) -> None:
        """Row b becomes what it was, without its last -tokens[b] rows or with tokens[b] new."""
        device = new.device
        both = torch.cat([self.rows[:, : self.end], new], dim=1)
        count = torch.tensor(list(tokens), device=device)[:, None]
        back = torch.arange(self.depth - 1, -1, -1, device=device)  # rows before the last
        old = self.end - 1 - (back - count)
        place = torch.where(back < count, both.shape[1] - 1 - back, old).clamp(min=0)
        self._restart(both[torch.arange(len(both), device=device)[:, None], place])
