"""How long an action may take and how many workers that needs, from measured durations.

Legend: tau is the duration of one inference in seconds, M the environment's step, d the action
delay in ticks, N the number of workers.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ROUNDING = 1e-9  # ticks: a duration of exactly n ticks needs n, not n + 1


def ticks_for(seconds: float, step_seconds: float) -> int:
    """ceil(seconds / M), at least 1: the ticks after which something that takes so long is done."""
    return max(1, math.ceil(seconds / step_seconds - ROUNDING))


def delay_for(tau: float, step_seconds: float, overhead_seconds: float = 0.0) -> int:
    """d = ceil((tau + overhead) / M), for the tau of which all but few inferences are done.

    Args:
        tau: seconds, a high quantile of the durations or their known maximum.
        step_seconds: M.
        overhead_seconds: for the way there and back, and for the head at the due tick.
    """
    return ticks_for(tau + overhead_seconds, step_seconds)


def workers_for(mean: float, std: float, step_seconds: float) -> int:
    """N = ceil(mean / M + 1 + 2.4 sqrt(0.564 std / M)): enough that a worker is idle at any tick.

    With one job a tick, as many are in flight as were sent within one duration: mean / M of them,
    and up to one more for the rounding to ticks. For durations that are independent, their number
    has variance of about 0.564 std / M (sum over ages x of P(tau > x) P(tau <= x), which is
    std / (sqrt(pi) M) for a normal law); N lies 2.4 deviations above.

    Args:
        mean, std: of tau, seconds.
        step_seconds: M.
    """
    return math.ceil(
        mean / step_seconds + 1 + 2.4 * math.sqrt(0.564 * std / step_seconds) - ROUNDING
    )


def workers_for_maximum(maximum: float, step_seconds: float) -> int:
    """N = ceil(maximum / M), of schedules in which every worker holds the longest cycle.

    Source: Riemer et al., Enabling Realtime RL at Scale with Staggered Asynchronous Inference,
    ICLR 2025, appendix B.
    """
    return ticks_for(maximum, step_seconds)


@dataclass(frozen=True)
class Sizing:
    """What measured durations ask for.

    Attributes:
        d: delay in ticks.
        workers: N.
        mean, std, quantile: of the durations, seconds.
    """

    d: int
    workers: int
    mean: float
    std: float
    quantile: float


def size_for(
    durations: Sequence[float] | np.ndarray,
    step_seconds: float,
    *,
    overhead_seconds: float = 0.0,
    quantile: float = 0.99,
) -> Sizing:
    """The delay that a share `quantile` of these durations keeps, and the workers for it.

    Args:
        durations: seconds, at least one.
        step_seconds: M.
        overhead_seconds: see delay_for.
        quantile: in (0, 1]; 1 takes the longest.

    Raises:
        ValueError: there are no durations.
    """
    taus = np.asarray(durations, dtype=np.float64)
    if taus.size == 0:
        raise ValueError("expected at least one measured duration, but got none: run some jobs")
    high = float(np.quantile(taus, quantile, method="inverted_cdf"))
    mean, std = float(taus.mean()), float(taus.std())
    d = delay_for(high, step_seconds, overhead_seconds)
    return Sizing(d, workers_for(mean, std, step_seconds), mean, std, high)


@dataclass(frozen=True)
class Change:
    """One step of the controller: at the so-and-so-manieth duration, from d to d."""

    durations: int
    before: int
    after: int


class DelayController:
    """Follows a windowed quantile of the durations with d, slowly and in whole ticks.

    Each evaluation asks for delay_for(quantile of the window). After `RAISE` evaluations in a row
    that ask for more than d, d grows by as much as all of them ask; after `LOWER` that ask for
    less, it shrinks likewise. Never a running maximum: one pause would inflate it for ever.

    Args:
        d: to begin with.
        step_seconds: M.
        overhead_seconds: see delay_for.
        quantile: in (0, 1].
        d_max: the longest delay that the policy's head knows.

    Attributes:
        d: in force.
        changes: all of them so far.

    Raises:
        ValueError: d is not in 1 .. d_max.
    """

    WINDOW, EVERY, RAISE, LOWER = 512, 64, 2, 16  # durations, durations, evaluations, evaluations

    def __init__(
        self,
        d: int,
        step_seconds: float,
        *,
        d_max: int,
        overhead_seconds: float = 0.0,
        quantile: float = 0.99,
    ) -> None:
        if not 1 <= d <= d_max:
            raise ValueError(f"the delay must be in 1 .. d_max = {d_max} ticks, but got {d}")
        self.d = d
        self.changes: list[Change] = []
        self._step_seconds, self._overhead_seconds = step_seconds, overhead_seconds
        self._d_max, self._quantile = d_max, quantile
        self._window: deque[float] = deque(maxlen=self.WINDOW)
        self._seen = 0
        self._asked: list[int] = []  # by the last evaluations, all above d or all below it

    def add(self, seconds: float) -> bool:
        """Takes the duration of one finished inference; whether d has changed."""
        self._window.append(seconds)
        self._seen += 1
        return self._seen % self.EVERY == 0 and self._evaluate()

    def _evaluate(self) -> bool:
        taus = np.fromiter(self._window, dtype=np.float64)
        high = float(np.quantile(taus, self._quantile, method="inverted_cdf"))
        asked = min(self._d_max, delay_for(high, self._step_seconds, self._overhead_seconds))
        if self._asked and (asked > self.d) != (self._asked[-1] > self.d):
            self._asked.clear()
        if asked == self.d:
            self._asked.clear()
            return False
        self._asked.append(asked)
        if len(self._asked) < (self.RAISE if asked > self.d else self.LOWER):
            return False
        after = min(self._asked) if asked > self.d else max(self._asked)
        self.changes.append(Change(self._seen, self.d, after))
        self.d = after
        self._asked.clear()
        return True
