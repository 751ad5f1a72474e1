"""ProcessTransport: a process for each worker, which can crash, hang or be killed by anybody.

The workers are forked from one server that has imported torch already. Tokens, weights and results
are in shared memory; one pipe per worker carries jobs there and their numbers back. A worker whose
dispatcher is gone, even by kill -9, ends at once; the memory has no name and goes with them.
"""

import heapq
import multiprocessing
import queue
import selectors
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess

import torch

from fox.agents.realtime.rings import Mailboxes, ObservationRing, Overwritten
from fox.agents.realtime.ticks import Done, Event, Job, Joined, Lost, WorkerFactory
from fox.agents.realtime.transport import Agenda, WorkerError, finish
from fox.agents.signals import end_with_parent, spared_ctrl_c

# The first call of an operator of our own imports torch._dynamo: 1.5 s in each worker. The loop is
# for its imports: every worker imports the script that has started it.
PRELOAD = ["torch._dynamo", "fox.agents.realtime.caches", "fox.agents.realtime.loop", __name__]
LONGEST_REPORT = 8192  # characters of a traceback: what fits a pipe needs no reader

# What a worker says: that it is ready, which job is done, what it read too late, how it failed.
Message = None | int | Overwritten | str


@dataclass(eq=False)
class _Child:
    worker: int
    process: ForkServerProcess
    pipe: Connection
    ready: bool = False


class ProcessTransport:
    """A process for each worker: for models on CPUs, and for code that may crash.

    Nothing here waits for a worker, but start(). Every worker infers with one thread. Times are
    those of time.perf_counter, which all processes of a machine share: for a WallClock.

    Args:
        factory: makes the workers, each in its own process: picklable, with what it holds.
        ring: what they read, shared.
        features: F, of their results.

    Attributes:
        counters: how many events were handed out; see transport.Agenda.
    """

    def __init__(self, factory: WorkerFactory, ring: ObservationRing, *, features: int) -> None:
        self._factory, self._ring, self._features = factory, ring, features
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)
        self._agenda = Agenda()
        self.counters = self._agenda.counters
        self._children: dict[int, _Child] = {}
        self._selector = selectors.DefaultSelector()
        self._starting = threading.Lock()
        self._lost: queue.SimpleQueue[tuple[float, int] | None] = queue.SimpleQueue()
        self._started: queue.SimpleQueue[_Child | WorkerError] = queue.SimpleQueue()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)

    @property
    def pids(self) -> dict[int, int]:
        """The process of each worker that is ready."""
        ready = [child for child in self._children.values() if child.ready]
        return {child.worker: child.process.pid for child in ready if child.process.pid}

    def start(self, workers: Iterable[int]) -> None:
        """Starts the processes; returns when each has made its worker.

        Raises:
            WorkerError: the making of one raised, or ended its process.
            ValueError: the ring, or weights in the factory, are not shared.
        """
        workers = list(workers)
        self._mailboxes = Mailboxes(max(workers) + 1, self._features, shared=True)
        try:
            for worker in workers:
                self._adopt(self._spawn(worker))
            while not all(child.ready for child in self._children.values()):
                self._listen(time.perf_counter(), timeout=None)
                for event in self._agenda.until(time.perf_counter()):
                    if isinstance(event, Lost):
                        raise WorkerError(f"worker {event.worker} was not ready: {event.reason}")
        except BaseException:
            self.close()
            raise
        self.counters.clear()  # nobody had lost these: they need not join
        self._keeper.start()

    def send(self, job: Job, now: float) -> None:
        """Writes the job into its worker's pipe, which is empty."""
        with suppress(OSError):  # it has just died: poll() will say so
            self._children[job.worker].pipe.send(job)

    def poll(self, now: float) -> list[Event]:
        """What has happened up to `now`.

        Raises:
            WorkerError: an inference, or the making of a new worker, raised; or no new process
                could be started.
        """
        while not self._started.empty():
            child = self._started.get()
            if isinstance(child, WorkerError):
                raise child
            self._adopt(child)
        self._listen(now, timeout=0)
        return self._agenda.until(now)

    def kill(self, worker: int) -> None:
        """SIGKILL; a worker that is gone stays so until its pause is over."""
        if worker in self._children:
            self._children[worker].process.kill()

    def close(self) -> None:
        """Kills all workers: they hold nothing that could be left behind."""
        if self._keeper.is_alive():
            self._lost.put(None)
            self._keeper.join()
        children = list(self._children.values())
        while not self._started.empty():
            child = self._started.get()
            if isinstance(child, _Child):
                children.append(child)
        for child in children:
            child.process.kill()
        for child in children:
            child.process.join()
            child.process.close()
            child.pipe.close()
        self._children.clear()
        self._selector.close()

    def _spawn(self, worker: int) -> _Child:
        ours, theirs = multiprocessing.Pipe()
        arguments = (worker, self._factory, self._ring, self._mailboxes, theirs)
        process = self._context.Process(
            target=_work, args=arguments, name=f"worker-{worker}", daemon=True
        )
        try:
            with self._starting, spared_ctrl_c():
                process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return _Child(worker, process, ours)

    def _adopt(self, child: _Child) -> None:
        self._children[child.worker] = child
        self._selector.register(child.pipe, selectors.EVENT_READ, child)
        self._selector.register(child.process.sentinel, selectors.EVENT_READ, child)

    def _listen(self, now: float, timeout: float | None) -> None:
        """Takes what the workers have said, and buries those that have ended."""
        for key, _ in self._selector.select(timeout):
            child: _Child = key.data
            if key.fileobj is child.pipe:
                self._receive(child, now)
                continue
            while not child.pipe.closed and child.pipe.poll():
                self._receive(child, now)  # its last words
            self._bury(child, now)

    def _receive(self, child: _Child, now: float) -> None:
        if child.pipe.closed:
            return
        try:
            message: Message = child.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._selector.unregister(child.pipe)
            child.pipe.close()
            child.process.kill()  # whatever it does, it does not listen
            return
        if message is None:
            child.ready = True
            self._agenda.add(Joined(child.worker, now))
        elif isinstance(message, int):
            result = self._mailboxes.read(child.worker, message)
            self._agenda.add(Done(child.worker, message, *result, at=result[2] + result[3]))
        elif isinstance(message, Overwritten):
            self._agenda.drop(child.worker, now, message)
        else:
            raise WorkerError(f"worker {child.worker} raised\n{message}")

    def _bury(self, child: _Child, now: float) -> None:
        """Says that the worker is lost, and has a new one started after a pause."""
        # Starting a process asks for the others' exit codes, too, and each can be read only once.
        if not self._starting.acquire(blocking=False):
            return  # until the next poll: the sentinel stays readable
        try:
            code = child.process.exitcode
        finally:
            self._starting.release()
        if not child.pipe.closed:
            self._selector.unregister(child.pipe)
            child.pipe.close()
        self._selector.unregister(child.process.sentinel)
        child.process.close()
        del self._children[child.worker]
        seconds = self._agenda.lose(child.worker, now, f"its process ended with exit code {code}")
        self._lost.put((time.perf_counter() + seconds, child.worker))

    def _keep(self) -> None:
        """Starts new workers, in a thread of its own: each takes milliseconds, or more."""
        waiting: list[tuple[float, int]] = []
        while True:
            seconds = max(0.0, waiting[0][0] - time.perf_counter()) if waiting else None
            try:
                lost = self._lost.get(timeout=seconds)
            except queue.Empty:
                self._respawn(heapq.heappop(waiting)[1])
                continue
            if lost is None:
                return
            heapq.heappush(waiting, lost)

    def _respawn(self, worker: int) -> None:
        try:
            self._started.put(self._spawn(worker))
        except (OSError, EOFError) as error:  # EOFError: the server that forks has died
            self._started.put(WorkerError(f"worker {worker} could not be started: {error!r}"))


def _work(
    number: int,
    factory: WorkerFactory,
    ring: ObservationRing,
    mailboxes: Mailboxes,
    pipe: Connection,
) -> None:
    """What a worker's process does."""
    end_with_parent()
    torch.set_num_threads(1)
    try:
        worker = factory(number)
        pipe.send(None)
        for job in _jobs(pipe):
            result = finish(worker, job, ring, time.perf_counter)
            if isinstance(result, Overwritten):
                pipe.send(result)
            else:
                numbers = (result.version, result.start, result.seconds)
                mailboxes.write(number, job.id, result.features, *numbers)
                pipe.send(job.id)
    except BaseException:  # whatever it is, the dispatcher's poll() raises it
        pipe.send(traceback.format_exc()[-LONGEST_REPORT:])
        raise SystemExit(1) from None


def _jobs(pipe: Connection) -> Iterator[Job]:
    with suppress(EOFError):
        while True:
            yield pipe.recv()
