"""Regret of a run against a reference policy, parted into delay, inaction and learning.

The reference plays the run's world three times, which takes its chances anew but draws the same:

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

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fox.agents.realtime.behaviour import Behaviour
from fox.agents.realtime.envs.catch import CatchRT
from fox.agents.realtime.envs.oracles import aware_oracle
from fox.agents.realtime.envs.protocol import RealtimeEnv
from fox.agents.realtime.ticks import Source, token_dtype

PARTS = ("delay", "inaction", "learning")
BETA = -1  # in `seen`: no observation, the default behaviour acts


class Reference(Protocol):
    """A policy that knows the actions which are executed between its observation and its own."""

    def see(self, env: RealtimeEnv, token: np.void) -> Any:
        """What it keeps of a tick; called at each, so that it can remember."""

    def act(self, seen: Any, committed: np.ndarray) -> int:
        """The action after the committed ones, which were executed since `seen`."""


class CatchOracle:
    """The aware oracle of CatchRT: the best that can be done without gusts, as far as it goes."""

    def see(self, env: RealtimeEnv, token: np.void) -> tuple[int, int]:
        """Paddle and ball."""
        assert isinstance(env, CatchRT)
        return env.px, env.bx

    def act(self, seen: tuple[int, int], committed: np.ndarray) -> int:
        """Rolls the paddle through the committed actions."""
        return aware_oracle(*seen, committed)


@dataclass(frozen=True)
class Played:
    """What a run did, tick by tick, from the first tick of an episode on.

    Attributes:
        episode: (T,) int64, ascending.
        obs_tick: (T,) int64, the tick of the observation behind a policy's action; the first row
            is tick 0. BETA where the default behaviour acted.
        d: (T,) int64, the delay in force.
        reward: (T,) float64.
    """

    episode: np.ndarray
    obs_tick: np.ndarray
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
    reference: Reference,
    played: Played,
    behaviour: Behaviour,
    seed: int,
) -> Regret:
    """Plays the reference three times in the run's world.

    Args:
        env: as in the run, but endless where it can be: an episode that ends before the run's
            begins again, and those later observations only count.
        reference: plays.
        played: the run.
        behaviour: the run's default behaviour, with its seed.
        seed: of the run's environment: episode e was reset with seed + e.
    """
    ticks = np.arange(len(played.reward))
    undelayed, delayed, scheduled = (
        play(env, reference, seen, played.episode, behaviour, seed)
        for seen in (ticks, ticks - played.d, played.obs_tick)
    )
    return Regret(undelayed - delayed, delayed - scheduled, scheduled - played.reward)


def play(
    env: RealtimeEnv,
    reference: Reference,
    seen: np.ndarray,
    episode: np.ndarray,
    behaviour: Behaviour,
    seed: int,
) -> np.ndarray:
    """Rewards (T,) of the reference, which at tick t acts on the observation of tick seen[t].

    Where seen[t] lies before the episode (as BETA does), the default behaviour acts.
    """
    rewards, actions = np.zeros(len(seen)), np.zeros(len(seen), np.int64)
    over = True
    for t, obs_tick in enumerate(seen.tolist()):
        if over or episode[t] != episode[t - 1]:
            observation = env.reset(seed + int(episode[t]))
            first, states = t, list[Any]()
            before = (env.noop, Source.BETA_RESET, 0.0, True)
        token = np.array([(t, episode[t], observation, *before)], token_dtype(observation))[0]
        states.append(reference.see(env, token))
        if obs_tick >= first:
            source = Source.POLICY
            actions[t] = reference.act(states[obs_tick - first], actions[obs_tick:t])
        else:
            source = Source.BETA_UNDISPATCHED
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
