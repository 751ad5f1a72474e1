"""Memories: what a seat carries from one of its own turns to the next.

Legend: S seats, L own turns of a seat, d width.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fox.config import FoxConfig
from fox.policy import FoxPolicy

# Turns and words after which a new gate has forgotten 1 - 1/e: a bias of 4.
_DECAY = 55.0


def small_fox(d: int, num_layers: int, num_heads: int) -> FoxConfig:
    """A plain FoX for sequences of a few words or turns: it starts remembering."""
    return FoxConfig(
        vocab_size=1,
        hidden_size=d,
        num_hidden_layers=num_layers,
        num_heads=num_heads,
        intermediate_size=2 * d,
        initializer_range=1 / math.sqrt(d),
        decay_time_min=_DECAY,
        decay_time_max=_DECAY,
    )


class Memory(nn.Module, ABC):
    """h_t = memory(x_0, ..., x_t) over the own turns of each seat."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(S, L, d) -> (S, L, d): what each seat remembers at each of its own turns.

        Args:
            x: from the beginning of a game; padding to the right.
        """

    @abstractmethod
    def start(self, rows: int, max_turns: int) -> Any:
        """The state before any turn, for `step`.

        Args:
            rows: seats.
            max_turns: the most own turns that one of them may have.
        """

    @abstractmethod
    def step(self, state: Any, x: Tensor) -> tuple[Tensor, Any]:
        """(S, d) -> (S, d), and the state after this turn; inside torch.no_grad() alone.

        Args:
            state: from start or the step before; it is used up.
            x: of the next own turn of each row.
        """

    @abstractmethod
    def select(self, state: Any, rows: Sequence[int]) -> Any:
        """The state of these rows alone, in their order."""


class FoxMemory(Memory):
    """FoX blocks, whose state is a FoxCache."""

    def __init__(self, config: FoxConfig) -> None:
        super().__init__()
        self.trunk = FoxPolicy(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk(x)

    def start(self, rows: int, max_turns: int) -> Any:
        return self.trunk.new_cache(rows, max_length=max_turns)

    def step(self, state: Any, x: Tensor) -> tuple[Tensor, Any]:
        return self.trunk.step(state, x), state

    def select(self, state: Any, rows: Sequence[int]) -> Any:
        return state.select(rows)


class LSTMMemory(Memory):
    """An LSTM, whose state is (h, c)."""

    def __init__(self, d: int, num_layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(d, d, num_layers, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]

    def start(self, rows: int, max_turns: int) -> Any:
        size = (self.lstm.num_layers, rows, self.lstm.hidden_size)
        zeros = torch.zeros(size, device=next(self.parameters()).device)
        return zeros, zeros

    def step(self, state: Any, x: Tensor) -> tuple[Tensor, Any]:
        h, state = self.lstm(x.unsqueeze(1), state)
        return h.squeeze(1), state

    def select(self, state: Any, rows: Sequence[int]) -> Any:
        index = torch.tensor(rows, device=state[0].device)
        return state[0][:, index], state[1][:, index]


class NoMemory(Memory):
    """Nothing: h = 0."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def start(self, rows: int, max_turns: int) -> Any:
        return None

    def step(self, state: Any, x: Tensor) -> tuple[Tensor, Any]:
        return torch.zeros_like(x), None

    def select(self, state: Any, rows: Sequence[int]) -> Any:
        return None
