"""Actors: they play a run's games for its learner, in its process, beside it, or far away.

Legend: N weights.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Protocol

import numpy as np

from fox.agents.hanabi.config import RunConfig
from fox.agents.hanabi.episode import Episode
from fox.agents.hanabi.processes import ProcessActors
from fox.agents.hanabi.remote import RayActors
from fox.agents.hanabi.selfplay import SelfPlay
from fox.agents.hanabi.waves import TroupeFactory


class Actors(Protocol):
    """Plays waves of games; the weights and the number of a wave decide its games everywhere.

    Attributes:
        lost: workers that have ended, whose waves others have played.
    """

    lost: int

    def publish(self, flat: np.ndarray, version: int) -> None:
        """Every wave that begins from now on is played with these weights.

        Args:
            flat: (N,) float32; it must stay as it is until the next call.
            version: grows.
        """
        ...

    def wave(self) -> list[Episode]:
        """The next wave that has come, in whatever order; waits for it.

        Weights must have been published.

        Raises:
            RuntimeError: a worker has raised, or workers die again and again.
        """
        ...

    def close(self) -> None:
        """Ends all workers; waves that were not taken are lost."""
        ...


class InlineActors:
    """Plays each wave when it is asked for, in this process, in order: a run repeats exactly.

    Args:
        factory: makes who plays.
        first_wave: where to begin.

    Attributes:
        lost: 0.
    """

    lost = 0

    def __init__(self, factory: TroupeFactory, first_wave: int) -> None:
        self._troupe, self._next = factory(), first_wave
        self._weights: tuple[np.ndarray, int] | None = None

    def publish(self, flat: np.ndarray, version: int) -> None:
        """Takes the weights for the waves to come."""
        self._weights = flat, version

    def wave(self) -> list[Episode]:
        """Plays the next wave."""
        assert self._weights is not None, "publish weights before the first wave"
        episodes = self._troupe.play(*self._weights, self._next)
        self._next += 1
        return episodes

    def close(self) -> None:
        """Nothing is open."""


@contextmanager
def open_actors(config: RunConfig, first_wave: int) -> Iterator[Actors]:
    """The actors of a run, which are closed at the end.

    Args:
        config: says which, and what they play.
        first_wave: where to begin.
    """
    factory = partial(SelfPlay, config.plan)
    how = config.actors
    actors: Actors
    if how.kind == "inline":
        actors = InlineActors(factory, first_wave)
    else:
        kind = ProcessActors if how.kind == "process" else RayActors
        actors = kind(factory, first_wave, workers=how.workers, ahead=how.ahead)
    with closing(actors):
        yield actors
