"""Transports within one process: virtual (for proofs), inline, and threads.

A transport carries jobs to workers and results back; see ticks.Transport. Where an inference
raises, poll() raises WorkerError with the worker's traceback (the virtual and the inline transport
infer in send(), which raises the exception itself). A worker that was lost joins again after a
pause.
"""

import queue
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch

from fox.agents.realtime.clock import Clock
from fox.agents.realtime.rings import Overwritten
from fox.agents.realtime.ticks import (
    Done,
    Event,
    InferenceWorker,
    Job,
    Joined,
    Lost,
    Rows,
    WorkerFactory,
)

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds


class WorkerError(RuntimeError):
    """A worker raised an exception; the message has its traceback."""


class Agenda:
    """Events that wait for their time.

    Attributes:
        counters: how many were handed out, by the name of their class; and "Overwritten", jobs
            whose tokens were gone before their worker had read them.
    """

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self._events: list[Event] = []
        self._losses: Counter[int] = Counter()

    def add(self, event: Event) -> None:
        """Takes events in any order; of those at one time the earlier added comes first."""
        self._events.append(event)

    def drop(self, worker: int, at: float, error: Overwritten) -> None:
        """The worker read too late: its job is lost, and it is ready for the next."""
        self.counters["Overwritten"] += 1
        self.add(Lost(worker, at, str(error)))
        self.add(Joined(worker, at))

    def until(self, now: float) -> list[Event]:
        """Removes and returns the events with `at` <= now, in the order of time."""
        self._events.sort(key=lambda event: event.at)
        number = sum(event.at <= now for event in self._events)
        events, self._events = self._events[:number], self._events[number:]
        for event in events:
            self.counters[type(event).__name__] += 1
            if isinstance(event, Done):
                self._losses[event.worker] = 0
        return events

    def lose(self, worker: int, at: float, reason: str) -> float:
        """Forgets what the worker has done; `Lost` takes its place.

        Returns:
            The pause before a new one is made, in seconds: 0.1, twice as long with every further
            loss, 5 at most; a job that is done makes it 0.1 again.
        """
        self._events = [event for event in self._events if event.worker != worker]
        self.add(Lost(worker, at, reason))
        self._losses[worker] += 1
        return min(FIRST_PAUSE * 2.0 ** (self._losses[worker] - 1), LONGEST_PAUSE)


class VirtualTransport:
    """Infers at once, and says so as late as it is told to: for a VirtualClock.

    Args:
        factory: makes the workers.
        rows: what they read.
        seconds: how long a job takes.
    """

    def __init__(self, factory: WorkerFactory, rows: Rows, seconds: Callable[[Job], float]) -> None:
        self._factory, self._rows, self._seconds = factory, rows, seconds
        self._workers: dict[int, InferenceWorker] = {}
        self._agenda = Agenda()
        self._now = 0.0
        self.counters = self._agenda.counters

    def start(self, workers: Iterable[int]) -> None:
        """Makes the workers."""
        for worker in workers:
            self._workers[worker] = self._factory(worker)

    def send(self, job: Job, now: float) -> None:
        """Infers; the result appears when its seconds have passed."""
        self._now = now
        with torch.inference_mode():
            features, version = self._workers[job.worker].infer(job, self._rows)
        seconds = self._seconds(job)
        done = Done(job.worker, job.id, features, version, now, seconds, at=now + seconds)
        self._agenda.add(done)

    def poll(self, now: float) -> list[Event]:
        """What has happened up to `now`."""
        self._now = now
        events = self._agenda.until(now)
        for event in events:
            if isinstance(event, Joined):
                self._workers[event.worker] = self._factory(event.worker)
        return events

    def kill(self, worker: int) -> None:
        """Forgets the worker, at the time of the last send or poll; one that is gone stays so."""
        if self._workers.pop(worker, None) is not None:
            seconds = self._agenda.lose(worker, self._now, "killed")
            self._agenda.add(Joined(worker, self._now + seconds))

    def close(self) -> None:
        """Forgets the workers."""
        self._workers.clear()


class InlineTransport:
    """Infers in send(), which lasts as long as the inference: everything waits.

    Args:
        factory: makes the workers.
        rows: what they read.
        clock: for the times of events.
    """

    def __init__(self, factory: WorkerFactory, rows: Rows, clock: Clock) -> None:
        self._factory, self._rows, self._clock = factory, rows, clock
        self._workers: dict[int, InferenceWorker] = {}
        self._agenda = Agenda()
        self.counters = self._agenda.counters

    def start(self, workers: Iterable[int]) -> None:
        """Makes the workers."""
        for worker in workers:
            self._workers[worker] = self._factory(worker)

    def send(self, job: Job, now: float) -> None:
        """Infers."""
        result = finish(self._workers[job.worker], job, self._rows, self._clock.now)
        if isinstance(result, Overwritten):
            self._agenda.drop(job.worker, self._clock.now(), result)
        else:
            self._agenda.add(result)

    def poll(self, now: float) -> list[Event]:
        """What has happened up to `now`."""
        return self._agenda.until(now)

    def kill(self, worker: int) -> None:
        """Makes a new worker at once: nothing else happens meanwhile."""
        self._agenda.lose(worker, self._clock.now(), "killed")
        self._workers[worker] = self._factory(worker)
        self._agenda.add(Joined(worker, self._clock.now()))

    def close(self) -> None:
        """Forgets the workers."""
        self._workers.clear()


@dataclass(eq=False)
class _Life:
    """What a worker's number means until it is lost."""

    worker: int
    inbox: "queue.SimpleQueue[Job | None]" = field(default_factory=queue.SimpleQueue)


class ThreadTransport:
    """A thread for each worker: for few workers, policies that wait for I/O, or one GPU.

    Nothing can end a thread: one that is killed is given up, what it still does is ignored, and a
    new one takes its number at once.

    Args:
        factory: makes the workers, each in its own thread.
        rows: what they read.
        clock: for the times of events.
    """

    def __init__(self, factory: WorkerFactory, rows: Rows, clock: Clock) -> None:
        self._factory, self._rows, self._clock = factory, rows, clock
        self._lives: dict[int, _Life] = {}
        self._threads: dict[int, threading.Thread] = {}
        self._reports: queue.SimpleQueue[tuple[_Life, Event | Overwritten | str]]
        self._reports = queue.SimpleQueue()
        self._agenda = Agenda()
        self.counters = self._agenda.counters

    def start(self, workers: Iterable[int]) -> None:
        """Starts the threads; returns when each has made its worker.

        Raises:
            WorkerError: the making of one raised.
        """
        for worker in workers:
            self._launch(worker)
        try:
            for _ in self._lives:
                self._receive(*self._reports.get())
        except BaseException:
            self.close()
            raise
        self._agenda.until(self._clock.now())  # nobody has lost these: they need not join
        self.counters.clear()

    def send(self, job: Job, now: float) -> None:
        """Hands the job to the worker's thread."""
        self._lives[job.worker].inbox.put(job)

    def poll(self, now: float) -> list[Event]:
        """What has happened up to `now`.

        Raises:
            WorkerError: an inference, or the making of a new worker, raised.
        """
        while not self._reports.empty():
            self._receive(*self._reports.get())
        return self._agenda.until(now)

    def kill(self, worker: int) -> None:
        """Gives the worker's thread up, and starts another."""
        self._lives[worker].inbox.put(None)
        self._agenda.lose(worker, self._clock.now(), "killed: its thread was given up")
        self._launch(worker)

    def close(self) -> None:
        """Ends the threads when each has finished its job; those that were given up are left."""
        for life in self._lives.values():
            life.inbox.put(None)
        for thread in self._threads.values():
            thread.join()
        self._lives.clear()
        self._threads.clear()

    def _launch(self, worker: int) -> None:
        life = self._lives[worker] = _Life(worker)
        name = f"worker-{worker}"
        thread = threading.Thread(target=self._live, args=(life,), name=name, daemon=True)
        self._threads[worker] = thread
        thread.start()

    def _receive(self, life: _Life, report: Event | Overwritten | str) -> None:
        if self._lives.get(life.worker) is not life:
            return  # of a thread that was given up
        if isinstance(report, str):
            raise WorkerError(f"worker {life.worker} raised\n{report}")
        if isinstance(report, Overwritten):
            self._agenda.drop(life.worker, self._clock.now(), report)
        else:
            self._agenda.add(report)

    def _live(self, life: _Life) -> None:
        """What a worker's thread does."""
        try:
            torch.set_num_threads(1)
            worker = self._factory(life.worker)
            self._reports.put((life, Joined(life.worker, self._clock.now())))
            while (job := life.inbox.get()) is not None:
                self._reports.put((life, finish(worker, job, self._rows, self._clock.now)))
        except BaseException:  # whatever it is, poll() raises it
            self._reports.put((life, traceback.format_exc()))


def finish(
    worker: InferenceWorker, job: Job, rows: Rows, now: Callable[[], float]
) -> Done | Overwritten:
    """Infers, and times it; says so where the tokens are gone."""
    start = now()
    try:
        with torch.inference_mode():
            features, version = worker.infer(job, rows)
    except Overwritten as error:
        return error
    at = now()
    return Done(job.worker, job.id, features, version, start, at - start, at)


@dataclass(frozen=True)
class Padded:
    """A WorkerFactory whose inferences last longer, asleep: a model too slow for this machine.

    Attributes:
        factory: makes the workers that infer.
        seconds: how long each job, or this job, lasts at least; a function must be picklable
            where workers are processes.
    """

    factory: WorkerFactory
    seconds: float | Callable[[Job], float]

    def __call__(self, worker: int) -> InferenceWorker:
        return _PaddedWorker(self.factory(worker), self.seconds)


@dataclass(frozen=True)
class _PaddedWorker:
    worker: InferenceWorker
    seconds: float | Callable[[Job], float]

    def infer(self, job: Job, rows: Rows) -> tuple[np.ndarray, int]:
        seconds = self.seconds(job) if callable(self.seconds) else self.seconds
        until = time.perf_counter() + seconds
        result = self.worker.infer(job, rows)
        time.sleep(max(0.0, until - time.perf_counter()))
        return result
