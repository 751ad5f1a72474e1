"""Synthetic tasks that a small model learns in minutes, and that need what stood far before.

Legend: B batch, T time, P pairs.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fox.loss import IGNORED

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)

TaskName = Literal["recall", "mqar", "passkey"]


@dataclass(frozen=True)
class Task(ABC):
    """Random rows with questions, of any length.

    The ids of fillers come first in the vocabulary, then those of keys, then those of values.

    Args:
        training_length: tokens T of a row in training.
        pairs: what a row hides: (key, value) pairs, or tokens of the one key.

    Attributes:
        title: the task in one sentence.
        example: a row, token by token; what the question is about has the mark *.
        depths: places of the pair asked for to test, from 0 (first) to 1 (last place); (None,) if
            a row asks for several.
        steps: of training, until models tell apart.
        whole_rows: a row is right if all its answers are; if False, each counts.
    """

    training_length: int
    pairs: int

    name: ClassVar[TaskName]
    title: ClassVar[str]
    example: ClassVar[str]
    steps: ClassVar[int]
    depths: ClassVar[Sequence[float | None]] = DEPTHS
    whole_rows: ClassVar[bool] = False
    fillers: ClassVar[int] = 64
    keys: ClassVar[int]
    values: ClassVar[int]

    def __post_init__(self) -> None:
        if not 1 <= self.pairs <= self.keys:
            raise ValueError(f"{self.name} has 1 to {self.keys} pairs, but got {self.pairs}")
        self.check_length(self.training_length)

    def check_length(self, length: int) -> None:
        """Raises ValueError if a row of so many tokens cannot hold the task."""
        if length < self.shortest or length % 2:
            raise ValueError(
                f"rows of {self.name} with {self.pairs} pairs have an even number of tokens from "
                f"{self.shortest} on, but got {length}"
            )

    @property
    def vocab_size(self) -> int:
        return self.fillers + self.keys + self.values

    @property
    @abstractmethod
    def shortest(self) -> int:
        """Tokens of the shortest row."""

    @property
    @abstractmethod
    def chance(self) -> dict[str, float]:
        """Share of right answers of a model that knows no more than the name says."""

    @abstractmethod
    def rows(
        self, count: int, length: int, generator: torch.Generator, depth: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Random rows and what they ask.

        Args:
            count: rows B.
            length: tokens T of a row; even.
            generator: source of the random numbers, on the CPU.
            depth: one of `depths`; random if None.

        Returns:
            ids (B, T) int64; labels (B, T) int64, what position t shall predict, -100 where
            nothing is asked.
        """

    def filler(self, count: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows of filler and labels that ask nothing."""
        ids = torch.randint(self.fillers, (count, length), generator=generator)
        return ids, torch.full_like(ids, IGNORED)

    def some_keys(self, count: int, generator: torch.Generator) -> Tensor:
        """(B, P): different keys in each row."""
        return self.fillers + shuffled(count, self.keys, generator)[:, : self.pairs]

    def some_values(self, count: int, generator: torch.Generator) -> Tensor:
        """(B, P): different values in each row."""
        values = shuffled(count, self.values, generator)[:, : self.pairs]
        return self.fillers + self.keys + values


@dataclass(frozen=True)
class Recall(Task):
    """Pairs at random places; the last token is one of the keys and asks for its value."""

    training_length: int = 64
    pairs: int = 4

    name = "recall"
    title = "keys and their values hide in a row of filler. Which value had the last key?"
    example = "· · K7 v2 · · · · K1* v9* · · K4 v4 · · · · · · K3 v5 · · · · K1* ?*"
    steps = 150
    keys = 16
    values = 16

    @property
    def shortest(self) -> int:
        return 2 * self.pairs + 2

    @property
    def chance(self) -> dict[str, float]:
        return {"any value": 1 / self.values, "a value of the row": 1 / self.pairs}

    def rows(
        self, count: int, length: int, generator: torch.Generator, depth: float | None = None
    ) -> tuple[Tensor, Tensor]:
        places = length // 2 - 1  # the last two tokens are a filler and the question
        order = torch.rand(count, places, generator=generator)
        if depth is not None:
            order[:, round(depth * (places - 1))] = -1.0  # first of all, and the first is asked for
        starts = 2 * order.argsort(1)[:, : self.pairs]  # (B, P)
        keys, values = self.some_keys(count, generator), self.some_values(count, generator)
        ids, labels = self.filler(count, length, generator)
        ids.scatter_(1, starts, keys)
        ids.scatter_(1, starts + 1, values)
        ids[:, -1] = keys[:, 0]
        labels[:, -1] = values[:, 0]
        return ids, labels


@dataclass(frozen=True)
class MultiQueryRecall(Task):
    """Pairs at the beginning; then each key comes once, at a random place, and asks for its value.

    Source: Arora et al., Zoology: Measuring and Improving Recall in Efficient Language Models,
    2023; there the places follow a power law.
    """

    training_length: int = 64
    pairs: int = 8

    name = "mqar"
    title = "after a list of keys and values, each key comes again. Which value did it have?"
    example = "K3 v1 K8* v6* K5 v2 K2 v9 · · K5 · · · K8* ?* · · · · · K2 · · K3 ·"
    steps = 400
    depths = (None,)
    keys = 64
    values = 64

    @property
    def shortest(self) -> int:
        return 3 * self.pairs + self.pairs % 2

    @property
    def chance(self) -> dict[str, float]:
        return {"any value": 1 / self.values, "a value of the row": 1 / self.pairs}

    def rows(
        self, count: int, length: int, generator: torch.Generator, depth: float | None = None
    ) -> tuple[Tensor, Tensor]:
        keys, values = self.some_keys(count, generator), self.some_values(count, generator)
        ids, labels = self.filler(count, length, generator)
        listed = 2 * self.pairs
        ids[:, :listed] = torch.stack([keys, values], 2).flatten(1)
        places = listed + shuffled(count, length - listed, generator)[:, : self.pairs]
        ids.scatter_(1, places, keys)
        labels.scatter_(1, places, values)
        return ids, labels


@dataclass(frozen=True)
class Passkey(Task):
    """A mark and a key of `pairs` tokens in filler; at the end the mark asks for the whole key."""

    training_length: int = 64
    pairs: int = 5

    name = "passkey"
    title = "a key of several tokens hides in a row of filler. What was it, token by token?"
    example = "· · · · · #* 3* 9* 4* 1* 7* · · · · · · · · · · #* ?* ?* ?* ?* ?*"
    steps = 400
    whole_rows = True
    keys = 32
    values = 1  # the mark

    @property
    def shortest(self) -> int:
        return 2 * self.pairs + 2

    @property
    def chance(self) -> dict[str, float]:
        return {"any key": self.keys**-self.pairs}

    def rows(
        self, count: int, length: int, generator: torch.Generator, depth: float | None = None
    ) -> tuple[Tensor, Tensor]:
        key = self.some_keys(count, generator)
        mark = torch.full((count, 1), self.fillers + self.keys)
        planted = torch.cat([mark, key], 1)  # (B, P + 1)
        last = length - 2 * self.pairs - 1
        if depth is None:
            start = torch.randint(last + 1, (count, 1), generator=generator)
        else:
            start = torch.full((count, 1), round(depth * last))
        ids, labels = self.filler(count, length, generator)
        ids.scatter_(1, start + torch.arange(self.pairs + 1), planted)
        ids[:, -self.pairs :] = planted[:, :-1]
        labels[:, -self.pairs :] = key
        return ids, labels


TASKS: dict[TaskName, type[Task]] = {
    task.name: task for task in (Recall, MultiQueryRecall, Passkey)
}


def shuffled(count: int, length: int, generator: torch.Generator) -> Tensor:
    """(count, length): the numbers from 0 in random order, in each row."""
    return torch.rand(count, length, generator=generator).argsort(1)
