"""The learner beside the play: in line in virtual time, in a process of its own on a wall clock."""

import multiprocessing
import os
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

import torch

from fox.agents.realtime.agent import Agent
from fox.agents.realtime.config import RunConfig
from fox.agents.realtime.learner import Learner
from fox.agents.realtime.replay import Replay
from fox.agents.signals import spared_ctrl_c
from fox.agents.weights import WeightBuffers
from fox.files import whole_file

REST = 0.005  # seconds that a learner waits for the next tick
TOLD = 25  # updates between two messages to the actor
NICENESS = 10  # the actor's ticks come first


class Teacher(Protocol):
    """Learns from the log, and publishes."""

    metrics: dict[str, float]

    def advance(self) -> None:
        """Called after every tick."""

    def save(self) -> None:
        """Writes the learner's checkpoint, now or soon."""

    def close(self) -> None:
        """Writes it, and ends the learner."""


class Updates:
    """A learner that keeps pace with the log, publishes its weights and keeps its checkpoint.

    Args:
        agent: whose policy learns.
        weights: where it is published, at once and then every publish_every updates.
        folder: of the run; what an earlier learner has saved there is gone on with.

    Attributes:
        learner: as it is.
        metrics: of the last update.
    """

    def __init__(self, agent: Agent, weights: WeightBuffers, folder: Path) -> None:
        self.run, self.weights, self.path = agent.config.run, weights, checkpoint_path(folder)
        self.replay = Replay.open(folder / "replay")
        config = agent.config.learner
        self.learner = Learner(agent.policy(), self.replay, config, self.run.seed)
        self.metrics: dict[str, float] = {}
        if self.path.is_file():
            self.learner.load_state_dict(torch.load(self.path, weights_only=True))
        self.publish()

    def publish(self) -> None:
        """Makes the learner's weights those of the workers."""
        self.weights.publish(self.learner.weights(), self.learner.version)

    @property
    def is_due(self) -> bool:
        """Whether the log has grown by enough for another update."""
        ticks = self.replay.count - self.run.warmup_ticks
        return self.learner.version < ticks * self.run.updates_per_tick

    def update(self) -> None:
        """One update."""
        self.metrics = self.learner.step()
        if self.learner.version % self.run.publish_every == 0:
            self.publish()

    def save(self) -> None:
        """Writes weights, target network and optimiser."""
        with whole_file(self.path) as temporary:
            torch.save(self.learner.state_dict(), temporary)


class InlineTeacher:
    """Learns between two ticks, which costs no virtual time: a run repeats bit for bit."""

    def __init__(self, agent: Agent, weights: WeightBuffers, folder: Path) -> None:
        self.updates = Updates(agent, weights, folder)
        self.metrics: dict[str, float] = {}

    def advance(self) -> None:
        """Makes the updates that are due."""
        while self.updates.is_due:
            self.updates.update()
        self.metrics = {"updates": self.updates.learner.version, **self.updates.metrics}

    def save(self) -> None:
        """Writes the checkpoint."""
        self.updates.save()

    def close(self) -> None:
        """Writes the checkpoint."""
        self.updates.save()


class ProcessTeacher:
    """Learns in another process, which shares the log and the weights with this one.

    It has a lower priority than the ticks, and ends when this process ends. Where it fails, each
    method raises RuntimeError with its traceback.
    """

    def __init__(self, agent: Agent, weights: WeightBuffers, folder: Path) -> None:
        self.metrics: dict[str, float] = {}
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (agent.config, weights, folder, theirs)
        self._process = context.Process(target=_learn, args=arguments, daemon=True)
        with spared_ctrl_c():
            self._process.start()
        theirs.close()
        self._receive()  # the first weights are published

    def advance(self) -> None:
        """Takes in what the process tells."""
        while self._connection.poll():
            self._receive()

    def save(self) -> None:
        """Asks for the checkpoint."""
        self._connection.send("save")

    def close(self) -> None:
        """Returns when the checkpoint is written and the process has ended."""
        self._connection.send("stop")
        while self._receive() is not None:
            pass
        self._process.join()

    def _receive(self) -> dict[str, float] | None:
        """The next message; the process ends with None."""
        try:
            message = self._connection.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            raise RuntimeError(f"the learner's process has ended, exit code {code}") from None
        if isinstance(message, str):
            raise RuntimeError(f"the learner's process raised\n{message}")
        if message is not None:
            self.metrics = message
        return message


def checkpoint_path(folder: Path) -> Path:
    """Where a run keeps what its learner knows."""
    return folder / "checkpoint" / "learner.pt"


def _learn(config: RunConfig, weights: WeightBuffers, folder: Path, connection: Connection) -> None:
    """What the learner's process does."""
    os.nice(NICENESS)
    torch.set_num_threads(1)
    try:
        updates = Updates(Agent(config), weights, folder)
        connection.send({"updates": updates.learner.version})
        message = ""
        while message != "stop":
            if updates.is_due:
                updates.update()
                if updates.learner.version % TOLD == 0:
                    connection.send({"updates": updates.learner.version, **updates.metrics})
            if connection.poll(0 if updates.is_due else REST):
                message = connection.recv()
                updates.save()
        connection.send(None)
    except (EOFError, BrokenPipeError):
        return  # the actor is dead
    except BaseException:  # the actor raises it
        connection.send(traceback.format_exc())
