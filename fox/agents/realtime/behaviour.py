"""Who acts when the policy does not: default behaviours, and exploration at the due tick.

Random numbers come from a counter-based generator keyed by (seed, stream, tick): a run that is
resumed at any tick draws what the uninterrupted run would have drawn.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fox.agents.ranges import at_least
from fox.agents.realtime.policy import RealtimePolicy, batch_of
from fox.agents.realtime.ticks import Rows

# From the token of tick k, which holds o_k and the action executed at k - 1, to a_k.
Behaviour = Callable[[np.ndarray | np.void], int]

SMALL_MODEL_BUDGET = 0.2  # of a tick
_EXPLORE, _BETA = 0, 1  # streams


def random_generator(seed: int, stream: int, tick: int) -> np.random.Generator:
    """The generator of one tick, the same whenever it is asked for.

    Args:
        seed, stream: at least 0; streams with one seed are independent.
        tick: at least 0.

    Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011 (Philox).
    """
    # The low word of the counter is left to the draws within the tick.
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, tick, 0, 0]))


def beta(kind: str, *, n_actions: int, noop: int, seed: int) -> Behaviour:
    """The default behaviour which the world executes where no action has arrived.

    Args:
        kind: "noop", "repeat" (the action executed at the last tick; noop at an episode's start) or
            "random" (uniform, drawn anew at every tick).
        n_actions, noop: of the environment.
        seed: of the random kind.

    Raises:
        ValueError: there is no such kind.
    """
    if kind == "noop":
        return lambda token: noop
    if kind == "repeat":
        return lambda token: int(token["action"])
    if kind == "random":
        return lambda token: int(
            random_generator(seed, _BETA, int(token["tick"])).integers(n_actions)
        )
    raise ValueError(
        f"a default behaviour is noop, repeat, random or a SmallPolicy, but got {kind!r}"
    )


class SmallPolicy:
    """The default behaviour of a policy that is so small that it runs inline, within a tick.

    It acts as it was trained to: d ticks after its observation, on the tokens that are published
    and the action executed last. Until d ticks of an episode are over it repeats that action.

    Args:
        policy: with the weights to use.
        d: its delay in ticks, at least 1.
        rows: the tokens up to the last tick; they hold `policy.config.sees` + d of them.
        dtype: of a token.
        step_seconds: the environment's step M.

    Raises:
        ValueError: the policy takes longer than 0.2 M (the median of 20 calls).
    """

    def __init__(
        self, policy: RealtimePolicy, d: int, rows: Rows, dtype: np.dtype, step_seconds: float
    ) -> None:
        self.policy, self.d, self.rows = policy, d, rows
        self.needed = policy.config.sees + d
        seconds, budget = [], SMALL_MODEL_BUDGET * step_seconds
        for _ in range(20):
            start = time.perf_counter()
            self._greedy(np.zeros(self.needed, dtype))
            seconds.append(time.perf_counter() - start)
        if np.median(seconds) > budget:
            raise ValueError(
                f"a small policy must act within {SMALL_MODEL_BUDGET} of a step, "
                f"{1000 * budget:.2f} ms, but this one takes {1000 * np.median(seconds):.2f} ms: "
                "take a smaller one, or make the step longer"
            )

    def __call__(self, token: np.ndarray | np.void) -> int:
        """The action of the tick whose token this is."""
        k = int(token["tick"])
        if token["start"]:  # of a resumed run, perhaps: nothing is published yet
            return int(token["action"])
        tokens = np.append(self.rows.read(k + 1 - self.needed, k - 1), token)
        if tokens["start"][-self.d :].any():
            return int(token["action"])
        return self._greedy(tokens)

    @torch.inference_mode()
    def _greedy(self, tokens: np.ndarray) -> int:
        batch = batch_of(tokens)
        seen = {name: field[:, : -self.d] for name, field in batch.items()}
        h = self.policy.window(self.policy.encode(seen), seen["start"])[:, -1]
        # The action of token j is a_{j-1}: the last d tokens tell a_{k-d} .. a_{k-1}.
        fresh = batch["obs"][:, -1] if self.policy.config.fresh else None
        return int(self.policy.head(h, batch["action"][:, -self.d :], fresh).argmax())


@dataclass(frozen=True)
class Exploration:
    """Epsilon-greedy choice, made at the due tick, so that random actions have the same delay.

    Ticks come in blocks of `hold_ticks`: one draw decides for a whole block whether it is random,
    and with which action, since single frames of random actions cancel each other.

    Args:
        n_actions: of the environment.
        seed: at least 0.
        first, last: epsilon at tick 0, and from tick `decay_ticks` on; linear in between.
        decay_ticks: at least 1.
        hold_ticks: length of a block, at least 1.

    Raises:
        ValueError: a value is out of its range.
    """

    n_actions: int
    seed: int
    first: float = 1.0
    last: float = 0.05
    decay_ticks: int = 100_000
    hold_ticks: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.last <= 1 and 0 <= self.first <= 1):
            raise ValueError(
                "epsilon is a probability: first and last must lie in 0..1, "
                f"but got {self.first} and {self.last}"
            )
        at_least("Exploration", self, n_actions=1, decay_ticks=1, hold_ticks=1)

    def epsilon(self, tick: int) -> float:
        """The share of random actions around this tick."""
        done = min(tick / self.decay_ticks, 1.0)
        return self.first + done * (self.last - self.first)

    def __call__(self, tick: int) -> int | None:
        """The random action to execute at this tick, or None for the policy's own."""
        block = tick // self.hold_ticks
        generator = random_generator(self.seed, _EXPLORE, block)
        if generator.random() >= self.epsilon(block * self.hold_ticks):
            return None
        return int(generator.integers(self.n_actions))
