"""Scores: what games were worth, deck by deck: who played the same decks can be compared.

A deck is one observation, however often it was played: games with the same cards are not
independent, and the difference of two players is less uncertain than either of them.

Legend: n decks.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fox.agents.hanabi.game import Game

# Student's t, two-sided 95 %, for 1 to 9 degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
_Z95 = 1.95996


class Estimate(NamedTuple):
    """A mean of independent values.

    Attributes:
        mean: of the values.
        error: its standard error.
        low, high: its 95 % interval, by Student's t.
    """

    mean: float
    error: float
    low: float
    high: float


def estimate(values: Sequence[float] | np.ndarray) -> Estimate:
    """The mean of independent values, and how uncertain it is.

    Args:
        values: (n,), n at least 2.

    Raises:
        ValueError: there are fewer than two.
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"an interval needs 2 values or more, but got {n}: play more games")
    mean = float(np.mean(values))
    error = float(np.std(values, ddof=1)) / n**0.5
    half = _t95(n - 1) * error
    return Estimate(mean, error, mean - half, mean + half)


def _t95(freedom: int) -> float:
    """Student's t, two-sided 95 %; beyond the table by its expansion in 1 / freedom, to 1e-3."""
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    z = _Z95
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


class Scores(NamedTuple):
    """Games on n decks; of a deck that was played several times, the mean.

    Attributes:
        strict: (n,) float64, points, 0 after the last life.
        keep: (n,) float64, points, whatever happened to the lives.
        perfect_rate: (n,) float64, share of games with every point.
        bomb_rate: (n,) float64, share of games that ended with the last life.
        turns: (n,) float64, length of the games.
    """

    strict: np.ndarray
    keep: np.ndarray
    perfect_rate: np.ndarray
    bomb_rate: np.ndarray
    turns: np.ndarray

    @classmethod
    def of(cls, games: Sequence[Game]) -> "Scores":
        """Of finished games, each on a deck of its own."""
        rows = [
            (
                game.strict_score,
                game.keep_score,
                game.strict_score == game.rules.max_score,
                game.lives == 0,
                game.turn,
            )
            for game in games
        ]
        return cls(*np.array(rows, np.float64).reshape(len(games), 5).T)

    @classmethod
    def mean(cls, scores: Sequence["Scores"]) -> "Scores":
        """Deck by deck, of several on the same decks: other seats, or other players."""
        return cls(*np.mean(scores, axis=0))

    def summary(self) -> dict[str, Any]:
        """decks: n; and of each attribute its mean, .._error, .._low and .._high."""
        row: dict[str, Any] = {"decks": len(self.strict)}
        for name, values in self._asdict().items():
            row |= estimate_columns(name, estimate(values))
        return row


def estimate_columns(name: str, found: Estimate) -> dict[str, float]:
    """An estimate as columns of a table: NAME, NAME_error, NAME_low, NAME_high."""
    ends = ("", "_error", "_low", "_high")
    return {f"{name}{end}": value for end, value in zip(ends, found, strict=True)}
