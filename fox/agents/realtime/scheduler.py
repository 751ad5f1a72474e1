"""TickDispatcher: which worker gets which observation, and whose action each tick executes.

A pure state machine: no clock, no randomness, no input or output, so that the same object runs in
virtual time, on a wall clock and in a replay. Legend: tick k, action delay d in ticks, beta the
default behaviour of ticks for which no action has arrived.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from fox.agents.realtime.ticks import Job, Outcome, Source, TickPlan


@dataclass(slots=True)
class Counters:
    """What became of every tick and of every job; two sums hold at all times.

    ticks = sum of sources = dispatched + undispatched
    dispatched = applied + waiting + late + lost + stale + superseded + in_flight
    """

    ticks: int = 0
    sources: dict[Source, int] = field(default_factory=lambda: dict.fromkeys(Source, 0))
    dispatched: int = 0
    undispatched: int = 0  # ticks whose observation went to nobody
    applied: int = 0
    overdue: int = 0  # of those applied: after their due tick (late="newest")
    waiting: int = 0
    late: int = 0
    lost: int = 0
    stale: int = 0  # finished or waiting when their episode was over
    superseded: int = 0
    in_flight: int = 0
    unknown: int = 0  # reports about jobs that had been given up
    killed: int = 0  # of those lost: given up by the watchdog

    @property
    def coverage(self) -> float:
        """Share of ticks with an on-time policy action, the first d of each episode left out."""
        reachable = self.ticks - self.sources[Source.BETA_RESET]
        return (self.applied - self.overdue) / reachable if reachable else 0.0


class TraceRow(NamedTuple):
    """One tick as it was played; obs_tick, worker and version are -1 where beta acted."""

    tick: int
    source: Source
    obs_tick: int
    worker: int
    seconds: float  # that the inference took; 0 where beta acted
    version: int
    d: int  # that the observation of this tick is dispatched with
    episode: int


class TickDispatcher:
    """Gives o_k to one idle worker with due tick k + d, and executes what is due.

    Early results wait for their tick, so every policy action is exactly d ticks old; an
    observation for which no worker is idle is given to nobody, since a queue would only add age.
    Who computes what is of no account: a crash costs the due tick of the lost job.

    Call, at every tick: on_done, on_lost, on_joined for all that has happened up to t_k; on_reset
    if o_k begins an episode; then on_tick(k).

    Args:
        workers: the numbers of those that are ready.
        d: action delay in ticks, from 1.
        late: what a result is worth after its due tick: nothing ("drop"), or it is executed at the
            next tick that would be beta's, if no newer one has been ("newest"). Only "drop" keeps
            the delay constant.
        watchdog: a job is given up when it is older than watchdog * d ticks.

    Attributes:
        d, episode: in force now.
        counters: what became of all ticks and jobs.
        trace: one TraceRow per tick; it grows until the caller clears it.

    Raises:
        ValueError: d or watchdog is below 1, late is another word, a worker is named twice.
    """

    def __init__(
        self,
        workers: Iterable[int],
        d: int,
        *,
        late: Literal["drop", "newest"] = "drop",
        watchdog: int = 3,
    ) -> None:
        if late not in ("drop", "newest"):
            raise ValueError(f"late must be 'drop' or 'newest', but got {late!r}")
        if watchdog < 1:
            raise ValueError(f"watchdog must be at least 1 (times d ticks), but got {watchdog}")
        self.set_delay(d)
        self.episode = 0
        self.counters = Counters()
        self.trace: list[TraceRow] = []
        self._late, self._watchdog = late, watchdog
        self._idle: deque[int] = deque()  # longest idle first: no worker's cache grows old
        self._jobs: dict[int, Job | None] = {}  # of each live worker
        self._due: dict[int, Job | None] = {}  # promised to a tick; None: no worker was idle
        self._ready: dict[int, tuple[float, int]] = {}  # job id -> seconds, version
        self._overdue: Job | None = None  # the newest late result, if it may be executed yet
        self._acted_on = -1  # obs_tick of the newest action of this episode
        self._expiring: dict[int, list[Job]] = {}  # by the tick that gives them up
        self._next: int | None = None  # tick; any tick may be the first
        self._reset_at: int | None = None
        self._reachable = 0  # the first tick that an observation of this episode is due at
        for worker in workers:
            self.on_joined(worker)

    def on_tick(self, k: int, *, missed: bool = False) -> TickPlan:
        """Plays tick k, of which everything up to t_k has been reported.

        Args:
            k: one more than at the last call; the first may be any.
            missed: the world has run this tick with beta already, since the caller came too late
                for it: nothing is executed and nobody gets its observation.

        Raises:
            ValueError: k does not follow the last tick.
        """
        if self._next is not None and k != self._next:
            raise ValueError(f"expected tick {self._next} after the last one, but got {k}")
        if self._reset_at == k or self._next is None:
            self._reachable = k + self.d
        self._next = k + 1
        killed = self._give_up(k)
        source, job = self._choose(k, missed)
        episode, row = self.episode, (-1, -1, 0.0, -1)
        if job is not None:
            row = (job.obs_tick, job.worker, *self._apply(job, k))
        dispatch = self._dispatch(k, missed)
        self.counters.ticks += 1
        self.counters.sources[source] += 1
        self.counters.undispatched += dispatch is None
        self.trace.append(TraceRow(k, source, *row, self.d, episode))
        return TickPlan(k, source, job, dispatch, killed)

    def on_done(self, worker: int, job_id: int, seconds: float, version: int = -1) -> Outcome:
        """A worker has finished a job, after so many seconds, and is idle again.

        Its result is executed later if the outcome is ON_TIME (with late="newest" perhaps if LATE).
        """
        job = self._jobs.get(worker)
        if job is None or job.id != job_id:
            self.counters.unknown += 1
            return Outcome.UNKNOWN
        self._jobs[worker] = None
        self._idle.append(worker)
        self.counters.in_flight -= 1
        if job.episode != self.episode:
            self.counters.stale += 1
            return Outcome.STALE_EPISODE
        if self._next is not None and job.due < self._next:
            self._retire(job, (seconds, version))
            return Outcome.LATE
        if self._due[job.due] is not job:
            self.counters.superseded += 1
            return Outcome.SUPERSEDED
        self._ready[job.id] = (seconds, version)
        self.counters.waiting += 1
        return Outcome.ON_TIME

    def on_lost(self, worker: int) -> Job | None:
        """A worker is gone; the job that it held, which is never given to another one."""
        job = self._jobs.pop(worker, None)
        if job is not None:
            self.counters.in_flight -= 1
            self.counters.lost += 1
        elif worker in self._idle:
            self._idle.remove(worker)
        return job

    def on_joined(self, worker: int) -> None:
        """A worker, new or respawned, is ready for a job.

        Raises:
            ValueError: it is there already.
        """
        if worker in self._jobs:
            raise ValueError(
                f"worker {worker} is there already: on_joined is for new workers, and for lost "
                "ones after on_lost"
            )
        self._jobs[worker] = None
        self._idle.append(worker)

    def on_reset(self, k: int, episode: int) -> None:
        """o_k, of the next tick, begins another episode: all older jobs are of no use.

        Raises:
            ValueError: k is not the next tick, or the episode's number does not grow.
        """
        if self._next is not None and (k != self._next or episode <= self.episode):
            raise ValueError(
                f"expected a reset at the next tick, {self._next}, to an episode above "
                f"{self.episode}, but got tick {k}, episode {episode}"
            )
        self.episode, self._reset_at = episode, k
        self.counters.stale += len(self._ready)
        self.counters.waiting -= len(self._ready)
        self._ready.clear()
        self._due.clear()
        self._overdue, self._acted_on = None, -1

    def set_delay(self, d: int) -> None:
        """From the next dispatch on, actions are due d ticks after their observation.

        A growth by n leaves n holes (BETA_HOLE); a shrinkage by n makes n jobs of older
        observations give way to newer ones (SUPERSEDED).

        Raises:
            ValueError: d is below 1.
        """
        if d < 1:
            raise ValueError(f"the delay must be at least 1 tick, but got {d}")
        self.d = d

    def _give_up(self, k: int) -> tuple[Job, ...]:
        """The jobs that the watchdog ends at tick k; their workers are gone until they join."""
        old = self._expiring.pop(k, [])
        killed = tuple(job for job in old if self._jobs.get(job.worker) is job)
        for job in killed:
            self.on_lost(job.worker)
        self.counters.killed += len(killed)
        return killed

    def _choose(self, k: int, missed: bool) -> tuple[Source, Job | None]:
        """Whose action tick k executes, and the job if it is the policy's."""
        promised = k in self._due
        job = self._due.pop(k, None)
        if missed and job is not None and job.id in self._ready:
            self.counters.waiting -= 1
            self._retire(job, self._ready.pop(job.id))
            return Source.BETA_LATE, None
        if job is not None and job.id in self._ready:
            return Source.POLICY, job
        if self._overdue is not None and not missed:
            return Source.POLICY, self._overdue
        if job is None:
            if promised:
                return Source.BETA_UNDISPATCHED, None
            return (Source.BETA_RESET if k < self._reachable else Source.BETA_HOLE), None
        alive = self._jobs.get(job.worker) is job
        return (Source.BETA_LATE if alive else Source.BETA_LOST), None

    def _apply(self, job: Job, k: int) -> tuple[float, int]:
        """Takes the result of a job out of those that wait; its seconds and version."""
        result = self._ready.pop(job.id)
        self._acted_on = max(self._acted_on, job.obs_tick)
        self.counters.waiting -= 1
        self.counters.applied += 1
        self.counters.overdue += job.due < k
        if self._overdue is job:
            self._overdue = None
        elif self._overdue is not None and self._overdue.obs_tick < self._acted_on:
            self._drop_overdue()
        return result

    def _retire(self, job: Job, result: tuple[float, int]) -> None:
        """What becomes of a result after its due tick."""
        newest = max(self._acted_on, self._overdue.obs_tick if self._overdue else -1)
        if self._late == "drop" or job.obs_tick < newest:
            self.counters.late += 1
            return
        if self._overdue is not None:
            self._drop_overdue()
        self._overdue = job
        self._ready[job.id] = result
        self.counters.waiting += 1

    def _drop_overdue(self) -> None:
        assert self._overdue is not None
        del self._ready[self._overdue.id]
        self._overdue = None
        self.counters.waiting -= 1
        self.counters.late += 1

    def _dispatch(self, k: int, missed: bool) -> Job | None:
        """Gives o_k to an idle worker, if there is one."""
        due = k + self.d
        if missed or not self._idle:
            self._due.setdefault(due, None)
            return None
        job = Job(self.counters.dispatched, self._idle.popleft(), k, due, self.episode)
        older = self._due.get(due)
        if older is not None and older.id in self._ready:
            del self._ready[older.id]
            self.counters.waiting -= 1
            self.counters.superseded += 1
        self._due[due] = self._jobs[job.worker] = job
        self._expiring.setdefault(k + self._watchdog * self.d + 1, []).append(job)
        self.counters.dispatched += 1
        self.counters.in_flight += 1
        return job
