"""RayActors: workers as Ray actors, on many machines.

Weights travel through Ray's object store, once per version and host, and games come back pickled. A
Ray takes long to start: this is for hosts, not for cores.

Legend: N weights.
"""

import pickle
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fox.agents.cluster import import_ray, start_ray
from fox.agents.hanabi.episode import Episode
from fox.agents.hanabi.waves import Agenda, Troupe, TroupeFactory

if TYPE_CHECKING:
    from ray import ObjectRef


class RayActors:
    """An actor for each worker, on whatever hosts the connected Ray has.

    Each actor takes one of Ray's CPUs, and wave() waits until one is free. Without a connection the
    first publish() starts a Ray on this host, which close() ends. A wave that waits for its worker
    has the weights of when it was handed out. See fox.agents.hanabi.actors.

    Args:
        factory: makes who plays, in each actor: picklable, with what it holds.
        first_wave: where to begin.
        workers: how many.
        ahead: waves that each may have in hand; see Agenda.

    Attributes:
        lost: as Actors has it.

    Raises:
        ModuleNotFoundError: Ray is not installed.
    """

    def __init__(
        self, factory: TroupeFactory, first_wave: int, *, workers: int, ahead: int
    ) -> None:
        self._ray = import_ray()
        self._factory, self._workers = factory, workers
        self._agenda = Agenda(first_wave, ahead)
        self.lost = 0
        self._weights: tuple[ObjectRef, int] | None = None
        self._actors: dict[int, Any] = {}
        self._calls: dict[ObjectRef, tuple[int, int]] = {}  # worker, wave
        self._owner = False

    def publish(self, flat: np.ndarray, version: int) -> None:
        """Puts the weights into Ray's store; the first ones start the actors."""
        begins = self._weights is None
        if begins:
            self._owner = start_ray(self._workers)
        self._weights = self._ray.put(flat), version
        if begins:
            for worker in range(self._workers):
                self._start(worker)

    def wave(self) -> list[Episode]:
        """The next wave that has come, in whatever order; waits for it.

        Raises:
            RuntimeError: a worker has raised, or workers die again and again.
        """
        while (taken := self._agenda.take()) is None:
            self._listen()
        worker, episodes = taken
        self._hand_out(worker)
        return episodes

    def close(self) -> None:
        """Kills the actors, and ends a Ray that was started here."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors.clear()
        self._calls.clear()
        self._weights = None
        if self._owner:
            self._ray.shutdown()
            self._owner = False

    def _start(self, worker: int) -> None:
        actor: Any = self._ray.remote(_Actor).options(num_cpus=1).remote(self._factory)
        self._actors[worker] = actor
        self._hand_out(worker)

    def _hand_out(self, worker: int) -> None:
        assert self._weights is not None, "publish weights before the first wave"
        for wave in self._agenda.hand_out(worker):
            call = self._actors[worker].play.remote(*self._weights, wave)
            self._calls[call] = worker, wave

    def _listen(self) -> None:
        """Waits for a call to end, and replaces its actor if that has died."""
        assert self._weights is not None, "publish weights before the first wave"
        (call,), _ = self._ray.wait(list(self._calls), num_returns=1)
        worker, wave = self._calls.pop(call)
        try:
            episodes = pickle.loads(self._ray.get(call))
        except self._ray.exceptions.RayActorError as error:
            del self._actors[worker]
            self.lost += 1
            self._calls = {call: of for call, of in self._calls.items() if of[0] != worker}
            self._agenda.lose(worker, str(error))
            self._start(worker)
        except self._ray.exceptions.RayTaskError as error:
            raise RuntimeError(f"worker {worker} raised\n{error}") from None
        else:
            self._agenda.come(worker, wave, episodes)


class _Actor:
    """A worker on its host."""

    def __init__(self, factory: TroupeFactory) -> None:
        torch.set_num_threads(1)
        self._factory = factory

    @cached_property
    def _troupe(self) -> Troupe:
        return self._factory()  # in the first call: what it raises reaches the learner

    def play(self, flat: np.ndarray, version: int, wave: int) -> bytes:
        """The games of a wave, pickled: arrays as such would stay in Ray's small store."""
        return pickle.dumps(self._troupe.play(flat.copy(), version, wave))
