"""Killed workers: no tick waits for them, and the others cover the time until they are back.

First 15 % of the workers are killed at one tick (kill -9); then single ones at random for a minute.
"""

import argparse
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from record import HERE, Line, record
from wall_clock import SEED, Case, Stage, coverage_curve, holdings, measured, play, staged, warm_up

from fox.agents.realtime.loop import Step
from fox.agents.realtime.sweep import GAME_BOY
from fox.agents.realtime.ticks import Source
from fox.figures import FOX, INK, TRANSFORMER, new_figure, plain_axes, save_figure

CASE = Case(mean=1.0, workers=66, margin=1.3, coverage=0.95)
SHARE = 0.15  # of the workers that are killed at once
MEAN_PAUSE = 0.5  # seconds between kills at random
QUIET, WINDOW = 4.0, 2.0  # seconds before the kills, and of the coverage after them
PATIENCE = 10.0  # seconds that the last lost workers have to return


@dataclass
class Killer:
    """Kills workers at some ticks, and counts at every tick how many are left.

    Attributes:
        number: tick -> how many to kill.
        live: workers at each tick, as the dispatcher knows them.
        killed: how many at each tick, where there were any.
    """

    stage: Stage
    number: Callable[[int], int]
    live: list[int] = field(default_factory=list)
    killed: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(SEED)

    def __call__(self, k: int) -> None:
        events = self.stage.transport.counters
        self.live.append(CASE.workers - events["Lost"] + events["Joined"])
        pids = sorted(self.stage.transport.pids.values())
        number = min(self.number(k), len(pids))
        for pid in self._random.choice(pids, number, replace=False).tolist():
            os.kill(pid, signal.SIGKILL)
        if number:
            self.killed[k] = number


@dataclass(frozen=True)
class Play:
    """What was measured, every step, and the workers that were live and killed at each."""

    row: dict[str, Any]
    steps: list[Step]
    live: list[int]
    killed: dict[int, int]


def killing(number: Callable[[int], int], seconds: float) -> Play:
    """Plays with kills, and waits until all who were killed are back."""
    before = holdings()
    with staged(CASE) as stage:
        killer = Killer(stage, number)
        steps = play(stage, seconds, killer)
        row = measured(stage, steps)
        total, until = sum(killer.killed.values()), time.perf_counter() + PATIENCE
        while stage.transport.counters["Joined"] < total and time.perf_counter() < until:
            stage.transport.poll(stage.clock.now())
            time.sleep(0.01)
        row |= {"killed": total, "events": dict(stage.transport.counters)}
    live, killed = killer.live, killer.killed
    del stage, killer  # and with them the shared memory
    after = holdings()
    row["left"] = {name: after[name] - before[name] for name in before}
    return Play(row, steps, live, killed)


def at_once(seconds: float) -> Play:
    """15 % at one tick, and when coverage was back."""
    at = CASE.d + round(QUIET / GAME_BOY)
    number = round(SHARE * CASE.workers)
    once = killing(lambda k: number if k == at else 0, seconds)
    missing = [k for k in range(at + 1, len(once.steps)) if once.live[k] < CASE.workers]
    respawn = max(missing, default=at) - at
    acted = np.array([step.source is Source.POLICY for step in once.steps], float)
    first, last = at + CASE.d + respawn, at + CASE.d + respawn + round(WINDOW / GAME_BOY)
    once.row["killed_at"], once.row["respawn_ticks"] = at, respawn
    once.row["coverage_until"] = float(acted[at:first].mean())
    after = acted[first:last]
    once.row["coverage_after"] = float(after.mean()) if len(after) else 0.0  # they came too late
    return once


def at_random(seconds: float) -> Play:
    """Single workers, after exponential pauses."""
    rng = np.random.default_rng(SEED)
    times = np.cumsum(rng.exponential(MEAN_PAUSE, int(4 * seconds / MEAN_PAUSE) + 8))
    ticks = CASE.d + np.floor(times[times < seconds] / GAME_BOY).astype(int)
    return killing(lambda k: int((ticks == k).sum()), seconds)


def acceptance(name: str, row: dict[str, Any]) -> list[Line]:
    """Lines of both plays: nothing stalls, all return, nothing is left."""
    events = row["events"]
    back = events.get("Lost") == events.get("Joined") == row["killed"]
    return [
        Line(f"{name}: ticks more than two periods late", row["overruns"], row["overruns"] == 0),
        Line(f"{name}: all {row['killed']} killed were noticed and are back", events, back),
        Line(f"{name}: actions of another observation", row["mixed_up"], row["mixed_up"] == 0),
        Line(f"{name}: nothing is left behind", row["left"], not any(row["left"].values())),
    ]


def main() -> None:
    from rich.console import Console  # not in every worker, which imports this file

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--seconds", type=float, default=60.0, help="of kills at random")
    options = parser.parse_args()
    started = time.perf_counter()
    warm_up()
    with Console().status(f"{SHARE:.0%} of {CASE.workers} workers are killed at once"):
        once = at_once(seconds=3 * QUIET)
    with Console().status(f"workers are killed at random for {options.seconds:g} s"):
        random = at_random(options.seconds)
    wanted = "at once: coverage at least 0.95 again d ticks + respawn time after the kills"
    after = once.row["coverage_after"]
    lines = [
        Line(wanted, round(after, 4), after >= 0.95),
        *acceptance("at once", once.row),
        *acceptance("at random", random.row),
    ]
    about = {
        "workers": CASE.workers,
        "mean": CASE.mean,
        "load": os.getloadavg()[0],
        "at_once": once.row,
        "at_random": random.row,
    }
    seconds = time.perf_counter() - started
    record(__file__, options.results, lines, about, seconds=seconds)
    draw(options.results / "kills.png", (once, random))


def draw(path: Path, plays: Sequence[Play]) -> None:
    """Coverage and live workers around the kills."""
    figure = new_figure(7.6, 5.6)
    titles = ("15 % of the workers killed at once", "single workers killed at random")
    for axes, played, title in zip(figure.subplots(2, 1), plays, titles, strict=True):
        plain_axes(axes, title, "seconds since the first action was due", "share")
        curve = coverage_curve("ticks with an on-time action, last second", played.steps, CASE.d)
        axes.plot(curve.x, curve.y, color=FOX, label=curve.name)
        live = np.array(played.live[CASE.d :]) / CASE.workers
        seconds = np.arange(len(live)) * GAME_BOY
        axes.step(seconds, live, color=TRANSFORMER, lw=1, where="post", label="live workers")
        kills = [(k - CASE.d) * GAME_BOY for k in played.killed]
        axes.plot(kills, [1.03] * len(kills), "v", color=INK, ms=4, label="kill -9", clip_on=False)
        axes.set_ylim(0.5, 1.05)
    figure.axes[0].legend(frameon=False, fontsize=9, loc="lower right")
    save_figure(figure, path)


if __name__ == "__main__":
    main()
