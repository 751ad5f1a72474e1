"""ProcessActors: a process for each worker, beside the learner, on the same machine.

The weights are in shared memory, by version; one pipe per worker carries the numbers of waves there
and their games back. A worker whose learner is gone, even by kill -9, ends at once; the memory has
no name and goes with them.

Legend: N weights.
"""

import multiprocessing
import pickle
import queue
import threading
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess

import numpy as np
import torch

from fox.agents.hanabi.episode import Episode
from fox.agents.hanabi.waves import Agenda, TroupeFactory
from fox.agents.signals import end_with_parent, spared_ctrl_c
from fox.agents.weights import WeightBuffers

# Workers are forked from one server that has imported torch already.
PRELOAD = ["fox.agents.hanabi.selfplay", __name__]
RETRY = 0.001  # seconds until a worker has copied the weights that are in the way of new ones

# What a worker says: a wave and its games, or how it failed.
Message = tuple[int, list[Episode]] | str


@dataclass(frozen=True)
class _Child:
    worker: int
    process: ForkServerProcess
    pipe: Connection


class ProcessActors:
    """A process for each worker, with one thread of computation; see fox.agents.hanabi.actors.

    Args:
        factory: makes who plays, in each process: picklable, with what it holds.
        first_wave: where to begin.
        workers: how many.
        ahead: waves that each may have in hand; see Agenda.

    Attributes:
        lost: as Actors has it.
    """

    def __init__(
        self, factory: TroupeFactory, first_wave: int, *, workers: int, ahead: int
    ) -> None:
        self._factory, self._workers = factory, workers
        self._agenda = Agenda(first_wave, ahead)
        self.lost = 0
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)
        self._weights: WeightBuffers | None = None
        self._children: dict[int, _Child] = {}

    def publish(self, flat: np.ndarray, version: int) -> None:
        """Copies the weights into shared memory; the first ones start the processes."""
        if self._weights is None:
            self._weights = WeightBuffers(len(flat), self._workers, shared=True)
            self._weights.publish(flat, version)
            for worker in range(self._workers):
                self._start(worker)
            return
        # A worker pins weights for as long as it takes to copy them, unless it dies in it.
        while not self._weights.publish(flat, version):
            self._listen(timeout=RETRY)

    def wave(self) -> list[Episode]:
        """The next wave that has come, in whatever order; waits for it.

        Raises:
            RuntimeError: a worker has raised, or workers die again and again.
        """
        assert self._weights is not None, "publish weights before the first wave"
        while (taken := self._agenda.take()) is None:
            self._listen(timeout=None)
        worker, episodes = taken
        self._hand_out(worker)
        return episodes

    def close(self) -> None:
        """Kills all workers: they hold nothing that could be left behind."""
        for child in self._children.values():
            child.process.kill()
        for child in self._children.values():
            _bury(child)
        self._children.clear()

    def _start(self, worker: int) -> None:
        ours, theirs = multiprocessing.Pipe()
        process = self._context.Process(
            target=_work,
            args=(worker, self._factory, self._weights, theirs),
            name=f"actor-{worker}",
            daemon=True,
        )
        with spared_ctrl_c():
            process.start()
        theirs.close()  # so that the pipe ends with the process
        self._children[worker] = _Child(worker, process, ours)
        self._hand_out(worker)

    def _hand_out(self, worker: int) -> None:
        for wave in self._agenda.hand_out(worker):
            with suppress(OSError):  # it has just died: its pipe will say so
                self._children[worker].pipe.send(wave)

    def _listen(self, timeout: float | None) -> None:
        """Takes what the workers have said, and replaces those that have ended."""
        ready = wait([child.pipe for child in self._children.values()], timeout)
        for child in [child for child in self._children.values() if child.pipe in ready]:
            try:
                message: Message = pickle.loads(child.pipe.recv_bytes())
            except (EOFError, OSError):  # the latter where it died while it was sending
                self._replace(child)
                continue
            if isinstance(message, str):
                raise RuntimeError(f"worker {child.worker} raised\n{message}")
            self._agenda.come(child.worker, *message)

    def _replace(self, child: _Child) -> None:
        assert self._weights is not None
        child.process.kill()  # whatever it does, it does not listen
        code = _bury(child)
        del self._children[child.worker]
        self._weights.release(child.worker)
        self.lost += 1
        self._agenda.lose(child.worker, f"the process ended with exit code {code}")
        self._start(child.worker)


def _bury(child: _Child) -> int | None:
    child.process.join()
    code = child.process.exitcode
    child.process.close()
    child.pipe.close()
    return code


def _work(worker: int, factory: TroupeFactory, weights: WeightBuffers, pipe: Connection) -> None:
    """What a worker's process does."""
    end_with_parent()
    torch.set_num_threads(1)
    # A learner that is busy does not read: games wait for it here, while the next are played.
    outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    sender = threading.Thread(target=_send, args=(outbox, pipe))
    sender.start()
    message: Message
    try:
        troupe = factory()
        for wave in _numbers(pipe):
            with weights.pinned(worker) as (newest, version):
                flat = newest.copy()
            message = wave, troupe.play(flat, version, wave)
            outbox.put(pickle.dumps(message))
    except BaseException:  # whatever it is, the learner raises it
        message = traceback.format_exc()
        outbox.put(pickle.dumps(message))
    outbox.put(None)
    sender.join()


def _numbers(pipe: Connection) -> Iterator[int]:
    with suppress(EOFError):
        while True:
            yield pipe.recv()


def _send(outbox: "queue.SimpleQueue[bytes | None]", pipe: Connection) -> None:
    with suppress(OSError):  # the learner has died, and this process will at once
        while (message := outbox.get()) is not None:
            pipe.send_bytes(message)
