"""The words of the realtime agent: jobs, plans, events, and the token that each tick leaves.

Legend: tick k is at time t_k = t0 + k * M, with M the environment's step in seconds. Observation
o_k is the state at t_k before action a_k; a_k yields reward r_k and o_{k+1}; d is the action delay
in ticks; F is the number of features that an inference delivers.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np


class Source(IntEnum):
    """Why an action was executed at a tick: the policy's, or the default behaviour's (beta)."""

    POLICY = 0
    BETA_LATE = 1  # the inference for this tick was not done in time
    BETA_UNDISPATCHED = 2  # no worker was idle d ticks ago
    BETA_LOST = 3  # the worker with the job for this tick was lost
    BETA_RESET = 4  # the first d ticks of an episode, which no observation of it can reach
    BETA_HOLE = 5  # no job was due because d had grown


class Outcome(IntEnum):
    """What became of a finished inference."""

    ON_TIME = 0
    LATE = 1
    STALE_EPISODE = 2
    SUPERSEDED = 3  # a newer observation has the same due tick, after d has shrunk
    UNKNOWN = 4  # of a job that had been given up


@dataclass(frozen=True, slots=True)
class Job:
    """One inference: worker `worker` reads o_{obs_tick}, and its action is due at tick `due`."""

    id: int
    worker: int
    obs_tick: int
    due: int
    episode: int


@dataclass(frozen=True, slots=True)
class TickPlan:
    """What happens at a tick.

    Attributes:
        tick: k.
        source: whose action is executed.
        job: the job whose result is executed, if source is POLICY.
        dispatch: the job that gets o_k, if a worker is idle.
        killed: jobs given up by the watchdog: their workers are to be killed.
    """

    tick: int
    source: Source
    job: Job | None
    dispatch: Job | None
    killed: tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """A worker has finished a job.

    Attributes:
        worker, job_id: which.
        features: (F,) float32, what the head needs at the due tick.
        version: of the weights that computed them.
        start: seconds on the clock, when the inference began.
        seconds: how long it took.
        at: seconds on the clock, when the result was there.
    """

    worker: int
    job_id: int
    features: np.ndarray
    version: int
    start: float
    seconds: float
    at: float


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker is gone, and its job with it; `reason` says how (exit code, traceback)."""

    worker: int
    at: float
    reason: str


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker (new or respawned) is ready for its first job."""

    worker: int
    at: float


Event = Done | Lost | Joined


def token_dtype(observation: np.ndarray) -> np.dtype:
    """The row that tick k leaves for whoever reads the past; complete at t_k.

    tick k, its episode, obs o_k, action and source of tick k - 1 as executed (noop and BETA_RESET
    at an episode's start), reward r_{k-1} (0 at a start), and start: whether k begins an episode.
    """
    return np.dtype(
        [
            ("tick", np.int64),
            ("episode", np.int64),
            ("obs", observation.dtype, observation.shape),
            ("action", np.int16),
            ("source", np.uint8),
            ("reward", np.float32),
            ("start", np.bool_),
        ]
    )


class Rows(Protocol):
    """The newest tokens, as a worker reads them."""

    def read(self, first: int, last: int) -> np.ndarray:
        """(last - first + 1,) tokens of the ticks first..last, copied; those before the first tick
        of the run are left out.

        Raises:
            LookupError: one is not written yet, or overwritten (rings.Overwritten, counted).
        """


class InferenceWorker(Protocol):
    """A policy as one worker holds it: its weights, its cache."""

    def infer(self, job: Job, rows: Rows) -> tuple[np.ndarray, int]:
        """Features (F,) float32 of all tokens up to job.obs_tick, and the weights' version."""


# Called once in the worker's own thread, process or actor, with its number: must be picklable.
WorkerFactory = Callable[[int], InferenceWorker]


class Transport(Protocol):
    """Carries jobs to workers and results back; never blocks (but the inline one, which is asked
    to).

    Attributes:
        counters: how many events were handed out, by the name of their class; and "Overwritten",
            jobs whose tokens were gone.
    """

    counters: Counter[str]

    def start(self, workers: "range | list[int]") -> None:
        """Starts the workers; returns when all are ready."""

    def send(self, job: Job, now: float) -> None:
        """Gives a job to its idle worker; its token has been published."""

    def poll(self, now: float) -> list[Event]:
        """What has happened up to `now`, in order of time, with `at` <= now."""

    def kill(self, worker: int) -> None:
        """Ends a worker at once; `Lost` follows, and `Joined` once it was respawned."""

    def close(self) -> None:
        """Ends all workers and frees what is shared; can be called twice."""
