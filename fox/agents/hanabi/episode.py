"""Episode: a finished game as the replay keeps it, and the learner reads it.

Legend: T turns, P players, A moves of the rules, W words of all views together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from fox.agents.hanabi.rules import Rules


@dataclass(frozen=True)
class Episode:
    """One game of self-play; at turn t seat t % P saw its own view, and moved.

    Attributes:
        rules: of the game.
        number: of the game in its run, which with the run's seed decides deck and exploration.
        version: of the weights that played it.
        words: (W,) int16, the token ids of all views, turn after turn.
        lengths: (T,) int16, words of each view.
        actions: (T,) int16, the numbers of the moves.
        legal: (T, A) bool.
        explored: (T,) bool, whether the move was drawn at random.
        rewards: (T,) float32, changes of the strict score.
        keep_score: the fireworks at the end.
        strict_score: the same, or 0 after the last life.
    """

    rules: Rules
    number: int
    version: int
    words: np.ndarray
    lengths: np.ndarray
    actions: np.ndarray
    legal: np.ndarray
    explored: np.ndarray
    rewards: np.ndarray
    keep_score: int
    strict_score: int

    @property
    def turns(self) -> int:
        """T."""
        return len(self.actions)

    def views(self) -> list[np.ndarray]:
        """The T views, (words of each,) int16."""
        return np.split(self.words, np.cumsum(self.lengths)[:-1])


_OF_GAMES = ("number", "version", "keep_score", "strict_score", "turns")
_OF_TURNS = ("lengths", "actions", "explored", "rewards")


def packed(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Games as few arrays, one game after another, for a file.

    Attributes of games are (games,), attributes of turns (turns of all games,), in the dtypes of
    Episode; kind is (games,), the row of each game's rules in kinds; legal is packed into bits.
    """
    kinds = list(dict.fromkeys(episode.rules for episode in episodes))
    return {
        "kinds": np.array([astuple(kind) for kind in kinds]),
        "kind": np.array([kinds.index(episode.rules) for episode in episodes]),
        "words": np.concatenate([episode.words for episode in episodes]),
        "legal": np.packbits(np.concatenate([episode.legal.ravel() for episode in episodes])),
        **{name: np.array([getattr(one, name) for one in episodes]) for name in _OF_GAMES},
        **{name: np.concatenate([getattr(one, name) for one in episodes]) for name in _OF_TURNS},
    }


def unpacked(arrays: Mapping[str, np.ndarray]) -> list[Episode]:
    """The inverse of packed()."""
    kinds = [Rules(*map(int, kind)) for kind in arrays["kinds"]]
    rules = [kinds[kind] for kind in arrays["kind"]]
    number, version, keep_score, strict_score, turns = (arrays[name].tolist() for name in _OF_GAMES)
    lengths, actions, explored, rewards = (_cut(arrays[name], turns) for name in _OF_TURNS)
    words = _cut(arrays["words"], [int(its.sum()) for its in lengths])
    bits = [T * len(kind.moves) for T, kind in zip(turns, rules, strict=True)]
    legal = _cut(np.unpackbits(arrays["legal"], count=sum(bits)).astype(bool), bits)
    return [
        Episode(
            rules=rules[k],
            number=number[k],
            version=version[k],
            words=words[k],
            lengths=lengths[k],
            actions=actions[k],
            legal=legal[k].reshape(turns[k], -1),
            explored=explored[k],
            rewards=rewards[k],
            keep_score=keep_score[k],
            strict_score=strict_score[k],
        )
        for k in range(len(rules))
    ]


def _cut(array: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """Copies: a view would keep all of the array alive."""
    return [part.copy() for part in np.split(array, np.cumsum(sizes)[:-1])]
