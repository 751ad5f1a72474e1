"""Real time: inferences of 0.1, 1 and 3 seconds, asleep, and an action at nearly every tick.

The tick dispatcher on the wall clock, at a Game Boy's 59.7275 ticks a second, with a process for
each worker. Sleeping stands for a model that would need a core per worker: this measures the
scheduler and its data paths, not a policy.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from record import HERE, Line, record

from fox.agents.realtime.behaviour import beta, random_generator
from fox.agents.realtime.clock import WallClock
from fox.agents.realtime.delay import delay_for
from fox.agents.realtime.envs.catch import CatchRT
from fox.agents.realtime.loop import Interaction, Step
from fox.agents.realtime.plots import Curve, draw_curves
from fox.agents.realtime.processes import ProcessTransport
from fox.agents.realtime.reference import capped_lognormal
from fox.agents.realtime.rings import ObservationRing
from fox.agents.realtime.scheduler import TickDispatcher
from fox.agents.realtime.sweep import GAME_BOY
from fox.agents.realtime.ticks import InferenceWorker, Job, Rows, Source, token_dtype
from fox.agents.realtime.transport import Padded

CV, CAP = 0.1, 2.0  # of the lognormal durations
SEED = 0


@dataclass(frozen=True)
class Case:
    """N workers whose inferences last `mean` seconds; d = ceil(margin * mean / M)."""

    mean: float
    workers: int
    margin: float
    coverage: float | None  # that is wanted

    @property
    def name(self) -> str:
        return f"N = {self.workers}, {self.mean:g} s"

    @property
    def d(self) -> int:
        return delay_for(self.margin * self.mean, GAME_BOY)


CASES = (
    Case(1.0, 1, 1.3, None),
    Case(0.1, 8, 1.5, 0.98),
    Case(1.0, 66, 1.3, 0.95),
    Case(3.0, 189, 1.3, 0.95),
)


@dataclass(frozen=True)
class Lasting:
    """Seconds of a job, drawn by its number."""

    mean: float

    def __call__(self, job: Job) -> float:
        generator = random_generator(SEED, 7, job.id)
        return float(capped_lognormal(generator, self.mean, CV, CAP, 1)[0])


class Reading:
    """Features (1,): the tick that the worker has read, so that a mix-up would show."""

    def infer(self, job: Job, rows: Rows) -> tuple[np.ndarray, int]:
        return rows.read(job.obs_tick, job.obs_tick)["tick"].astype(np.float32), 0


def reading(worker: int) -> InferenceWorker:
    return Reading()


@dataclass
class Remembering:
    """A head that does nothing, and remembers the ticks that were read."""

    read: list[int] = field(default_factory=list)

    def act(self, features: np.ndarray, committed: np.ndarray, observation: np.ndarray) -> int:
        self.read.append(int(features[0]))
        return CatchRT.noop


class WatchedClock(WallClock):
    """A WallClock that remembers when each tick began, and how late that was."""

    def __init__(self, step_seconds: float) -> None:
        super().__init__(step_seconds)
        self.began: list[float] = []
        self.lateness: list[float] = []

    def wait(self, k: int) -> bool:
        missed = super().wait(k)
        self.began.append(self.now())
        self.lateness.append(self.began[-1] - self.time_of(k))
        return missed


class Stage(NamedTuple):
    """An interaction whose workers are ready."""

    interaction: Interaction
    clock: WatchedClock
    transport: ProcessTransport
    head: Remembering


@contextmanager
def staged(case: Case) -> Iterator[Stage]:
    """Starts the workers of a case, and ends them."""
    env, clock, head = CatchRT(), WatchedClock(GAME_BOY), Remembering()
    ring = ObservationRing(token_dtype(env.reset(SEED)), case.d, history=1, shared=True)
    transport = ProcessTransport(Padded(reading, Lasting(case.mean)), ring, features=1)
    try:
        transport.start(range(case.workers))
        dispatcher = TickDispatcher(range(case.workers), case.d)
        behaviour = beta("noop", n_actions=env.n_actions, noop=env.noop, seed=SEED)
        world = Interaction(env, head, dispatcher, clock, transport, ring, behaviour=behaviour)
        yield Stage(world, clock, transport, head)
    finally:
        transport.close()


def play(stage: Stage, seconds: float, at_tick: Callable[[int], None]) -> list[Step]:
    """Plays d ticks, which no action can reach, and then so many seconds of ticks."""
    steps = []
    for k in range(stage.interaction.dispatcher.d + round(seconds / GAME_BOY)):
        at_tick(k)
        steps.append(stage.interaction.tick())
    return steps


def measured(stage: Stage, steps: list[Step]) -> dict[str, Any]:
    """What a play shows."""
    counters, clock = stage.interaction.dispatcher.counters, stage.clock
    executed = [step for step in steps if step.source is Source.POLICY]
    gaps = np.diff([step.tick for step in executed])
    began = np.array(clock.began)
    fps = float((len(began) - 1) / (began[-1] - began[0]))
    return {
        "d": stage.interaction.dispatcher.d,
        "ticks": counters.ticks,
        "coverage": counters.coverage,
        "gap_cv": float(gaps.std() / gaps.mean()),
        "longest_gap_ticks": int(gaps.max()),
        "fps": fps,
        "fps_error": fps * GAME_BOY - 1,
        "jitter_ms": float(np.std(clock.lateness)) * 1e3,
        "longest_step_ms": float(np.diff(began).max()) * 1e3,
        "overruns": clock.overruns,
        "mixed_up": sum(
            step.obs_tick != read for step, read in zip(executed, stage.head.read, strict=True)
        ),
        "sources": {source.name: count for source, count in counters.sources.items()},
        "events": dict(stage.transport.counters),
    }


def holdings() -> dict[str, int]:
    """What a run could leave behind: processes, shared memory, open files. On Linux."""
    maps = Path("/proc/self/maps").read_text()
    return {
        "workers": len(multiprocessing.active_children()),
        "shared_memory": maps.count("/memfd:") + maps.count("/dev/shm/"),
        "files": len(os.listdir("/proc/self/fd")),
    }


def warm_up() -> None:
    """Starts the server that workers are forked from, which stays until this process ends."""
    with staged(Case(0.01, 1, 1.0, None)):
        pass


def coverage_curve(name: str, steps: list[Step], first: int) -> Curve:
    """Share of ticks with a policy action, in windows of a second."""
    width = round(1 / GAME_BOY)
    acted = np.array([step.source is Source.POLICY for step in steps[first:]], float)
    share = np.convolve(acted, np.ones(width), mode="valid") / width
    return Curve(name, ((np.arange(len(share)) + width) * GAME_BOY).tolist(), share.tolist())


def acceptance(case: Case, row: dict[str, Any]) -> list[Line]:
    lines = [
        Line(
            f"{case.name}: frames per second within 0.5 % of 59.7275",
            round(row["fps"], 4),
            abs(row["fps_error"]) < 0.005,
        ),
        Line(f"{case.name}: actions of another observation", row["mixed_up"], not row["mixed_up"]),
        Line(f"{case.name}: nothing is left behind", row["left"], not any(row["left"].values())),
    ]
    if case.coverage is not None:
        coverage = row["coverage"]
        wanted = f"{case.name}: coverage at least {case.coverage}"
        lines.append(Line(wanted, round(coverage, 4), coverage >= case.coverage))
    return lines


def run(case: Case, seconds: float) -> tuple[dict[str, Any], Curve]:
    """One case: what was measured, and its curve."""
    before = holdings()
    with staged(case) as stage:
        steps = play(stage, seconds, lambda k: None)
        row = {"mean": case.mean, "workers": case.workers, **measured(stage, steps)}
    del stage
    after = holdings()
    row["left"] = {name: after[name] - before[name] for name in before}
    return row, coverage_curve(case.name, steps, case.d)


def main() -> None:
    from rich.progress import track  # not in every worker, which imports this file

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each case")
    options = parser.parse_args()
    started = time.perf_counter()
    warm_up()
    rows, curves, lines = [], [], []
    for case in track(CASES, "cases"):
        row, curve = run(case, options.seconds)
        rows.append(row)
        curves.append(curve)
        lines += acceptance(case, row)
    about = {"cv": CV, "cap": CAP, "load": os.getloadavg()[0], "cases": rows}
    seconds = time.perf_counter() - started
    record(__file__, options.results, lines, about, seconds=seconds)
    draw_curves(
        options.results / "wall_clock.png",
        curves,
        title="An action at every tick, on the wall clock",
        xlabel="seconds since the first action was due",
        ylabel="share of ticks with an on-time action, last second",
        about="one process per worker, asleep for the length of an inference (cv 0.1); 59.7275 Hz",
    )


if __name__ == "__main__":
    main()
