"""Imitation on CatchRT: what a delayed agent should do, plays of oracles that do it, and clones.

Legend: px paddle, bx ball; n ticks until the ball lands, the action's own among them; an action is
executed for `hold` ticks: 1, or d for a sequential agent whose default behaviour repeats it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils import clip_grad_norm_, parameters_to_vector

from fox.agents.realtime.agent import GreedyHead
from fox.agents.realtime.behaviour import Exploration, beta
from fox.agents.realtime.caches import policy_workers
from fox.agents.realtime.clock import VirtualClock
from fox.agents.realtime.envs.catch import BALL_TOP, FLOOR, PADDLE_MAX, PADDLE_MIN, CatchRT, moved
from fox.agents.realtime.loop import Head, Interaction
from fox.agents.realtime.policy import PolicyConfig, RealtimePolicy, batch_of
from fox.agents.realtime.rings import ObservationRing
from fox.agents.realtime.scheduler import TickDispatcher
from fox.agents.realtime.ticks import Job, Rows, Source, WorkerFactory, token_dtype
from fox.agents.realtime.transport import VirtualTransport
from fox.agents.weights import WeightBuffers

FALL = FLOOR - BALL_TOP  # ticks
PADDLES = np.arange(PADDLE_MIN, PADDLE_MAX + 1, 2)
BALLS = np.arange(8, 151)
MOVES = (0, 1, -1)  # of noop, right, left, in steps of two pixels
STEP_SECONDS = 1 / CatchRT.fps


@dataclass(frozen=True)
class Schedule:
    """How an agent interacts.

    Attributes:
        d: action delay in ticks.
        workers: N; 1 is sequential interaction.
        beta: what is executed where no action has arrived.
    """

    d: int
    workers: int
    beta: Literal["noop", "repeat"]

    @property
    def hold(self) -> int:
        """Ticks for which an action of the policy is executed."""
        return self.d if self.workers == 1 and self.beta == "repeat" else 1


@cache
def best_actions(hold: int) -> np.ndarray:
    """The action that ends nearest to the ball if all later ones are chosen as well.

    far_n(p) = min_a far_{n - hold}(p after min(hold, n) ticks of a), where far_0 is how many
    pixels a paddle at p is away from the middle of its reach. Of equally good actions the one that
    is near soonest is taken, then noop. With hold = 1 this is envs.oracles.plain_oracle.

    Returns:
        (FALL + 1, 69, 143) uint8: by n, by the place of px in PADDLES and of bx in BALLS; for
        n = 0, a ball that the agent has not seen: noop.
    """
    away = np.maximum(BALLS - 10 - PADDLES[:, None], PADDLES[:, None] - (BALLS - 4))
    near = np.maximum(away, 0)
    far = np.zeros((FALL + 1, *near.shape), np.int64)
    best = np.zeros(far.shape, np.uint8)
    far[0] = near
    for n in range(1, FALL + 1):
        places = np.arange(len(PADDLES)) + np.outer(MOVES, [min(hold, n)])
        after = places.clip(0, len(PADDLES) - 1)  # (actions, paddles)
        cost = 1000 * far[max(n - hold, 0)][after] + near[after]
        best[n] = cost.argmin(0)
        far[n] = cost.min(0) // 1000
    return best


def planned(hold: int, px: Any, bx: Any, n: Any) -> Any:
    """best_actions for numbers or arrays of pixels; n below 0 counts as 0."""
    return best_actions(hold)[np.maximum(n, 0), (px - PADDLE_MIN) // 2, bx - BALLS[0]]


def pixels(obs: np.ndarray) -> np.ndarray:
    """(..., 4) features of CatchRT -> (..., 3) int: px, bx, by."""
    scale = np.array([[68, 71, 64], [76, 79, 80]])
    return np.rint(obs[..., :3] * scale[0]).astype(np.int64) + scale[1]


class OracleWorker:
    """An InferenceWorker that delivers the observation itself."""

    def __init__(self, worker: int) -> None:
        del worker  # all are alike

    def infer(self, job: Job, rows: Rows) -> tuple[np.ndarray, int]:
        """(4,) o_k."""
        return rows.read(job.obs_tick, job.obs_tick)["obs"][0], 0


@dataclass(frozen=True)
class OracleHead:
    """Plans from where the committed actions will have brought the paddle."""

    hold: int

    def act(self, features: np.ndarray, committed: np.ndarray, observation: np.ndarray) -> int:
        """The action for d ticks after the observation that the features are."""
        px, bx, by = pixels(features)
        for action in committed:
            px = moved(px, action)
        return int(planned(self.hold, px, bx, FLOOR - by - len(committed)))


class Play(NamedTuple):
    """What an agent did in K ticks.

    Attributes:
        tokens: (K,) of token_dtype.
        actions: (K,) int64, as executed.
        rewards: (K,).
        on_time: share of ticks with a policy action.
        busy: seconds of all inferences.
    """

    tokens: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    on_time: float
    busy: float


def play(
    schedule: Schedule,
    factory: WorkerFactory,
    head: Head,
    seconds: np.ndarray,
    *,
    ticks: int,
    seed: int,
    exploration: Callable[[int], int | None] = lambda tick: None,
) -> Play:
    """Plays CatchRT in virtual time.

    Args:
        schedule: d, workers and default behaviour.
        factory, head: of the agent.
        seconds: (ticks,), how long each job takes.
        ticks: how many.
        seed: of the balls.
        exploration: from a tick to an action in the agent's place, or None.
    """
    env = CatchRT()
    observation = env.reset(seed)
    ring = ObservationRing(token_dtype(observation), schedule.d, ticks, shared=False)
    transport = VirtualTransport(factory, ring, lambda job: float(seconds[job.id]))
    transport.start(range(schedule.workers))
    dispatcher = TickDispatcher(range(schedule.workers), schedule.d)
    interaction = Interaction(
        env,
        head,
        dispatcher,
        VirtualClock(STEP_SECONDS),
        transport,
        ring,
        behaviour=beta(schedule.beta, n_actions=env.n_actions, noop=env.noop, seed=seed),
        exploration=exploration,
        observation=observation,
    )
    steps = [interaction.tick() for _ in range(ticks)]
    transport.close()
    return Play(
        ring.read(0, ticks - 1),
        np.array([step.action for step in steps]),
        np.array([step.reward for step in steps]),
        float(np.mean([step.source is Source.POLICY for step in steps])),
        float(seconds[: dispatcher.counters.dispatched].sum()),
    )


class Plays(NamedTuple):
    """E plays of K ticks, to learn from: tokens (E, K) and actions (E, K) as executed."""

    tokens: np.ndarray
    actions: np.ndarray


def perturbed_plays(delays: Sequence[int], ticks: int, seed: int) -> Plays:
    """Plays of oracles under every schedule with these delays: staggered, sequential with noop,
    sequential with repetition. A quarter of the actions is random, in blocks of 16 ticks.
    """
    ways = [
        way
        for d in delays
        for way in (Schedule(d, d, "noop"), Schedule(d, 1, "noop"), Schedule(d, 1, "repeat"))
    ]
    plays = [
        play(
            way,
            OracleWorker,
            OracleHead(way.hold),
            np.full(ticks, (way.d - 0.5) * STEP_SECONDS),
            ticks=ticks,
            seed=number,
            exploration=Exploration(3, number, 0.25, 0.25, hold_ticks=16),
        )
        for number, way in enumerate(ways, 1000 * seed)
    ]
    return Plays(np.stack([one.tokens for one in plays]), np.stack([one.actions for one in plays]))


def clone(
    plays: Plays,
    config: PolicyConfig,
    d: int,
    hold: int,
    *,
    seed: int,
    steps: int,
    batch: int = 256,
) -> RealtimePolicy:
    """A policy that has learned to plan, at every tick of the plays, for d ticks later.

    Each position of a window learns: from the tokens up to k, and with a late head the actions
    a_k .. a_{k+d-1}, to a_{k+d} of the oracle that knows all of these.

    Args:
        plays: of oracles.
        config: of the policy.
        d: action delay in ticks.
        hold: see best_actions.
        seed: of the initial weights and of the batches.
        steps: of Adam, with a rate that falls from 5e-3 to 0.
        batch: windows per step.
    """
    torch.manual_seed(seed)
    policy = RealtimePolicy(config, (4,), np.dtype(np.float32), CatchRT.n_actions)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=5e-3, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps, pct_start=0.1)
    rng = np.random.default_rng(seed)
    px, bx, by = np.moveaxis(pixels(plays.tokens["obs"]), -1, 0)
    number, ticks = plays.actions.shape
    window = np.arange(config.window)
    for _ in range(steps):
        play = rng.integers(number, size=(batch, 1))
        k = rng.integers(ticks - config.window - d, size=(batch, 1)) + window  # (B, W)
        tokens = batch_of(plays.tokens[play, k])
        target = planned(hold, px[play, k + d], bx[play, k], FLOOR - by[play, k] - d)
        committed = plays.actions[play[..., None], k[..., None] + np.arange(d)]
        h = policy.window(policy.encode(tokens), tokens["start"])
        q = policy.head(h.flatten(0, 1), torch.from_numpy(committed).flatten(0, 1))
        loss = F.cross_entropy(q, torch.from_numpy(target).long().flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        rate.step()
    return policy.eval()


def play_policy(
    policy: RealtimePolicy,
    schedule: Schedule,
    seconds: np.ndarray,
    *,
    ticks: int,
    seed: int,
) -> Play:
    """Plays CatchRT with a policy, as `play` does."""
    flat = parameters_to_vector(policy.parameters()).detach().numpy()
    weights = WeightBuffers(len(flat), schedule.workers, shared=False)
    weights.publish(flat, 0)
    shape, dtype = policy.observation_shape, policy.observation_dtype
    factory = policy_workers(policy.config, shape, dtype, policy.n_actions, weights)
    head = GreedyHead(factory.policy(), weights)
    return play(schedule, factory, head, seconds, ticks=ticks, seed=seed)
