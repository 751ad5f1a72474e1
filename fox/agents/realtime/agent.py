"""An agent in its world: what training, evaluation and play build from one configuration.

Legend: M is the environment's step in seconds, d the action delay in ticks, N the workers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils import parameters_to_vector

from fox.agents.flat import load_flat
from fox.agents.realtime.behaviour import SmallPolicy, beta
from fox.agents.realtime.caches import policy_workers
from fox.agents.realtime.clock import Clock, VirtualClock, WallClock
from fox.agents.realtime.config import RunConfig
from fox.agents.realtime.delay import DelayController, size_for, ticks_for
from fox.agents.realtime.loop import Interaction
from fox.agents.realtime.policy import RealtimePolicy
from fox.agents.realtime.processes import ProcessTransport
from fox.agents.realtime.remote import RayTransport
from fox.agents.realtime.replay import Replay
from fox.agents.realtime.rings import ObservationRing
from fox.agents.realtime.scheduler import TickDispatcher
from fox.agents.realtime.ticks import Job, Transport, WorkerFactory, token_dtype
from fox.agents.realtime.transport import Padded, ThreadTransport, VirtualTransport
from fox.agents.weights import WeightBuffers

HEAD_SHARE = 0.1  # of a tick, left to the head at the due tick
COLD, MEASURED = 5, 20  # inferences before the first tick: those to warm up, those that are timed


@dataclass(frozen=True)
class Place:
    """Where in a run play begins.

    Attributes:
        tick, episode: numbers of the first.
        world: the environment's state there; None: an episode begins.
    """

    tick: int = 0
    episode: int = 0
    world: dict[str, Any] | None = None


class GreedyHead:
    """The head of a policy, with the newest weights at every call: the best of its Q values.

    Args:
        policy: whose parameters become views of the weights.
        weights: read as the dispatcher.
    """

    def __init__(self, policy: RealtimePolicy, weights: WeightBuffers) -> None:
        self.policy, self.weights, self.version = policy, weights, -1

    @torch.inference_mode()
    def act(self, features: np.ndarray, committed: np.ndarray, observation: np.ndarray) -> int:
        """See loop.Head."""
        if self.weights.version != self.version:
            flat, self.version = self.weights.newest(self.weights.workers)
            load_flat(self.policy, flat)
        fresh = torch.from_numpy(observation[None]) if self.policy.config.fresh else None
        h, actions = torch.tensor(features)[None], torch.from_numpy(committed[None])
        return int(self.policy.head(h, actions, fresh).argmax())


class Agent:
    """A policy and the world that it was made for.

    Args:
        config: of the run.

    Raises:
        ValueError: the default behaviour is neither one of ours nor another run.

    Attributes:
        config: as given.
        step_seconds: M.
        observation: an example.
        n_actions: of the world.
        dtype: of a token.
        features: F, numbers that an inference delivers.
        weights: (numel,) float32, those that the run starts from.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        other = config.schedule.beta
        if other not in ("noop", "repeat", "random") and not _is_run(Path(other)):
            raise ValueError(
                "schedule.beta must be noop, repeat, random or the folder of a run, "
                f"but got {other!r}"
            )
        env = config.env.make()
        self.observation = env.reset(config.run.seed)
        self.n_actions = env.n_actions
        self.step_seconds = 1 / (config.schedule.fps or env.fps)
        env.close()
        self.dtype = token_dtype(self.observation)
        policy = self.policy()
        self.features = policy.features
        self._size: tuple[int, int] | None = None
        self.weights = parameters_to_vector(policy.parameters()).detach().numpy().copy()

    def policy(self) -> RealtimePolicy:
        """A new one, with the weights that the run's seed gives."""
        shape, dtype = self.observation.shape, self.observation.dtype
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.run.seed)
            return RealtimePolicy(self.config.policy, shape, dtype, self.n_actions)

    def workers(self, weights: WeightBuffers, d: int) -> WorkerFactory:
        """Makes the inference workers; on a wall clock they may be slowed down."""
        world = (self.observation.shape, self.observation.dtype, self.n_actions)
        patience = d * self.step_seconds
        factory = policy_workers(self.config.policy, *world, weights, patience=patience)
        schedule = self.config.schedule
        if schedule.inference_seconds is None or schedule.clock == "virtual":
            return factory
        return Padded(factory, schedule.inference_seconds)

    def clock(self) -> Clock:
        """The clock that the config asks for."""
        schedule = self.config.schedule
        if schedule.clock == "virtual":
            return VirtualClock(self.step_seconds)
        return WallClock(self.step_seconds, overrun=schedule.overrun)

    def ring(self, d: int, history: int = 0) -> ObservationRing:
        """For all that workers may ask for, and at least `history` ticks."""
        history = max(self.config.policy.sees, history)
        return ObservationRing(self.dtype, d, history, self.config.schedule.shares)

    def size(self) -> tuple[int, int]:
        """d and N: as configured, else as the durations of inference on this machine ask for.

        They are measured at the first call.

        Raises:
            ValueError: the policy's head does not know so long a delay, or no inference is done
                within it.
        """
        if self._size is not None:
            return self._size
        schedule = self.config.schedule
        d, workers = schedule.delay_ticks, schedule.workers
        if schedule.interaction == "sequential":
            workers = 1
        if d is None or workers is None:
            overhead = 0.0 if schedule.clock == "virtual" else HEAD_SHARE * self.step_seconds
            sizing = size_for(self.durations(), self.step_seconds, overhead_seconds=overhead)
            d, workers = d or sizing.d, workers or sizing.workers
        if self.config.policy.head == "late" and d > self.config.policy.d_max:
            raise ValueError(
                f"an action would be {d} ticks old, but the head knows at most policy.d_max = "
                f"{self.config.policy.d_max}: raise it, or lower the time of inference"
            )
        least = ticks_for(schedule.inference_seconds or 0.0, self.step_seconds)
        if d < least and schedule.late == "drop":
            raise ValueError(
                f"an inference of {schedule.inference_seconds} s takes {least} ticks: nothing "
                f"would be in time for schedule.delay_ticks = {d}; raise it, or leave it out"
            )
        self._size = d, workers
        return self._size

    def durations(self) -> list[float]:
        """Seconds of inferences: as configured in virtual time, else measured, one at a time."""
        schedule = self.config.schedule
        at_least = schedule.inference_seconds or 0.0
        if schedule.clock == "virtual":
            return [at_least]
        weights = WeightBuffers(len(self.weights), 1, shared=False)
        weights.publish(self.weights, 0)
        world = (self.observation.shape, self.observation.dtype, self.n_actions)
        worker = policy_workers(self.config.policy, *world, weights)(0)
        ring, clock = self.ring(1), WallClock(self.step_seconds)
        token = np.zeros((), self.dtype)
        seconds = []
        sees = self.config.policy.sees
        for tick in range(sees + COLD + MEASURED):
            token["tick"], token["start"] = tick, tick == 0
            ring.publish(token)
            if tick >= sees:
                start = clock.now()
                with torch.inference_mode():
                    worker.infer(Job(tick, 0, tick, tick + 1, 0), ring)
                seconds.append(max(at_least, clock.now() - start))
        return seconds[COLD:]


@contextmanager
def playing(
    agent: Agent,
    weights: WeightBuffers,
    d: int,
    *,
    exploration: Callable[[int], int | None] = lambda tick: None,
    replay: Replay | None = None,
    place: Place | None = None,
) -> Iterator[Interaction]:
    """An interaction whose workers run, and end with the context.

    Args:
        agent: who plays.
        weights: with one reader for each worker; a version of them has been published.
        d: to begin with; it is adapted if the config leaves it open and time is real.
        exploration: from a tick to an action in the policy's place, or None.
        replay: takes the row of each tick.
        place: where play begins; None: at the start.
    """
    config, place = agent.config, place or Place()
    schedule = config.schedule
    adapts = schedule.delay_ticks is None and schedule.clock == "wall"
    d_max = d
    if adapts:  # a plain head knows every delay, and only the ring of observations ends
        d_max = config.policy.d_max if config.policy.head == "late" else 2 * d
    small = _small_policy(agent)
    env, clock = config.env.make(), agent.clock()
    ring = agent.ring(d_max, 0 if small is None else small[0].config.sees + small[1])
    transport = _transport(agent, agent.workers(weights, d), weights, ring, clock)
    kind = {"n_actions": env.n_actions, "noop": env.noop, "seed": config.run.seed}
    observation = env.reset(config.run.seed + place.episode)
    if place.world is not None:
        env.set_state(place.world)
        observation = env.features() if config.env.observation == "features" else env.render84()
    try:
        if small is None:
            behaviour = beta(schedule.beta, **kind)
        else:
            behaviour = SmallPolicy(*small, ring, agent.dtype, agent.step_seconds)
        transport.start(range(weights.workers))
        yield Interaction(
            env,
            GreedyHead(agent.policy(), weights),
            TickDispatcher(range(weights.workers), d, late=schedule.late),
            clock,
            transport,
            ring,
            behaviour=behaviour,
            exploration=exploration,
            delay=_controller(agent, d, d_max) if adapts else None,
            replay=replay,
            weights=weights,
            observation=observation,
            seed=config.run.seed,
            first=place.tick,
            episode=place.episode,
        )
    finally:
        transport.close()
        env.close()


def _is_run(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _small_policy(agent: Agent) -> tuple[RealtimePolicy, int] | None:
    """The policy and the delay of the run that is the default behaviour, if it is one."""
    folder = Path(agent.config.schedule.beta)
    if not _is_run(folder):
        return None
    from fox.agents.realtime.run import read_run  # which imports this module

    config, flat, _ = read_run(folder)
    other = Agent(config)
    if (other.dtype, other.n_actions) != (agent.dtype, agent.n_actions):
        raise ValueError(f"schedule.beta: the run in {folder} has other observations or actions")
    d, _ = other.size()
    policy = other.policy()
    load_flat(policy, flat)
    return policy, d


def _transport(
    agent: Agent,
    factory: WorkerFactory,
    weights: WeightBuffers,
    ring: ObservationRing,
    clock: Clock,
) -> Transport:
    schedule = agent.config.schedule
    if schedule.clock == "virtual":
        seconds = schedule.inference_seconds
        assert seconds is not None
        return VirtualTransport(factory, ring, lambda job: seconds)
    if schedule.transport == "process":
        return ProcessTransport(factory, ring, features=agent.features)
    if schedule.transport == "ray":
        return RayTransport(factory, ring, agent.config.policy.sees, weights)
    return ThreadTransport(factory, ring, clock)


def _controller(agent: Agent, d: int, d_max: int) -> DelayController:
    overhead = HEAD_SHARE * agent.step_seconds
    return DelayController(d, agent.step_seconds, d_max=d_max, overhead_seconds=overhead)
