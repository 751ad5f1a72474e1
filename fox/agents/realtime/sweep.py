"""How many workers an inference time needs: the tick dispatcher in virtual time.

Legend: M environment's step in seconds, T mean duration of an inference, d delay in ticks, N
workers, N* the least that give the wanted coverage. `sweep` is the way in.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fox.agents.realtime.delay import (
    ROUNDING,
    delay_for,
    ticks_for,
    workers_for,
    workers_for_maximum,
)
from fox.agents.realtime.reference import capped_lognormal
from fox.agents.realtime.scheduler import TickDispatcher
from fox.agents.realtime.ticks import Job, Source
from fox.figures import FAINT, INK, PALETTE, new_figure, plain_axes, save_figure

GAME_BOY = 1 / 59.7275  # seconds of a frame
SECONDS = (0.005, GAME_BOY, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


class Law(NamedTuple):
    """Capped lognormal durations: std / mean, and the longest as a multiple of the mean."""

    cv: float
    cap: float

    def durations(self, mean: float, size: int, seed: int) -> np.ndarray:
        """(size,) seconds."""
        return capped_lognormal(np.random.default_rng(seed), mean, self.cv, self.cap, size)


LAWS = (Law(0.0, 1.0), Law(0.05, 1.2), Law(0.2, 2.0), Law(0.5, 3.0))


@dataclass(frozen=True)
class Point:
    """One inference time under one law.

    Attributes:
        cv, cap: the law.
        seconds: T.
        d: delay in ticks, one more than the longest inference takes.
        ticks: that were played; the first 2 d of them are not counted.
        workers: N*.
        coverage: that N* workers gave.
        default_rule: delay.workers_for the mean and deviation of these durations.
        maximum_rule: delay.workers_for_maximum.
    """

    cv: float
    cap: float
    seconds: float
    d: int
    ticks: int
    workers: int
    coverage: float
    default_rule: int
    maximum_rule: int


class Fit(NamedTuple):
    """N* = slope T + intercept by least squares; slope in workers per second."""

    slope: float
    intercept: float
    r2: float


def play(dispatcher: TickDispatcher, durations: np.ndarray, step_seconds: float) -> None:
    """Runs the dispatcher in virtual time from tick 0, with workers that are never lost.

    Args:
        dispatcher: fresh; its trace and counters tell the rest.
        durations: (ticks,) seconds that the inference of each tick's observation takes, if
            somebody gets it.
        step_seconds: M.
    """
    finishing: dict[int, list[Job]] = {}
    for k, seconds in enumerate(durations.tolist()):
        for job in finishing.pop(k, ()):
            dispatcher.on_done(job.worker, job.id, float(durations[job.obs_tick]))
        if given := dispatcher.on_tick(k).dispatch:
            finishing.setdefault(k + ticks_for(seconds, step_seconds), []).append(given)


def sources_of(durations: np.ndarray, workers: int, d: int, step_seconds: float) -> np.ndarray:
    """(ticks,) Source of every tick that `play` of a TickDispatcher gives, thirty times as fast.

    Args:
        durations: (ticks,) as in play; none so long that the watchdog would end it.
        workers: N.
        d: in ticks.
        step_seconds: M.
    """
    busy = np.maximum(1, np.ceil(durations / step_seconds - ROUNDING)).astype(np.int64)
    returning = [0] * (len(busy) + int(busy.max()) + 1)
    taken = np.zeros(len(busy), dtype=bool)
    idle = workers
    for k, ticks in enumerate(busy.tolist()):
        idle += returning[k]
        if idle:
            idle -= 1
            returning[k + ticks] += 1
            taken[k] = True
    fate = np.where(busy <= d, Source.POLICY, Source.BETA_LATE)
    fate = np.where(taken, fate, Source.BETA_UNDISPATCHED)
    return np.concatenate([np.full(d, Source.BETA_RESET), fate])[: len(busy)]


def least_workers(
    law: Law, seconds: float, step_seconds: float, *, wanted: float = 0.99, seed: int = 0
) -> Point:
    """N* of one inference time, by bisection over the same durations.

    Plays max(6 d, 3000) ticks with d = ceil(longest / M) + 1 and leaves out the first 2 d.

    Args:
        law: of the durations.
        seconds: T.
        step_seconds: M.
        wanted: coverage.
        seed: of the durations.
    """
    d = delay_for(law.cap * seconds, step_seconds) + 1
    ticks = max(6 * d, 3000)
    durations = law.durations(seconds, ticks, seed)

    def coverage(workers: int) -> float:
        sources = sources_of(durations, workers, d, step_seconds)
        return float(np.mean(sources[2 * d :] == Source.POLICY))

    # d workers cover everything: each is back before its next turn.
    workers = 1 + bisect_left(range(1, d + 1), wanted, key=coverage)
    return Point(
        cv=law.cv,
        cap=law.cap,
        seconds=seconds,
        d=d,
        ticks=ticks,
        workers=workers,
        coverage=coverage(workers),
        default_rule=workers_for(float(durations.mean()), float(durations.std()), step_seconds),
        maximum_rule=workers_for_maximum(law.cap * seconds, step_seconds),
    )


def sweep(
    seconds: Sequence[float] = SECONDS,
    laws: Sequence[Law] = LAWS,
    step_seconds: float = GAME_BOY,
    *,
    wanted: float = 0.99,
    seed: int = 0,
) -> Iterator[Point]:
    """The points of all laws at all inference times, law by law, each as soon as it is there."""
    for law in laws:
        for one in seconds:
            yield least_workers(law, one, step_seconds, wanted=wanted, seed=seed)


def fit(points: Sequence[Point]) -> Fit:
    """The line through N* against T."""
    T, N = np.array([(point.seconds, point.workers) for point in points]).T
    slope, intercept = np.polyfit(T, N, 1)
    return Fit(float(slope), float(intercept), float(np.corrcoef(T, N)[0, 1] ** 2))


def draw_sweep(path: Path, points: Sequence[Point], step_seconds: float) -> None:
    """N* against T beside the maximum rule and T / M, and all laws as multiples of T / M."""
    figure = new_figure(11, 4.4)
    left, right = figure.subplots(1, 2)
    title = "Workers that keep up with the world"
    plain_axes(left, title, "mean inference time (s)", "workers")
    plain_axes(right, "The same, as multiples of T / M", "mean inference time (s)", "N* M / T")
    laws = sorted({(point.cv, point.cap) for point in points})
    for number, (cv, cap) in enumerate(laws):
        of_law = [point for point in points if (point.cv, point.cap) == (cv, cap)]
        T = np.array([point.seconds for point in of_law])
        N = np.array([point.workers for point in of_law])
        look = {"color": PALETTE[number], "marker": "osD^"[number % 4], "markersize": 4.5}
        left.plot(T, N, linestyle="none", label=f"N*, cv {cv:g}", **look)
        right.plot(T, N * step_seconds / T, label=f"cv {cv:g}, longest {cap:g} T", **look)
        if cap == max(cap for _, cap in laws):
            rule = [point.maximum_rule for point in of_law]
            left.plot(T, rule, color=INK, linestyle=":", label=f"maximum rule, longest {cap:g} T")
            left.plot(T, T / step_seconds, color=FAINT, label="T / M")
        right.axhline(cap, color=PALETTE[number], linestyle=":", linewidth=1)
    left.set(xscale="log", yscale="log", ylim=(0.8, None))
    right.set(xscale="log", ylim=(0.8, 1.1 * max(cap for _, cap in laws)))
    for axes in (left, right):
        axes.xaxis.set_major_formatter("{x:g}")
        axes.legend(frameon=False, fontsize=9)
    left.yaxis.set_major_formatter("{x:g}")
    figure.supxlabel(
        "dotted: what the maximum rule asks; step M = " + f"{1000 * step_seconds:.2f} ms",
        fontsize=8.5,
        color=FAINT,
    )
    save_figure(figure, path)
