"""Interaction: one tick after the other, whatever the clock, the workers and the environment are.

Legend: tick k is at time t_k; o_k is observed before a_k is executed, which yields r_k and o_{k+1};
an inference that begins with o_k is executed at tick k + d.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fox.agents.realtime.behaviour import Behaviour
from fox.agents.realtime.clock import Clock
from fox.agents.realtime.delay import DelayController
from fox.agents.realtime.envs.protocol import RealtimeEnv
from fox.agents.realtime.replay import Replay
from fox.agents.realtime.rings import ObservationRing
from fox.agents.realtime.scheduler import TickDispatcher
from fox.agents.realtime.ticks import Done, Lost, Outcome, Source, TickPlan, Transport, token_dtype
from fox.agents.weights import WeightBuffers

HISTORY = 4096  # actions that are remembered, more than any delay
ROUNDING = 1e-9  # seconds: what is computed to be done at t_k is on time


class Head(Protocol):
    """The fast part of a policy, which the dispatcher runs at the due tick."""

    def act(self, features: np.ndarray, committed: np.ndarray, observation: np.ndarray) -> int:
        """The action for the state that is d ticks after the one of the features.

        Args:
            features: (F,) float32, of the tokens up to the observation that was dispatched.
            committed: (d,) int64, the actions really executed since, oldest first.
            observation: of now.
        """


@dataclass(frozen=True, slots=True)
class Step:
    """What one tick was.

    Attributes:
        tick, episode: when.
        source, action: what was executed, and why.
        reward, terminated, truncated: what came of it.
        delay: ticks from the observation behind the action to its execution; where no policy
            acted, those that the scheduler asks for now.
        obs_tick: of that observation; -1 where no policy acted.
        version: of the weights that read it; -1 where no policy acted.
    """

    tick: int
    episode: int
    source: Source
    action: int
    reward: float
    terminated: bool
    truncated: bool
    delay: int
    obs_tick: int
    version: int


class Interaction:
    """An environment, a scheduler and its workers, tick by tick.

    The order within tick k: take in what the workers have delivered by t_k; choose a_k, with the
    head run on the actions really executed since the observation; publish o_k; give it to an idle
    worker; execute a_k. The same object runs on a virtual clock and on a wall clock.

    Args:
        env: the world; reset(seed + episode) begins each of its episodes.
        head: of the policy.
        dispatcher: decides who acts and who observes; its d is in force.
        clock: awaits and tells the time of each tick.
        transport: carries jobs to its workers, which have been started.
        ring: takes the token of each tick; the workers read it.
        behaviour: the default behaviour beta, from the token of a tick to its action.
        exploration: from a tick to an action in the policy's place, or None.
        delay: adapts d to the measured durations; None keeps d.
        replay: takes the row of each tick; None if nobody learns.
        weights: that the workers read: the pin of one that was lost is cleared.
        observation: of the first tick, where the world goes on; None: an episode begins.
        seed: of the environment's episodes.
        first: number of the first tick.
        episode: number of the first episode.

    Attributes:
        k, episode: of the next tick.
    """

    def __init__(
        self,
        env: RealtimeEnv,
        head: Head,
        dispatcher: TickDispatcher,
        clock: Clock,
        transport: Transport,
        ring: ObservationRing,
        *,
        behaviour: Behaviour,
        exploration: Callable[[int], int | None] = lambda tick: None,
        delay: DelayController | None = None,
        replay: Replay | None = None,
        weights: WeightBuffers | None = None,
        observation: np.ndarray | None = None,
        seed: int = 0,
        first: int = 0,
        episode: int = 0,
    ) -> None:
        self.env, self.head, self.dispatcher, self.clock = env, head, dispatcher, clock
        self.transport, self.ring, self.weights = transport, ring, weights
        self.behaviour, self.exploration, self.delay = behaviour, exploration, delay
        self.replay, self.seed = replay, seed
        self.k, self.episode = first, episode
        self._results: dict[int, Done] = {}  # by job, until their tick
        self._late: Done | None = None  # the newest that came after its tick
        self._executed: deque[int] = deque(maxlen=HISTORY)
        if episode > 0:
            dispatcher.on_reset(first, episode)
        self._begin(env.reset(seed + episode) if observation is None else observation)

    def tick(self) -> Step:
        """Awaits the next tick, and plays it."""
        missed = self.clock.wait(self.k)
        now = self.clock.now()
        self._token["tick"], self._token["episode"] = self.k, self.episode
        self._ingest(now)
        plan = self.dispatcher.on_tick(self.k, missed=missed)
        action, version = self._choose(plan)
        self.ring.publish(self._token)
        if plan.dispatch is not None:
            self.transport.send(plan.dispatch, now)
        for job in plan.killed:
            self.transport.kill(job.worker)
            # It would have taken longer still. Uncounted, d would never grow to what all jobs need.
            self._adapt((plan.tick - job.obs_tick) * self.clock.step_seconds)
        return self._execute(plan, action, version)

    def _ingest(self, now: float) -> None:
        """Takes in what has happened since the last tick."""
        for event in self.transport.poll(now + ROUNDING):
            if isinstance(event, Done):
                self._take(event)
            elif isinstance(event, Lost):
                self.dispatcher.on_lost(event.worker)
                if self.weights is not None:
                    self.weights.release(event.worker)
            else:
                self.dispatcher.on_joined(event.worker)

    def _take(self, done: Done) -> None:
        outcome = self.dispatcher.on_done(done.worker, done.job_id, done.seconds, done.version)
        if outcome is Outcome.ON_TIME:
            self._results[done.job_id] = done
        elif outcome is Outcome.LATE and (self._late is None or done.job_id > self._late.job_id):
            self._late = done
        self._adapt(done.seconds)

    def _adapt(self, seconds: float) -> None:
        """Takes the duration of an inference into account, if d follows them."""
        if self.delay is not None and self.delay.add(seconds):
            self.dispatcher.set_delay(self.delay.d)

    def _choose(self, plan: TickPlan) -> tuple[int, int]:
        """The action of this tick, and the version of the weights behind it."""
        job = plan.job
        if job is None:
            return self.behaviour(self._token), -1
        result = self._results.get(job.id, self._late)
        assert result is not None
        # Those of older observations gave way to this one.
        self._results = {id: kept for id, kept in self._results.items() if id > job.id}
        action = self.exploration(plan.tick)
        if action is None:
            newest = range(job.obs_tick - plan.tick, 0)
            committed = np.array([self._executed[place] for place in newest], np.int64)
            action = self.head.act(result.features, committed, self._token["obs"])
        return action, result.version

    def _execute(self, plan: TickPlan, action: int, version: int) -> Step:
        """Applies the action, and readies the token of the next tick."""
        observation, reward, terminated, truncated, _ = self.env.step(action)
        job, source = plan.job, plan.source
        delay = self.dispatcher.d if job is None else plan.tick - job.obs_tick
        obs_tick = -1 if job is None else job.obs_tick
        outcome = (float(reward), terminated, truncated)
        step = Step(plan.tick, self.episode, source, action, *outcome, delay, obs_tick, version)
        if self.replay is not None:
            self.replay.append(self._token, action, source, *outcome, delay, obs_tick, version)
        self._executed.append(action)
        self.k += 1
        if terminated or truncated:
            self.episode += 1
            self.dispatcher.on_reset(self.k, self.episode)
            self._results.clear()
            self._late = None
            self._begin(self.env.reset(self.seed + self.episode))
        else:
            self._token["obs"], self._token["action"], self._token["source"] = (
                observation,
                action,
                source,
            )
            self._token["reward"], self._token["start"] = reward, False
        return step

    def _begin(self, observation: np.ndarray) -> None:
        """The token of an episode's first tick."""
        self._token = np.zeros(1, token_dtype(observation))[0]  # writable
        self._token["obs"], self._token["action"] = observation, self.env.noop
        self._token["source"], self._token["start"] = Source.BETA_RESET, True
