"""The weights that all workers read, by version: three copies, so that nobody waits or tears."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import get_spawning_popen
from typing import Any

import numpy as np

from fox.agents.memory import Memory

BUFFERS = 3
FREE = -1


class WeightBuffers:
    """Three copies of the flat weights; the learner writes one that nobody reads.

    A reader pins the newest copy while it computes. The learner writes into a copy that is neither
    the newest nor pinned and then makes it the newest; where all are taken it skips, and counts.
    The pins are a table with a row for each reader, not a count: the pin of a dead worker can be
    cleared. A lock is held for the table alone, never while weights are copied or read.

    Args:
        numel: how many weights.
        workers: readers are 0 .. workers - 1, and one more, `workers`, in this process.
        shared: for workers in processes: pickled to one, these are the same buffers there. Any
            other pickle makes unshared ones that begin with the newest weights.

    Attributes:
        skipped: weights that this process could not publish.
    """

    def __init__(self, numel: int, workers: int, shared: bool) -> None:
        self.numel = numel
        self.workers = workers
        self.skipped = 0
        table = 8 * (1 + BUFFERS + 2 * (workers + 1))
        self._offset = -(-table // 64) * 64  # weights begin on a cache line
        self._memory = Memory(self._offset + BUFFERS * 4 * numel, shared)
        self._view()
        self._versions[:] = -1
        self._pins[:, 0] = FREE

    def _view(self) -> None:
        table = self._memory.array((1 + BUFFERS + 2 * (self.workers + 1),), np.int64)
        self._newest, self._versions = table[:1], table[1 : 1 + BUFFERS]
        self._pins = table[1 + BUFFERS :].reshape(-1, 2)  # buffer, how often the row was taken
        self._flat = self._memory.array((BUFFERS, self.numel), np.float32, self._offset)

    @property
    def shared(self) -> bool:
        """Whether workers in processes read these."""
        return self._memory.shared

    @property
    def version(self) -> int:
        """Of the newest weights; -1 before the first."""
        return int(self._versions[self._newest[0]])

    def publish(self, flat: np.ndarray, version: int) -> bool:
        """Makes these the newest weights; there is one publisher.

        Args:
            flat: (numel,) float32.
            version: grows.

        Returns:
            False where every other copy is pinned: nothing was written, `skipped` grew.

        Raises:
            ValueError: another shape.
        """
        if flat.shape != (self.numel,):
            raise ValueError(f"weights must have shape ({self.numel},), but got {flat.shape}")
        with self._memory.locked():
            taken = {int(self._newest[0]), *self._pins[:, 0].tolist()}
        free = [buffer for buffer in range(BUFFERS) if buffer not in taken]
        if not free:
            self.skipped += 1
            return False
        self._flat[free[0]] = flat  # no reader can pin it: it is not the newest
        with self._memory.locked():
            self._versions[free[0]] = version
            self._newest[0] = free[0]
        return True

    @contextmanager
    def pinned(self, worker: int) -> Iterator[tuple[np.ndarray, int]]:
        """The newest weights (numel,) float32, a view that holds still inside, and their version.

        Raises:
            LookupError: none were published.
        """
        taken, flat, version = self._pin(worker)
        try:
            yield flat, version
        finally:
            with self._memory.locked():
                # A thread that was given up must not free what its successor has pinned.
                if self._pins[worker, 1] == taken:
                    self._pins[worker, 0] = FREE

    def newest(self, reader: int) -> tuple[np.ndarray, int]:
        """As pinned(), but they hold still until this reader asks again, or releases."""
        held = int(self._pins[reader, 0])
        if held != FREE and held == self._newest[0]:
            return self._flat[held], int(self._versions[held])
        _, flat, version = self._pin(reader)
        return flat, version

    def release(self, reader: int) -> None:
        """Clears the pin of a lost worker; the first pin of its successor does so, too."""
        with self._memory.locked():
            self._pins[reader] = FREE, self._pins[reader, 1] + 1

    def _pin(self, reader: int) -> tuple[int, np.ndarray, int]:
        with self._memory.locked():
            buffer, taken = int(self._newest[0]), int(self._pins[reader, 1]) + 1
            version = int(self._versions[buffer])
            if version < 0:
                raise LookupError("no weights were published: publish(flat, 0) before the workers")
            self._pins[reader] = buffer, taken
        return taken, self._flat[buffer], version

    def __reduce__(self) -> tuple[Callable[..., "WeightBuffers"], tuple[Any, ...]]:
        if get_spawning_popen() is not None:
            return _attached, (self.numel, self.workers, self._offset, self._memory)
        with self._memory.locked():  # nobody writes to the newest copy, and it stays the newest
            flat = self._flat[self._newest[0]].copy()
            return _copied, (self.numel, self.workers, flat, self.version)


def _attached(numel: int, workers: int, offset: int, memory: Memory) -> WeightBuffers:
    weights = WeightBuffers.__new__(WeightBuffers)
    weights.numel, weights.workers, weights.skipped = numel, workers, 0
    weights._offset, weights._memory = offset, memory
    weights._view()
    return weights


def _copied(numel: int, workers: int, flat: np.ndarray, version: int) -> WeightBuffers:
    weights = WeightBuffers(numel, workers, shared=False)
    if version >= 0:
        weights.publish(flat, version)
    return weights
