"""Waves: the games of a run, some at a time, and which worker plays which.

A wave is some games that are played in lock step with one version of the weights. Whatever becomes
of the workers, each wave comes once.

Legend: N weights.
"""

import heapq
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from itertools import count
from typing import Protocol

import numpy as np

from fox.agents.hanabi.episode import Episode

LOSSES = 3  # workers that one wave may end, before it is taken for the cause


class Troupe(Protocol):
    """Who plays waves: SelfPlay, or a stand-in."""

    def play(self, flat: np.ndarray, version: int, wave: int) -> list[Episode]:
        """The games of a wave, played to their ends.

        Args:
            flat: (N,) float32, weights; they hold still until the next call.
            version: theirs.
            wave: its number, from 0 on.
        """
        ...


# Makes one, in the process that it plays in: picklable, with what it holds.
TroupeFactory = Callable[[], Troupe]


class Agenda:
    """Hands out the numbers of waves, those first that a lost worker had.

    A worker has at most `ahead` waves in hand, which it is to play, or which have come and nobody
    has taken: it waits for a learner that is slower.

    Args:
        first_wave: where to begin.
        ahead: as above, at least 1.
    """

    def __init__(self, first_wave: int, ahead: int) -> None:
        self._numbers = count(first_wave)
        self._ahead = ahead
        self._again: list[int] = []  # a heap
        self._to_play: defaultdict[int, list[int]] = defaultdict(list)  # by worker
        self._come: deque[tuple[int, list[Episode]]] = deque()
        self._losses: Counter[int] = Counter()  # by wave

    def hand_out(self, worker: int) -> list[int]:
        """The waves that the worker shall play, too, in this order."""
        in_hand = len(self._to_play[worker]) + sum(of == worker for of, _ in self._come)
        waves = [
            heapq.heappop(self._again) if self._again else next(self._numbers)
            for _ in range(self._ahead - in_hand)
        ]
        self._to_play[worker] += waves
        return waves

    def come(self, worker: int, wave: int, episodes: list[Episode]) -> None:
        """The worker has played the wave."""
        self._to_play[worker].remove(wave)
        self._come.append((worker, episodes))

    def take(self) -> tuple[int, list[Episode]] | None:
        """A wave that has come, and its worker, which is due another; None if there is none."""
        if not self._come:
            return None
        return self._come.popleft()

    def lose(self, worker: int, reason: str) -> None:
        """The worker has died; what it had to play is handed out again.

        Raises:
            RuntimeError: it was the third to die of one wave.
        """
        waves = self._to_play.pop(worker, [])
        for wave in waves:
            heapq.heappush(self._again, wave)
        if waves:
            self._losses[waves[0]] += 1
            if self._losses[waves[0]] == LOSSES:
                raise RuntimeError(f"wave {waves[0]} has ended {LOSSES} workers, at last: {reason}")
