"""RayTransport: workers as Ray actors, for inference on many machines.

No memory is shared: a job travels with the tokens that its worker has not seen yet, and weights
travel through Ray's object store, once per version and host. A call costs milliseconds, so this is
for hosts, not for cores.
"""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fox.agents.cluster import import_ray, start_ray
from fox.agents.realtime.rings import ObservationRing, Overwritten
from fox.agents.realtime.ticks import Done, Event, InferenceWorker, Job, Joined, WorkerFactory
from fox.agents.realtime.transport import Agenda, WorkerError, finish
from fox.agents.weights import WeightBuffers

if TYPE_CHECKING:
    from ray import ObjectRef


class RayTransport:
    """An actor for each worker, on whatever hosts the connected Ray has.

    Each actor takes one of Ray's CPUs; start() waits until they are free. Without a connection it
    starts a Ray on this host, without dashboard, which close() ends. An actor that dies without a
    job is noticed at its next job, which is lost. Times are those of the calls of poll(), since
    clocks of hosts differ; only `seconds` is the worker's own.

    Args:
        factory: makes the workers, each in its own actor: picklable, with what it holds.
        rows: where their tokens are read from, here.
        history: how many ticks before its own a job may look back to.
        weights: those in the factory, if it has any; workers get copies.

    Attributes:
        counters: how many events were handed out; see transport.Agenda.

    Raises:
        ModuleNotFoundError: Ray is not installed.
    """

    def __init__(
        self,
        factory: WorkerFactory,
        rows: ObservationRing,
        history: int,
        weights: WeightBuffers | None = None,
    ) -> None:
        self._ray = import_ray()
        self._bundle = factory, weights  # one pickle, so that they stay together
        self._rows, self._history, self._weights = rows, history, weights
        self._agenda = Agenda()
        self.counters = self._agenda.counters
        self._actors: dict[int, Any] = {}
        self._calls: dict[ObjectRef, tuple[int, Job | None]] = {}  # None: making the worker
        self._sent: dict[int, int] = {}  # the last tick that each worker has
        self._version: dict[int, int] = {}  # of the weights that each worker has
        self._stored: tuple[ObjectRef | None, int] = (None, -1)
        self._returns: dict[int, float] = {}  # when a lost worker is made again
        self._now = 0.0
        self._owner = False

    def start(self, workers: Iterable[int]) -> None:
        """Starts the actors; returns when each has made its worker.

        Raises:
            WorkerError: the making of one raised.
        """
        workers = list(workers)
        self._owner = start_ray(len(workers))
        try:
            for worker in workers:
                self._make(worker)
            while self._calls:
                self._collect(self._now, timeout=None)
            for event in self._agenda.until(self._now):
                if not isinstance(event, Joined):
                    raise WorkerError(f"worker {event.worker} was lost before it was ready")
        except BaseException:
            self.close()
            raise
        self.counters.clear()  # nobody had lost these: they need not join

    def send(self, job: Job, now: float) -> None:
        """Calls the actor, with the tokens and the weights that it lacks."""
        worker = job.worker
        first = max(self._sent[worker] + 1, job.obs_tick - self._history)
        rows = self._rows.read(first, job.obs_tick)
        self._sent[worker] = job.obs_tick
        flat, version = self._newest_weights()
        if version == self._version[worker]:
            flat = None
        self._version[worker] = version
        call = self._actors[worker].infer.remote(job, rows, flat, version)
        self._calls[call] = worker, job

    def poll(self, now: float) -> list[Event]:
        """What has happened up to `now`.

        Raises:
            WorkerError: an inference, or the making of a new worker, raised.
        """
        self._now = now
        for worker in [worker for worker, at in self._returns.items() if at <= now]:
            del self._returns[worker]
            self._make(worker)
        self._collect(now, timeout=0)
        return self._agenda.until(now)

    def kill(self, worker: int) -> None:
        """Ends the actor; one that is gone stays so until its pause is over."""
        if worker in self._actors:
            self._ray.kill(self._actors[worker])
            self._lose(worker, self._now, "killed")

    def close(self) -> None:
        """Kills the actors, and ends a Ray that was started here."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors.clear()
        self._calls.clear()
        self._stored = (None, -1)
        if self._owner:
            self._ray.shutdown()
            self._owner = False

    def _make(self, worker: int) -> None:
        actor: Any = self._ray.remote(_Actor).options(num_cpus=1).remote()
        self._actors[worker] = actor
        self._sent[worker] = self._version[worker] = -1
        call = actor.make.remote(self._bundle, worker, self._rows.dtype, self._history)
        self._calls[call] = worker, None

    def _newest_weights(self) -> "tuple[ObjectRef | None, int]":
        """The stored weights, after newer ones were put into the store."""
        if self._weights is not None and self._weights.version > self._stored[1]:
            with self._weights.pinned(0) as (flat, version):  # no worker is here: row 0 is free
                self._stored = self._ray.put(flat), version
        return self._stored

    def _collect(self, now: float, timeout: float | None) -> None:
        """Takes in the calls that have ended; waits for one if the timeout is None."""
        if not self._calls:
            return
        number = len(self._calls) if timeout == 0 else 1
        ended, _ = self._ray.wait(list(self._calls), num_returns=number, timeout=timeout)
        for call in ended:
            worker, job = self._calls.pop(call)
            self._take(call, worker, job, now)

    def _take(self, call: "ObjectRef", worker: int, job: Job | None, now: float) -> None:
        try:
            result = self._ray.get(call)
        except self._ray.exceptions.RayActorError as error:
            self._lose(worker, now, str(error))
            return
        except self._ray.exceptions.RayTaskError as error:
            raise WorkerError(f"worker {worker} raised\n{error}") from None
        if job is None:
            self._agenda.add(Joined(worker, now))
        elif isinstance(result, Overwritten):
            self._agenda.drop(worker, now, result)
        else:
            features, version, seconds = result
            start = now - seconds
            self._agenda.add(Done(worker, job.id, features, version, start, seconds, at=now))

    def _lose(self, worker: int, at: float, reason: str) -> None:
        del self._actors[worker]
        self._calls = {call: of for call, of in self._calls.items() if of[0] != worker}
        self._returns[worker] = at + self._agenda.lose(worker, at, reason)


class _Actor:
    """A worker on its host, with the tokens that it has been sent."""

    def make(
        self,
        bundle: tuple[WorkerFactory, WeightBuffers | None],
        worker: int,
        dtype: np.dtype,
        history: int,
    ) -> None:
        torch.set_num_threads(1)
        factory, self._weights = bundle
        self._ring = ObservationRing(dtype, d=1, history=history, shared=False)
        self._worker: InferenceWorker = factory(worker)

    def infer(
        self, job: Job, rows: np.ndarray, flat: np.ndarray | None, version: int
    ) -> tuple[np.ndarray, int, float] | Overwritten:
        for row in rows:
            self._ring.publish(row)
        if flat is not None and self._weights is not None:
            self._weights.publish(flat, version)
        result = finish(self._worker, job, self._ring, time.perf_counter)
        if isinstance(result, Overwritten):
            return result
        return result.features, result.version, result.seconds
