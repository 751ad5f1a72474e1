"""The paper's staggering algorithms, and what they are compared with, simulated in virtual time.

Legend: N workers, i and j two of them; x is the duration of one inference in seconds; T is the
shared estimate of it; M is the environment's step. Here an action is executed at the first tick
after its delivery, and of several in one tick only the newest: its age is not constant, unlike
under scheduler.TickDispatcher.

Source: Riemer, Subbaraj, Berseth, Rish, Enabling Realtime Reinforcement Learning at Scale with
Staggered Asynchronous Inference, ICLR 2025, algorithms 1 and 2.
"""

import heapq
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np

# (i, N) -> (N,): for every j, by how many slots it is apart from i
Dist = Callable[[int, int], np.ndarray]


def behind(i: int, N: int) -> np.ndarray:
    """(N,): dist(j, i) = (j - i) mod N, the slots by which worker j comes behind worker i."""
    return (np.arange(N) - i) % N


def ahead(i: int, N: int) -> np.ndarray:
    """(N,): (i - j) mod N, the distance reversed: a mistake to be compared with."""
    return (i - np.arange(N)) % N


def capped_lognormal(
    generator: np.random.Generator, mean: float, cv: float, cap: float, size: int
) -> np.ndarray:
    """(size,) durations: min(exp(mu + s z), cap * mean), s^2 = ln(1 + cv^2), mu = ln mean - s^2/2.

    Args:
        generator: draws the normal z.
        mean: seconds, before the cap.
        cv: std / mean, before the cap; 0 gives the mean always.
        cap: the longest duration, as a multiple of the mean.
        size: how many.
    """
    variance = math.log(1 + cv**2)
    z = generator.standard_normal(size)
    drawn = np.exp(math.log(mean) - variance / 2 + math.sqrt(variance) * z)
    return np.minimum(drawn, cap * mean)


class Schedule(Protocol):
    """When a worker may begin, and how long it holds a result back."""

    def offsets(self) -> np.ndarray:
        """(N,) seconds, when each worker begins its first cycle."""

    def wait(self, i: int, t: float) -> float:
        """Seconds between the beginning of i's cycle, at t, and its reading of an observation."""

    def finished(self, i: int, x: float) -> float:
        """Seconds for which i, whose inference took x, holds its action back."""


class MaximumTime:
    """Algorithm 1: every cycle lasts T, the longest duration so far.

    An inference with x > T by g posts a wait of dist(j, i) g / N to every other worker j, which
    stretches the spacing from T / N to (T + g) / N, and sets T to x. Exact as long as g < T / N, or
    if T is the maximum from the beginning: a larger overrun reaches workers that have restarted
    with the old T, and the error of their phase is never repaired.

    Args:
        N: workers.
        T: the first estimate, seconds.
        dist: behind, or ahead for the reversed distance.
    """

    def __init__(self, N: int, T: float, dist: Dist = behind) -> None:
        self.N, self.T, self._dist = N, T, dist
        self._delay = np.zeros(N)

    def offsets(self) -> np.ndarray:
        return self.T * np.arange(self.N) / self.N

    def wait(self, i: int, t: float) -> float:
        """What has been posted to i, taken by a swap: corrections posted meanwhile survive."""
        posted, self._delay[i] = float(self._delay[i]), 0.0
        return posted

    def finished(self, i: int, x: float) -> float:
        if x <= self.T:
            return self.T - x
        self._delay += self._dist(i, self.N) * ((x - self.T) / self.N)
        self.T = x
        return 0.0


class ExpectedTime:
    """Algorithm 2: nothing is held back, and T follows the mean duration.

    T grows by g = (x - T) / (n + 10) at the n-th inference, and the balance of every other worker j
    by dist(j, i) g / N; a worker waits for its balance when that is positive. The phases do a
    random walk: deliveries end as a Poisson process, which covers 1 - 1/e of the ticks.

    The paper gives this algorithm in outline (appendix A); this is our reading.

    Args:
        N: workers.
        T: the first estimate, seconds.
    """

    def __init__(self, N: int, T: float) -> None:
        self.N, self.T, self._n = N, T, 0
        self._balance = np.zeros(N)

    def offsets(self) -> np.ndarray:
        return self.T * np.arange(self.N) / self.N

    def wait(self, i: int, t: float) -> float:
        owed = max(0.0, float(self._balance[i]))
        self._balance[i] -= owed
        return owed

    def finished(self, i: int, x: float) -> float:
        self._n += 1
        g = (x - self.T) / (self._n + 10)
        self.T += g
        self._balance += behind(i, self.N) * (g / self.N)
        return 0.0


class SlotGrid:
    """Slots at a spacing of max(T / N, M), each taken by whoever is free; cycles last T as in
    algorithm 1. No worker has a phase of its own that could be lost.

    Args:
        N: workers.
        T: the first estimate of the maximum, seconds.
        step_seconds: M.
    """

    def __init__(self, N: int, T: float, step_seconds: float) -> None:
        self.N, self.T, self._step_seconds = N, T, step_seconds
        self._slot = 0.0

    def offsets(self) -> np.ndarray:
        return np.zeros(self.N)

    def wait(self, i: int, t: float) -> float:
        """Until the next slot that nobody has taken."""
        spacing = max(self.T / self.N, self._step_seconds)
        passed = math.ceil((t - self._slot) / spacing - 1e-9)  # whoever is free at a slot takes it
        slot = self._slot + spacing * max(0, passed)
        self._slot = slot + spacing
        return slot - t

    def finished(self, i: int, x: float) -> float:
        self.T = max(self.T, x)
        return self.T - x


class Unstaggered:
    """All workers begin at once and never wait; N = 1 is sequential interaction."""

    def __init__(self, N: int) -> None:
        self.N = N

    def offsets(self) -> np.ndarray:
        return np.zeros(self.N)

    def wait(self, i: int, t: float) -> float:
        return 0.0

    def finished(self, i: int, x: float) -> float:
        return 0.0


class Deliveries(NamedTuple):
    """Actions in the order of their delivery: when their observation was read, and when they came.

    observed, delivered: (n,) seconds.
    """

    observed: np.ndarray
    delivered: np.ndarray

    def after(self, t: float) -> "Deliveries":
        """Those delivered after t."""
        return Deliveries(*(times[self.delivered > t] for times in self))

    def interval_cv(self) -> float:
        """std / mean of the intervals between deliveries."""
        return variation(np.diff(self.delivered))

    def ticks(self, step_seconds: float) -> np.ndarray:
        """The ticks, at multiples of M, that execute a new action: the first after a delivery."""
        return np.unique(np.ceil(self.delivered / step_seconds))


def variation(gaps: np.ndarray) -> float:
    """std / mean; 0 if there are none."""
    return float(gaps.std() / gaps.mean()) if gaps.size else 0.0


def simulate(schedule: Schedule, durations: Iterator[float], seconds: float) -> Deliveries:
    """Runs the workers of a schedule in virtual time.

    Args:
        schedule: used up: its state goes on from run to run.
        durations: x of each inference in the order of their beginnings; endless.
        seconds: from the beginning of the first cycle.
    """
    done: list[tuple[float, float]] = []  # delivered, observed
    events = [(float(t), i, 0.0) for i, t in enumerate(schedule.offsets())]  # x = 0: a beginning
    heapq.heapify(events)
    observed = [0.0] * len(events)
    while events[0][0] <= seconds:
        t, i, x = heapq.heappop(events)
        if x:
            t += schedule.finished(i, x)
            if t <= seconds:
                done.append((t, observed[i]))
            x = 0.0
        else:
            observed[i] = t + schedule.wait(i, t)
            x = next(durations)
            t = observed[i] + x
        heapq.heappush(events, (t, i, x))
    done.sort()
    delivered, read = np.array(done).reshape(-1, 2).T
    return Deliveries(read, delivered)
