"""Regret of a run against a reference policy, parted into delay, inaction and learning.

The reference plays the run's world three times more, with the same balls, gusts, pieces:

    G_0  undelayed: at each tick it acts on that tick's observation
    G_1  delayed: at each tick it acts on the observation of d ticks ago, d as the run had it
    G_2  scheduled: it acts at the run's policy ticks only, on the observations that the run's
         actions were computed from; at all others the run's default behaviour acts
    G    the run itself

    regret(t) = G_0(t) - G(t) = [G_0 - G_1](t) + [G_1 - G_2](t) + [G_2 - G](t)
                                    delay          inaction        learning

with G(t) the sum of rewards up to t: the parts sum to the whole by construction. Each is an
estimate for this reference, and not a bound: of the best policy's regret only if the reference is
the best policy of each of the three plays. A part can be negative; learning is so while the run
does better than the reference under the run's own schedule, and it carries the exploration. The
first d ticks of an episode, which no observation can reach, belong to the delay.

Legend: T ticks, d the action delay in ticks, M the environment's step in seconds.

Source: after Riemer et al., Enabling Realtime RL at Scale with Staggered Asynchronous Inference,
ICLR 2025, theorem 1, which bounds the parts from below; these are measured.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fox.agents.realtime.agent import Agent, GreedyHead
from fox.agents.realtime.behaviour import Behaviour
from fox.agents.realtime.caches import policy_workers
from fox.agents.realtime.envs.catch import CatchRT
from fox.agents.realtime.envs.oracles import aware_oracle
from fox.agents.realtime.envs.protocol import RealtimeEnv
from fox.agents.realtime.loop import Head
from fox.agents.realtime.ticks import Job, Source, token_dtype
from fox.agents.weights import WeightBuffers

PARTS = ("delay", "inaction", "learning")
BETA = -1  # in `seen`: no observation, the default behaviour acts


class Reference(Head, Protocol):
    """A policy that knows the actions which are executed between its observation and its own."""

    def see(self, env: RealtimeEnv, token: np.ndarray) -> np.ndarray:
        """The features of a tick, which act() gets; called at every tick from the first on."""


class CatchOracle:
    """The aware oracle of CatchRT: perfect without gusts, up to a delay of about 60 ticks."""

    def see(self, env: RealtimeEnv, token: np.ndarray) -> np.ndarray:
        """Paddle and ball."""
        assert isinstance(env, CatchRT)
        return np.array([env.px, env.bx])

    def act(self, features: np.ndarray, committed: np.ndarray, observation: np.ndarray) -> int:
        """Rolls the paddle through the committed actions."""
        px, bx = features.tolist()
        return aware_oracle(px, bx, committed.tolist())


class TrainedReference:
    """A trained policy with frozen weights.

    It has learnt to act at its own delay, so that a part in which it acts at another one also tells
    how badly it does so.

    Args:
        agent: of the run.
        flat, version: its weights (numel,), and their version.
    """

    def __init__(self, agent: Agent, flat: np.ndarray, version: int) -> None:
        weights = WeightBuffers(len(flat), 1, shared=False)
        weights.publish(flat, version)
        shape, dtype = agent.observation.shape, agent.observation.dtype
        workers = policy_workers(agent.config.policy, shape, dtype, agent.n_actions, weights)
        self._worker, self._head = workers(0), GreedyHead(agent.policy(), weights)
        self._ring = agent.ring(1)

    def see(self, env: RealtimeEnv, token: np.ndarray) -> np.ndarray:
        """The trunk's features."""
        tick = int(token["tick"])
        self._ring.publish(token)
        job = Job(tick, 0, tick, tick + 1, int(token["episode"]))
        features, _ = self._worker.infer(job, self._ring)
        return features

    def act(self, features: np.ndarray, committed: np.ndarray, observation: np.ndarray) -> int:
        """The best by the head's values."""
        none = np.array([-1])  # undelayed: the head knows how to leave out a place, not all of them
        return self._head.act(features, committed if len(committed) else none, observation)


@dataclass(frozen=True)
class Played:
    """What a run did, tick by tick, from the first tick of an episode on.

    Attributes:
        episode: (T,) int64, ascending.
        obs_tick: (T,) int64, the tick of the observation behind a policy's action; the first row
            is tick 0. BETA where the default behaviour acted.
        source: (T,) uint8, of the actions, see ticks.Source.
        d: (T,) int64, the delay in force.
        reward: (T,) float64.
    """

    episode: np.ndarray
    obs_tick: np.ndarray
    source: np.ndarray
    d: np.ndarray
    reward: np.ndarray

    @property
    def tau_i(self) -> float:
        """tau_I / tau_M: ticks from one policy action to the next within an episode, the mean."""
        ticks = np.flatnonzero(self.obs_tick != BETA)
        gaps = np.diff(ticks)[np.diff(self.episode[ticks]) == 0]
        return float(gaps.mean()) if len(gaps) else float("inf")


@dataclass(frozen=True)
class Regret:
    """Rewards lost at each tick, (T,) each; their cumulative sums are the regrets."""

    delay: np.ndarray
    inaction: np.ndarray
    learning: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """(T,) what the undelayed reference got above the run."""
        return self.delay + self.inaction + self.learning


def decompose(
    env: RealtimeEnv,
    new_reference: Callable[[], Reference],
    played: Played,
    behaviour: Behaviour,
    seed: int,
) -> Regret:
    """Plays the reference three times in the run's world.

    Args:
        env: as in the run. An episode that ends before the run's does begins again; endless worlds
            (CatchRT without lives) need not.
        new_reference: makes one for each play.
        played: the run.
        behaviour: the run's default behaviour, with its seed.
        seed: of the run's environment: episode e was reset with seed + e.
    """
    ticks = np.arange(len(played.reward))
    undelayed, delayed, scheduled = (
        play(env, new_reference(), seen, played, behaviour, seed)
        for seen in (ticks, ticks - played.d, played.obs_tick)
    )
    return Regret(undelayed - delayed, delayed - scheduled, scheduled - played.reward)


def play(
    env: RealtimeEnv,
    reference: Reference,
    seen: np.ndarray,
    played: Played,
    behaviour: Behaviour,
    seed: int,
) -> np.ndarray:
    """Rewards (T,) of the reference, acting at tick t of the run on the observation of seen[t].

    Where seen[t] lies before the episode (as BETA does), the default behaviour acts.
    """
    episode = played.episode
    rewards, actions = np.zeros(len(seen)), np.zeros(len(seen), np.int64)
    over = True
    for t, obs_tick in enumerate(seen.tolist()):
        if over or episode[t] != episode[t - 1]:
            observation = env.reset(seed + int(episode[t]))
            first, features = t, list[np.ndarray]()
            before = (env.noop, Source.BETA_RESET, 0.0, True)
        token = np.array((t, episode[t], observation, *before), token_dtype(observation))
        features.append(reference.see(env, token))
        if obs_tick >= first:
            known, source = features[obs_tick - first], Source.POLICY
            actions[t] = reference.act(known, actions[obs_tick:t], observation)
        else:
            source = played.source[t] or Source.BETA_RESET
            actions[t] = behaviour(token)
        observation, rewards[t], terminated, truncated, _ = env.step(int(actions[t]))
        before = (actions[t], source, rewards[t], False)
        over = terminated or truncated
    return rewards


def bands(
    lost: np.ndarray,
    block_ticks: int,
    *,
    neighbours: int = 16,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of a cumulative regret at each block's end, by the local block bootstrap.

    Each block's sum is drawn anew from those of the 2 * neighbours + 1 blocks around it, so that
    what drifts with learning keeps its place. They tell how far the luck of this run's blocks
    (balls, gusts, episodes) matters, not how far another training would go elsewhere.

    Args:
        lost: (T,) rewards lost at each tick.
        block_ticks: of a block, over which what is lost is nearly independent; a rest is left out.
        neighbours: on each side.
        samples: bootstrap samples.
        level: share of the samples between the bounds.
        seed: of the draws.

    Returns:
        Two (T // block_ticks,) arrays.

    Source: Dowla, Paparoditis and Politis, Local block bootstrap inference for trending time
    series, Metrika 2013.
    """
    sums = block_sums(lost, block_ticks)
    width = min(2 * neighbours + 1, len(sums))
    start = np.clip(np.arange(len(sums)) - width // 2, 0, len(sums) - width)
    rng = np.random.default_rng(seed)
    picked = start + rng.integers(0, width, (samples, len(sums)))
    low, high = np.quantile(sums[picked].cumsum(axis=1), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def block_sums(values: np.ndarray, block_ticks: int) -> np.ndarray:
    """(T // block_ticks,) sums over consecutive blocks.

    Raises:
        ValueError: there is not one whole block.
    """
    blocks = len(values) // block_ticks
    if not blocks:
        raise ValueError(
            f"expected at least {block_ticks} ticks (one block), but got {len(values)}: play longer"
        )
    return values[: blocks * block_ticks].reshape(blocks, block_ticks).sum(axis=1)
