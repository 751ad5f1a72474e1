"""Replay: the last games of self-play, drawn equally often for each number of players.

Legend: B games of a sample, K games of a segment.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fox.agents.hanabi.episode import Episode, packed, unpacked
from fox.agents.hanabi.rules import Rules
from fox.agents.hanabi.sumtree import SumTree
from fox.agents.ranges import at_least, within_one
from fox.files import whole_file

LEAST = 1e-6  # of priorities: every game may be drawn


@dataclass(frozen=True)
class ReplayConfig:
    """Which games are kept, and which of them are drawn.

    p = eta max |delta| + (1 - eta) mean |delta| is the priority of a game whose errors were delta;
    a new game has the highest so far. Games are drawn in proportion to p^alpha, and weigh
    (N P)^-beta in the loss, P being the probability of the draw among N.

    Args:
        capacity: games; the oldest give way.
        alpha: how much priorities matter; 0 draws uniformly.
        beta: how much of that the weights take back; 1 all of it.
        eta: the share of a game's largest error.

    Raises:
        ValueError: a value is out of its range.

    Source: Schaul et al., Prioritized Experience Replay, 2016, eq. 1 and section 3.4; Kapturowski
    et al., Recurrent Experience Replay in Distributed Reinforcement Learning, 2019, section 2.3.
    """

    capacity: int = 4000
    alpha: float = 0.0
    beta: float = 0.6
    eta: float = 0.9

    def __post_init__(self) -> None:
        at_least("replay", self, capacity=1)
        within_one("replay", self, "alpha", "beta", "eta")


class Sample(NamedTuple):
    """Games that were drawn, those of the same rules side by side.

    Attributes:
        episodes: B games.
        numbers: (B,) int64, which game ever added each one is; for `Replay.update`.
        weights: (B,) float32 in (0, 1], 1 at the largest for each rules.
    """

    episodes: list[Episode]
    numbers: np.ndarray
    weights: np.ndarray


class Replay:
    """A ring of whole games in memory, which a folder can hold, too.

    Args:
        config: how many, and how they are drawn.

    Attributes:
        added: games ever added, which numbers them.
    """

    def __init__(self, config: ReplayConfig) -> None:
        self.config = config
        self.added = 0
        self._games: dict[int, Episode] = {}  # by number
        # Game k has place k % capacity; each tree is over all places, 0 at games of other rules.
        self._trees: dict[Rules, SumTree] = {}
        self._highest = 1.0  # p^alpha so far
        self._saved = 0  # games that were added before the last save

    def __len__(self) -> int:
        """Games in the ring."""
        return len(self._games)

    @property
    def rules(self) -> list[Rules]:
        """Of which there are games, in an order that does not depend on theirs."""
        return sorted(rules for rules, tree in self._trees.items() if tree.total > 0)

    def add(self, episode: Episode) -> None:
        """Keeps a game in place of the oldest, once the ring is full."""
        self._put(episode, self._highest)

    def _put(self, episode: Episode, priority: float) -> None:
        place = np.array([self.added % self.config.capacity])
        oldest = self._games.pop(self.added - self.config.capacity, None)
        if oldest is not None:
            self._trees[oldest.rules].set(place, 0.0)
        if episode.rules not in self._trees:
            self._trees[episode.rules] = SumTree(self.config.capacity)
        self._trees[episode.rules].set(place, priority)
        self._games[self.added] = episode
        self.added += 1

    def sample(self, generator: np.random.Generator, batch_size: int) -> Sample:
        """Draws games, equally many of each rules that the ring has games of.

        Args:
            generator: of the draws.
            batch_size: B; where the rules do not divide it, the first ones have one game more.

        Raises:
            ValueError: the ring is empty, or has games of more rules than are to be drawn.
        """
        rules = self.rules
        if not 1 <= len(rules) <= batch_size:
            raise ValueError(
                f"expected games of 1 to {batch_size} rules to draw {batch_size} games from, but "
                f"the replay has games of {len(rules)}: play some first, or draw more"
            )
        places, weights = [], []
        for part, kind in zip(
            np.array_split(np.arange(batch_size), len(rules)), rules, strict=True
        ):
            tree = self._trees[kind]
            places.append(tree.draw(generator, len(part)))
            # The factor N / total is the same for all, and the largest weight is 1.
            weight = tree[places[-1]] ** -self.config.beta
            weights.append(weight / weight.max())
        place = np.concatenate(places)
        newest = self.added - 1
        numbers = newest - (newest - place) % self.config.capacity
        episodes = [self._games[number] for number in numbers.tolist()]
        return Sample(episodes, numbers, np.concatenate(weights).astype(np.float32))

    def update(self, sample: Sample, largest: np.ndarray, mean: np.ndarray) -> None:
        """Sets the priorities of games just drawn.

        Args:
            sample: nothing was added since it was drawn.
            largest, mean: (B,) of |delta| over each game.
        """
        assert (sample.numbers >= self.added - len(self)).all()
        eta, alpha = self.config.eta, self.config.alpha
        priority = np.maximum(eta * largest + (1 - eta) * mean, LEAST).astype(np.float64) ** alpha
        self._highest = max(self._highest, float(priority.max()))
        place = sample.numbers % self.config.capacity
        rules = [episode.rules for episode in sample.episodes]
        for kind, tree in self._trees.items():
            its = np.array([one == kind for one in rules])
            if its.any():
                tree.set(place[its], priority[its])

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes the games added since the last save, as one file that appears whole.

        The folder then holds all that load() needs for the state of now, and for that of the last
        save: a run may be killed before the state of now is safe.

        Returns:
            the state of now, which load() needs beside the folder: plain values and a tensor.
        """
        for path, (_, end) in _segments(folder).items():
            outdated = end <= self._saved - self.config.capacity
            newer = end > self._saved  # of a run that was killed before its state was safe
            if outdated or newer:
                path.unlink()
        first = max(self._saved, self.added - len(self))
        if first < self.added:
            games = [self._games[number] for number in range(first, self.added)]
            with whole_file(folder / f"games-{first:09d}-{self.added:09d}.npz") as temporary:
                np.savez(temporary, **packed(games))
        self._saved = self.added
        priorities = torch.from_numpy(self._priorities())
        return {"added": self.added, "priorities": priorities, "highest": self._highest}

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        """Makes an empty replay the ring that was saved.

        Args:
            folder: of save(); newer games there are ignored.
            state: from save().

        Raises:
            ValueError: the folder lacks games, or the ring had another capacity.
        """
        assert self.added == 0
        added, priorities = state["added"], state["priorities"].numpy()
        held = min(added, self.config.capacity)
        if len(priorities) != held:
            raise ValueError(
                f"the saved replay held {len(priorities)} of {added} games, but one with "
                f"capacity={self.config.capacity} holds {held}: go on with the same "
                "replay.capacity"
            )
        self.added = added - held
        for path, (first, end) in _segments(folder).items():
            if first <= self.added < end <= added:
                with np.load(path) as arrays:
                    games = unpacked(dict(arrays))
                for episode in games[self.added - first :]:
                    self._put(episode, priorities[self.added - added + held])
        if self.added < added:
            raise ValueError(
                f"expected the games up to {added - 1} of the saved replay in {folder}, but "
                f"{self.added} is missing: was the state saved with another folder?"
            )
        self._highest, self._saved = state["highest"], added

    def _priorities(self) -> np.ndarray:
        """(len(self),) float64, p^alpha, the oldest game first."""
        place = np.arange(self.added - len(self), self.added) % self.config.capacity
        priorities = np.zeros(len(self))
        for tree in self._trees.values():
            priorities += tree[place]  # but one are 0
        return priorities


def _segments(folder: Path) -> dict[Path, tuple[int, int]]:
    """The files of save(), oldest first, with the numbers of their first game and of the next."""
    paths = sorted(folder.glob("games-*-*.npz"))
    return {path: (int(path.stem.split("-")[1]), int(path.stem.split("-")[2])) for path in paths}
