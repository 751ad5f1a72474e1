"""The log of ticks that the actor writes and learners sample, with the delay aligned.

Legend: o_t is seen before a_t, which yields r_t; the decision executed at t saw tokens up to
t - d and was completed with the committed actions a_{t-d} .. a_{t-1}. B sequences, of T tokens and
P decisions each, n steps of a return, W committed actions.
"""

import fcntl
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fox.agents.realtime.ticks import Source
from fox.files import whole_file

# The columns: first a token's fields, of which three belong to the tick before it, then the rest.
_COLUMN_OF_FIELD = {
    "tick": "tick",
    "episode": "episode",
    "obs": "obs",
    "action": "action_tm1",
    "source": "source_tm1",
    "reward": "reward_tm1",
    "start": "start",
}
_KIND_OF_COLUMN: dict[str, Any] = {
    "action_t": np.int16,
    "source_t": np.uint8,
    "reward_t": np.float32,
    "terminated_t": np.bool_,
    "truncated_t": np.bool_,
    "d": np.int16,
    "obs_tick": np.int64,
    "version": np.int64,
}
_ENDS = ("terminated_t", "truncated_t")


@dataclass(frozen=True)
class Sequences:
    """What `Replay.sample` returns: tokens, and the decisions that the later ones led to.

    Decision p of a sequence saw the tokens up to burn_in + p and was executed d ticks later, at t.
    Its return ends m <= n ticks later, at tpm = t + m, in the state that saw the tokens up to
    burn_in + p + m.

    Attributes:
        tokens: the fields of token_dtype, each (B, T = burn_in + P + n, ...).
        committed_t: (B, P, W) int64, a_{t-d} .. a_{t-1}, then -1 for none.
        action_t: (B, P) int64, as executed.
        reward_t: (B, P, n) float32, r_t .. r_{t+n-1}; those from m on do not count.
        steps: (B, P) int64, m: n, or fewer where the episode ends sooner.
        terminated_tpm: (B, P) bool, whether tick t + m - 1 ended the episode for good.
        committed_tpm: (B, P, W) int64, a_{t+m-d} .. a_{t+m-1}, then -1.
        obs_t, obs_tpm: (B, P, ...), o_t and o_{t+m}, for heads that look at them; else None.
        trainable: (B, P) bool; what stands for the other decisions is arbitrary.
    """

    tokens: dict[str, np.ndarray]
    committed_t: np.ndarray
    action_t: np.ndarray
    reward_t: np.ndarray
    steps: np.ndarray
    terminated_tpm: np.ndarray
    committed_tpm: np.ndarray
    obs_t: np.ndarray | None
    obs_tpm: np.ndarray | None
    trainable: np.ndarray


class Replay:
    """The newest ticks, in a folder of memory-mapped .npy files, one per column.

    One process writes and any number read. Row i, counted from 0 for ever, stands in slot i modulo
    the capacity. A row is written first and counted after, and readers leave out the slot that may
    be in writing: whoever is killed, no half-written row is sampled, and a resumed run goes on
    where the count is. This holds where a process sees another's stores in their order, as on x86;
    nothing is provided for a power failure.

    Attributes:
        folder: where the columns are.
        dtype: of the tokens.
        capacity: rows; one fewer can be sampled.
    """

    def __init__(self, folder: Path, write: bool) -> None:
        """As Replay.open."""
        if not (folder / "count.npy").exists():
            raise ValueError(f"expected a replay in {folder}, but there is no count.npy")
        self.folder = folder
        self._lock = weakref.finalize(self, os.close, _locked(folder)) if write else None
        mode: Any = "r+" if write else "r"

        def column(name: str) -> np.ndarray:
            # A plain view: indexing through np.memmap itself is several times as slow.
            return np.load(folder / f"{name}.npy", mmap_mode=mode).view(np.ndarray)

        self._count = column("count")
        self._columns = {
            name: column(name) for name in (*_COLUMN_OF_FIELD.values(), *_KIND_OF_COLUMN)
        }
        self.dtype = np.dtype(
            [
                (field, self._columns[name].dtype, self._columns[name].shape[1:])
                for field, name in _COLUMN_OF_FIELD.items()
            ]
        )
        self.capacity = len(self._columns["d"])

    @classmethod
    def create(cls, folder: Path, dtype: np.dtype, capacity: int) -> "Replay":
        """A new log, open for writing.

        Args:
            folder: made if missing.
            dtype: ticks.token_dtype of the environment's observations.
            capacity: rows; their place on the disk is taken at once, since a disk that is full
                later would end the process by a signal.

        Raises:
            ValueError: there is a log already, or the capacity is below 2.
        """
        if capacity < 2:
            raise ValueError(f"a replay needs a capacity of at least 2 rows, but got {capacity}")
        if (folder / "count.npy").exists():
            raise ValueError(f"there is a replay in {folder} already: open it, or name another")
        kinds = {name: dtype[field] for field, name in _COLUMN_OF_FIELD.items()}
        kinds |= {name: np.dtype(kind) for name, kind in _KIND_OF_COLUMN.items()}
        for name, kind in kinds.items():
            _write_zeros(folder / f"{name}.npy", kind.base, (capacity, *kind.shape))
        _write_zeros(folder / "count.npy", np.dtype(np.int64), (1,))  # last: the log is complete
        return cls(folder, write=True)

    @classmethod
    def open(cls, folder: Path, *, write: bool = False) -> "Replay":
        """A log that `create` made, in this or another process.

        Args:
            folder: of the log.
            write: go on where the last writer stopped or was killed.

        Raises:
            ValueError: there is no log, or it has a writer already.
        """
        return cls(folder, write)

    def close(self) -> None:
        """Lets another process write; can be called twice."""
        if self._lock is not None:
            self._lock()

    @property
    def count(self) -> int:
        """Rows ever written, which is the next row's number."""
        return int(self._count[0])

    def __len__(self) -> int:
        """Rows that can be sampled."""
        return min(self.count, self.capacity - 1)

    def newest(self, name: str) -> Any:
        """A column's value in the row that was written last."""
        return self._take(name, self.count - 1)

    def column(self, name: str) -> np.ndarray:
        """(count, ...) a column from the first row on, a view.

        Raises:
            ValueError: the oldest rows have been overwritten.
        """
        if self.count > self.capacity:
            raise ValueError(
                f"the replay in {self.folder} holds only the newest {self.capacity:,} of "
                f"{self.count:,} ticks: run with a larger run.replay_ticks"
            )
        return self._columns[name][: self.count]

    def append(
        self,
        token: np.ndarray | np.void,
        action_t: int,
        source_t: Source,
        reward_t: float,
        terminated_t: bool,
        truncated_t: bool,
        d: int,
        obs_tick: int,
        version: int,
    ) -> None:
        """Logs tick t, once its reward is known.

        Args:
            token: of tick t, complete at t.
            action_t: as executed.
            source_t: whose action it was.
            reward_t, terminated_t, truncated_t: what it led to.
            d: the delay in ticks: of the decision that was executed or, without one, in force.
            obs_tick: t - d for the policy's actions, -1 for others.
            version: of the weights that decided; -1 if none did.

        Raises:
            ValueError: the log is open for reading, ticks are missing within an episode, obs_tick
                and d disagree, or the token is another environment's.
        """
        if self._lock is None or not self._lock.alive:
            raise ValueError(
                f"the replay in {self.folder} is not open for writing: pass write=True"
            )
        if token.dtype != self.dtype:
            raise ValueError(f"expected a token of {self.dtype}, but got {token.dtype}")
        count, tick = self.count, int(token["tick"])
        last = {name: int(self._take(name, count - 1)) for name in ("tick", *_ENDS)}
        follows = count > 0 and tick == last["tick"] + 1 and not any(last[name] for name in _ENDS)
        if not token["start"] and not follows:
            raise ValueError(
                f"ticks of an episode must follow each other, but {tick} came after "
                f"{last if count else 'nothing'}: a token behind a gap or an end must be a start"
            )
        if source_t == Source.POLICY and obs_tick != tick - d:
            raise ValueError(
                f"an action executed at tick {tick} with delay {d} was decided at {tick - d}, "
                f"but got obs_tick {obs_tick}"
            )
        slot = count % self.capacity
        for field, name in _COLUMN_OF_FIELD.items():
            self._columns[name][slot] = token[field]
        rest = (action_t, source_t, reward_t, terminated_t, truncated_t, d, obs_tick, version)
        for name, value in zip(_KIND_OF_COLUMN, rest, strict=True):
            self._columns[name][slot] = value
        self._count[0] = count + 1

    def sample(
        self,
        generator: np.random.Generator,
        *,
        batch_size: int,
        burn_in: int,
        train: int,
        n_step: int,
        learn_from_beta: bool,
        fresh: bool,
    ) -> Sequences:
        """Sequences that begin at uniformly drawn rows, each with the delay of its own time.

        A decision is not trainable if beta made it (but see learn_from_beta), if its delay
        reaches back across the start of its episode, if the delay changes between it and the end of
        its return, or if its return would continue at an observation that the log lacks: see below.

        Returns stop at an episode's end; one that was only cut off, by truncation or by a killed
        run, continues in value. Its state after the cut saw the tokens up to d ticks before, which
        the log holds; o_{t+m} itself, which d = 0 and fresh heads need, it does not.

        Sequences do cross episode starts: there the trunk closes its gate, so that tokens of
        another episode are without effect, and short episodes are not lost.

        Args:
            generator: draws the rows.
            batch_size: B.
            burn_in: tokens before the first decision's newest one, at least 0.
            train: P, decisions of each sequence.
            n_step: n, at least 1.
            learn_from_beta: decisions of the default behaviour are trainable, too: the executed
                action is as good a sample of what it leads to.
            fresh: return obs_t and obs_tpm.

        Raises:
            ValueError: there are not enough rows yet.
        """
        while True:
            count = self.count
            oldest = max(0, count + 1 - self.capacity)
            d_now = self._take("d", count - 1)  # 0 in an empty log
            needed = burn_in + train + n_step + int(d_now)
            if count - oldest < needed:
                raise ValueError(
                    f"expected at least {needed} rows in the replay (burn_in + train + n_step + "
                    f"d), but there are {count - oldest} of at most {self.capacity - 1}"
                )
            first = generator.integers(oldest, count - needed + 1, size=batch_size)
            sequences = self._sequences(
                first, count, burn_in, train, n_step, learn_from_beta, fresh
            )
            if first.min() + self.capacity > self.count:
                return sequences
            # The writer has meanwhile come to a slot that was read: once more.

    def _take(self, name: str, rows: Any) -> np.ndarray:
        return self._columns[name][rows % self.capacity]

    def _sequences(
        self,
        first: np.ndarray,
        count: int,
        burn_in: int,
        P: int,
        n: int,
        learn_from_beta: bool,
        fresh: bool,
    ) -> Sequences:
        seen = first[:, None] + np.arange(burn_in + P + n)
        d = self._take("d", first + burn_in)[:, None].astype(np.int64)  # (B, 1)
        # Rows of the decisions and their returns. Where d was larger than it is now, some may not
        # be written yet: the newest row stands for those, which has another d.
        t = np.minimum(first[:, None] + burn_in + d + np.arange(P + n), count - 1)

        def ahead(name: str) -> np.ndarray:  # (B, P, n + 1): at t .. t + n
            return sliding_window_view(self._take(name, t), n + 1, axis=1)

        starts_tp1 = ahead("start")[..., 1:]
        ends = starts_tp1.any(-1)
        steps = np.where(ends, starts_tp1.argmax(-1) + 1, n)
        last = steps[..., None] - 1
        terminated_tpm = np.take_along_axis(ahead("terminated_t"), last, -1)[..., 0]

        counts = np.arange(n + 1) < (steps + ~ends)[..., None]  # the state at tpm, if it is there
        same_d = ((ahead("d") == d[..., None]) | ~counts).all(-1)
        committed, whole = self._committed(first + burn_in, count, d, P, n)
        trainable = whole & same_d & ~((fresh | (d == 0)) & ends & ~terminated_tpm)
        if not learn_from_beta:
            trainable &= ahead("source_t")[..., 0] == Source.POLICY
        p_tpm = np.arange(P) + steps
        return Sequences(
            tokens={field: self._take(name, seen) for field, name in _COLUMN_OF_FIELD.items()},
            committed_t=committed[:, :P],
            action_t=ahead("action_t")[..., 0].astype(np.int64),
            reward_t=ahead("reward_t")[..., :n].copy(),
            steps=steps,
            terminated_tpm=terminated_tpm,
            committed_tpm=np.take_along_axis(committed, p_tpm[..., None], 1),
            obs_t=self._take("obs", t[:, :P]) if fresh else None,
            obs_tpm=self._take("obs", np.take_along_axis(t, p_tpm, 1)) if fresh else None,
            trainable=trainable,
        )

    def _committed(
        self, first: np.ndarray, count: int, d: np.ndarray, P: int, n: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """a_o .. a_{o+d-1} for the P + n rows o from `first` on, (B, P + n, W); and (B, P), whether
        the row o + d is of the episode of o.
        """
        W = max(int(d.max()), 1)
        o = np.minimum(first[:, None] + np.arange(P + n + W), count - 1)
        starts = self._take("start", o).cumsum(1)
        whole = np.take_along_axis(starts, np.arange(P) + d, 1) == starts[:, :P]
        actions = self._take("action_t", o[:, :-1]).astype(np.int64)
        committed = sliding_window_view(actions, W, axis=1)
        return np.where(np.arange(W) < d[..., None], committed, -1), whole


def _locked(folder: Path) -> int:
    """A descriptor that holds the writer's lock, until it is closed or the process ends."""
    descriptor = os.open(folder / "count.npy", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(
            f"the replay in {folder} has a writer already: end that process first"
        ) from None
    return descriptor


def _write_zeros(path: Path, kind: np.dtype, shape: tuple[int, ...]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    row = bytes(kind.itemsize * int(np.prod(shape[1:])))
    rows = max(1, 2**20 // len(row))
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, shape[0], rows):
            file.write(row * min(rows, shape[0] - start))
