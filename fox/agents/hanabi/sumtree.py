"""SumTree: draws places in proportion to their priorities, many at once.

Our own, in NumPy: games are ragged, and a run that goes on after a kill must draw the same ones. An
inner node is always the sum of its two children as they are now, never changed by differences, so
that the leaves alone decide the whole tree, to the last bit.

Legend: N leaves.
"""

import numpy as np


class SumTree:
    """N priorities, at first 0.

    Args:
        size: N.
    """

    def __init__(self, size: int) -> None:
        self._first = 1 << max(size - 1, 0).bit_length()  # of the leaves; node 1 is the root
        self._nodes = np.zeros(2 * self._first)

    @property
    def total(self) -> float:
        """The sum of all priorities."""
        return float(self._nodes[1])

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """The priorities at places."""
        return self._nodes[self._first + places]

    def set(self, places: np.ndarray, priorities: np.ndarray | float) -> None:
        """Gives places new priorities.

        Args:
            places: (n,) int64; one that appears twice keeps its last priority.
            priorities: (n,), 0 or more.
        """
        nodes = self._first + places
        self._nodes[nodes] = priorities
        while nodes[0] > 1:
            nodes = nodes >> 1
            self._nodes[nodes] = self._nodes[2 * nodes] + self._nodes[2 * nodes + 1]

    def draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """Places (count,) int64, one from each of `count` equal parts of the total.

        Each place is expected count priority / total times, and the counts vary less than those of
        independent draws.

        Source: Schaul et al., Prioritized Experience Replay, 2016, section 3.3.
        """
        rest = (np.arange(count) + generator.random(count)) * (self.total / count)
        nodes = np.ones(count, np.int64)
        while nodes[0] < self._first:
            nodes = 2 * nodes
            left = self._nodes[nodes]
            # Rounding may leave a rest as large as the whole node: never go where all is 0.
            right = (rest >= left) & (self._nodes[nodes + 1] > 0)
            rest = np.where(right, rest - left, rest)
            nodes = nodes + right
        return nodes - self._first
