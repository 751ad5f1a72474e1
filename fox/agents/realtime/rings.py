"""What the dispatcher and its workers write for each other: a ring of tokens, a mailbox each.

Legend: token k is complete at tick k; d is the action delay in ticks; R slots; F features.
"""

from typing import Any

import numpy as np

from fox.agents.memory import Memory

UNWRITTEN = -1


class Overwritten(LookupError):
    """A token is gone from the ring, or not in it yet."""


class ObservationRing:
    """The newest R = 2^ceil(log2(4 d + 8 + history)) tokens: one writer, any number of readers.

    Nobody waits. Each slot has a tag: the writer sets it to -1, writes, and sets it to the tick; a
    reader looks at the tags before and after it copies, so that it never returns a torn token.
    Across processes the message that sends a job, later than the writing, orders memory.

    Args:
        dtype: of a token, token_dtype(observation).
        d: the largest delay.
        history: how many ticks before its own a job may look back to, the window.
        shared: for workers in processes: pickled to one, it is the same ring there.

    Attributes:
        overwritten: reads in this process that came too late.
    """

    def __init__(self, dtype: np.dtype, d: int, history: int, shared: bool) -> None:
        self.slots = 1 << (4 * d + 8 + history - 1).bit_length()
        self.dtype = dtype
        self.overwritten = 0
        self._memory = Memory(8 + self.slots * (8 + dtype.itemsize), shared)
        self._view()
        self._first[:], self._tags[:] = UNWRITTEN, UNWRITTEN

    def _view(self) -> None:
        self._first = self._memory.array((1,), np.int64)  # tick that was ever published
        self._tags = self._memory.array((self.slots,), np.int64, 8)
        self._rows = self._memory.array((self.slots,), self.dtype, 8 + 8 * self.slots)

    def publish(self, token: np.ndarray | np.void) -> None:
        """Writes a token; by its field `tick` it takes the place of the token R ticks older."""
        k = int(token["tick"])
        slot = k % self.slots
        if self._first[0] == UNWRITTEN:
            self._first[0] = k
        self._tags[slot] = UNWRITTEN
        self._rows[slot] = token
        self._tags[slot] = k

    def read(self, first: int, last: int) -> np.ndarray:
        """(last - first + 1,) tokens of the ticks first..last, copied.

        Those of ticks before the first that was ever published are left out.

        Raises:
            Overwritten: one is not written yet, or no longer there.
            ValueError: more tokens than the ring has slots.
        """
        ticks = np.arange(max(first, int(self._first[0]), 0), last + 1)
        if len(ticks) > self.slots:
            raise ValueError(
                f"a ring of {self.slots} tokens cannot give the {len(ticks)} of the ticks "
                f"{first}..{last}: make it with a longer history"
            )
        slots = ticks % self.slots
        before = self._tags[slots]
        rows = self._rows[slots]
        after = self._tags[slots]
        if (before == ticks).all() and (after == ticks).all():
            return rows
        self.overwritten += 1
        raise Overwritten(f"tokens {first}..{last} are not all in the ring of {self.slots}")

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("slots", "dtype", "overwritten", "_memory")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._view()


class Mailboxes:
    """Two slots for each worker's results, which it fills in turn: one writer per mailbox.

    A worker gets its next job after its last result was taken, so that what it writes is never
    what is being read. There is no ring of results for all workers: in one, a straggler could
    overwrite a newer result.

    Args:
        workers: how many.
        features: F.
        shared: for workers in processes.
    """

    def __init__(self, workers: int, features: int, shared: bool) -> None:
        self._dtype = np.dtype(
            [
                ("job", np.int64),
                ("version", np.int64),
                ("start", np.float64),
                ("seconds", np.float64),
                ("features", np.float32, (features,)),
            ]
        )
        self._workers = workers
        self._memory = Memory(2 * workers * self._dtype.itemsize, shared)
        self._view()
        self._boxes["job"] = UNWRITTEN

    def _view(self) -> None:
        self._boxes = self._memory.array((self._workers, 2), self._dtype)

    def write(
        self,
        worker: int,
        job_id: int,
        features: np.ndarray,
        version: int,
        start: float,
        seconds: float,
    ) -> None:
        """Writes a result into the slot that the worker's last one has left free.

        Raises:
            ValueError: features are not (F,).
        """
        expected = self._dtype["features"].shape
        if features.shape != expected:
            raise ValueError(f"a result must have features of shape {expected}: {features.shape}")
        box = self._boxes[worker]
        slot = 1 if box["job"][0] >= box["job"][1] else 0
        box[slot] = (job_id, version, start, seconds, features)

    def read(self, worker: int, job_id: int) -> tuple[np.ndarray, int, float, float]:
        """Features (a copy), version, start and seconds of a job that was said to be done."""
        box = self._boxes[worker]
        row = box[int(np.argmax(box["job"] == job_id))]
        assert row["job"] == job_id, (worker, job_id, box["job"])
        return (
            row["features"].copy(),
            int(row["version"]),
            float(row["start"]),
            float(row["seconds"]),
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("_dtype", "_workers", "_memory")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._view()
