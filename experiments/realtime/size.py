"""Return against model size: CatchRT in virtual time, sequential and staggered interaction.

No network of these sizes is trained or run. One small FoX, a clone of an oracle, really acts; its
inference lasts, on the virtual clock, as long as that of a model of the given size on one CPU
thread, and the world goes on meanwhile. So skill is the same at all sizes, and what is compared is
what slowness costs: "as slow as a model of this size". A stopped run goes on by the same command.

Each agent is cloned for what it meets: its delay, and how long its actions are executed. Sequential
agents have the late head too, and the one that repeats its actions is cloned from an oracle that
plans with held actions; both are stronger than the sequential oracles of delay.py.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from imitation import (
    STEP_SECONDS,
    OracleHead,
    OracleWorker,
    Plays,
    Schedule,
    clone,
    perturbed_plays,
    play,
    play_policy,
)
from record import HERE, Line, interval, record
from rich.progress import track

from fox.agents.realtime.delay import Sizing, size_for
from fox.agents.realtime.policy import PolicyConfig, RealtimePolicy
from fox.agents.realtime.sweep import Law
from fox.figures import FAINT, INK, PALETTE, new_figure, plain_axes, save_figure
from fox.files import read_json, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FALL = 128  # ticks of a ball
PLAYED = 500  # seeds of the balls from here on: none that the clones have seen
SIZE_LABEL = "parameters, millions"
HEAD_SHARE = 0.1  # of a tick, for the head at the due tick
LAW = Law(0.05, 1.2)  # of the durations around their mean


class Size(NamedTuple):
    """A model: its kind, millions of parameters, seconds of one inference on one CPU thread."""

    family: str
    millions: float
    seconds: float

    def sizing(self) -> Sizing:
        """d for 99 % of the durations, and N."""
        overhead = HEAD_SHARE * STEP_SECONDS
        return size_for(self.durations(4096, 0), STEP_SECONDS, overhead_seconds=overhead)

    def durations(self, number: int, seed: int) -> np.ndarray:
        """(number,) seconds."""
        return LAW.durations(self.seconds, number, seed)


SIZES = (
    Size("FoX, window of 64 ticks", 0.9, 0.0051),
    Size("FoX, window of 64 ticks", 10.6, 0.035),
    Size("FoX, window of 64 ticks", 25, 0.092),
    Size("FoX, window of 64 ticks", 99, 0.271),
    Size("IMPALA", 0.9, 0.0053),
    Size("IMPALA", 10.4, 0.0788),
    Size("IMPALA", 104.7, 0.979),
)


class Agent(NamedTuple):
    """How an agent interacts, and whether its head knows the actions on their way."""

    staggered: bool
    beta: Literal["noop", "repeat"]
    head: Literal["late", "plain"]

    def schedule(self, sizing: Sizing) -> Schedule:
        """At a size."""
        return Schedule(sizing.d, sizing.workers if self.staggered else 1, self.beta)


AGENTS = {
    "sequential, noop": Agent(False, "noop", "late"),
    "sequential, repeat": Agent(False, "repeat", "late"),
    "staggered, plain head": Agent(True, "noop", "plain"),
    "staggered, late head": Agent(True, "noop", "late"),
}
SEQUENTIAL, STAGGERED = list(AGENTS)[:2], list(AGENTS)[2:]


@dataclass(frozen=True)
class Settings:
    """What decides the cost.

    Attributes:
        seeds: of data, weights and balls, all at once.
        data_ticks: of each play to learn from.
        steps: of learning; 1 + d / 16 times as many for delay d, which has so many more inputs.
        balls: of each play that counts.
    """

    seeds: int = 5
    data_ticks: int = 4096
    steps: int = 150
    balls: int = 25


def delays(sizes: Sequence[Size]) -> tuple[int, ...]:
    """All that occur."""
    return tuple(sorted({size.sizing().d for size in sizes}))


@lru_cache(maxsize=1)
def data(sizes: Sequence[Size], ticks: int, seed: int) -> Plays:
    """The oracles' plays of a seed: the same for all clones."""
    return perturbed_plays(delays(sizes), ticks, seed)


class Case(NamedTuple):
    """One delay and seed: its clones serve all sizes that are as slow."""

    d: int
    seed: int
    sizes: tuple[Size, ...]
    settings: Settings

    def clones(self) -> Callable[[str, int], RealtimePolicy]:
        """From head and hold to a policy, trained when it is asked for first."""
        plays = data(self.sizes, self.settings.data_ticks, self.seed)
        steps = round(self.settings.steps * (1 + self.d / 16))

        @cache
        def cloned(head: Literal["late", "plain"], hold: int) -> RealtimePolicy:
            config = PolicyConfig(
                hidden_size=64, num_hidden_layers=1, num_heads=2, window=4, head=head, d_max=self.d
            )
            return clone(plays, config, self.d, hold, seed=self.seed, steps=steps)

        return cloned


def run_case(case: Case) -> list[dict[str, Any]]:
    """The rows of all sizes with a delay: clones play, and the oracles that they imitate."""
    torch.set_num_threads(1)
    cloned = case.clones()
    ticks = FALL * case.settings.balls
    rows = []
    for size in case.sizes:
        sizing = size.sizing()
        if sizing.d != case.d:
            continue
        durations = size.durations(ticks, case.seed + 1)
        for name, agent in AGENTS.items():
            schedule = agent.schedule(sizing)
            seed = PLAYED + case.seed
            policy = cloned(agent.head, schedule.hold)
            played = play_policy(policy, schedule, durations, ticks=ticks, seed=seed)
            head = OracleHead(schedule.hold)
            ideal = play(schedule, OracleWorker, head, durations, ticks=ticks, seed=seed)
            rows.append(
                {
                    "family": size.family,
                    "millions": size.millions,
                    "agent": name,
                    "seed": case.seed,
                    "d": case.d,
                    "workers": schedule.workers,
                    "return": float(played.rewards.sum()) / case.settings.balls,
                    "oracle": float(ideal.rewards.sum()) / case.settings.balls,
                    "policy_ticks": played.on_time,
                    "core_seconds_per_tick": played.busy / ticks,
                }
            )
    return rows


def finished(cases: Sequence[Case], jobs: int) -> Iterator[tuple[Case, list[dict[str, Any]]]]:
    """Cases with their rows, as they end; one job at a time runs in this process."""
    if jobs == 1:
        yield from ((case, run_case(case)) for case in cases)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(run_case, case): case for case in cases}
        yield from ((futures[future], future.result()) for future in as_completed(futures))


def run_all(
    sizes: tuple[Size, ...], settings: Settings, work: Path, jobs: int
) -> list[dict[str, Any]]:
    """The rows of all cases; one that is done already in `work` is read."""
    about = {"sizes": [list(size) for size in sizes], "settings": asdict(settings)}
    cases = [
        Case(d, seed, sizes, settings) for seed in range(settings.seeds) for d in delays(sizes)
    ]
    paths = {case: work / f"delay-{case.d}-seed-{case.seed}.json" for case in cases}
    found = {case: read_json(path) for case, path in paths.items() if path.is_file()}
    done = {case: one["rows"] for case, one in found.items() if one["about"] == about}
    missing = [case for case in cases if case not in done]
    for case, rows in track(finished(missing, jobs), "delays x seeds", total=len(missing)):
        write_json(paths[case], {"about": about, "rows": rows})
        done[case] = rows
    return [row for case in cases for row in done[case]]


class Table:
    """The rows by size and agent."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows = rows
        self.sizes = sorted({(row["family"], row["millions"]) for row in rows})

    def values(self, size: tuple[str, float], agent: str, key: str = "return") -> np.ndarray:
        """(seeds,) of a size and an agent, in the order of the seeds."""
        return np.array(
            [
                row[key]
                for row in self.rows
                if (row["family"], row["millions"], row["agent"]) == (*size, agent)
            ]
        )

    def gaps(self, better: str, worse: str) -> dict[str, tuple[float, float, float]]:
        """Differences of return at each size, seed by seed, with their 95 % intervals."""
        return {
            f"{size[0]} {size[1]:g}M": interval(
                self.values(size, better) - self.values(size, worse)
            )
            for size in self.sizes
        }


def told(found: tuple[float, float, float]) -> str:
    """A mean and its interval."""
    return "{:+.2f} ({:+.2f} to {:+.2f})".format(*found)


def acceptance(table: Table) -> list[Line]:
    """Staggered is at least as good as sequential, which falls with size; for each pair."""
    lines = []
    for better in STAGGERED:
        for worse in SEQUENTIAL:
            gaps = table.gaps(better, worse)
            lines.append(
                Line(
                    f"{better} >= {worse} at every size (mean of the differences)",
                    {name: told(gap) for name, gap in gaps.items()},
                    all(middle >= 0 for middle, _, _ in gaps.values()),
                )
            )
    for agent in SEQUENTIAL:
        for family in sorted({family for family, _ in table.sizes}):
            sizes = [size for size in table.sizes if size[0] == family]
            fall = interval(table.values(sizes[0], agent) - table.values(sizes[-1], agent))
            name = f"{agent} falls from {sizes[0][1]:g}M to {sizes[-1][1]:g}M, {family}"
            lines.append(Line(f"{name} (95 % interval above 0)", told(fall), fall[1] > 0))
    seeds = len({row["seed"] for row in table.rows})
    return [*lines, Line("intervals over at least 5 seeds", seeds, seeds >= 5)]


def draw(table: Table, path: Path, balls: int) -> None:
    """Return against size for each family, and what it costs."""
    figure = new_figure(13.5, 4.6)
    families = sorted({family for family, _ in table.sizes})
    *panels, cost = figure.subplots(1, len(families) + 1)
    for axes, family in zip(panels, families, strict=True):
        sizes = [size for size in table.sizes if size[0] == family]
        plain_axes(axes, f"As slow as {family}", SIZE_LABEL, "return per ball")
        _size_axis(axes)
        for size in sizes:
            d = round(table.values(size, "staggered, late head", "d")[0])
            axes.annotate(f"d = {d}", (size[1], -1.0), ha="center", fontsize=8, color=FAINT)
        for colour, agent in zip(PALETTE, AGENTS, strict=False):
            x = [millions for _, millions in sizes]
            found = [interval(table.values(size, agent)) for size in sizes]
            middle, low, high = zip(*found, strict=True)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(x, middle, color=colour, marker="o", markersize=4, label=agent)
            oracle = [table.values(size, agent, "oracle").mean() for size in sizes]
            axes.plot(x, oracle, color=colour, linestyle=":", linewidth=1)
        axes.set_ylim(-1.05, 1.05)
    _draw_cost(cost, table)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    seeds = len({row["seed"] for row in table.rows})
    figure.suptitle(
        "One small clone acts at every size, delayed as a model of that size would be "
        f"(virtual time; {seeds} seeds x {balls} balls, 95 % bands; dotted: the oracles' own)",
        fontsize=9,
        color=FAINT,
    )
    save_figure(figure, path)


def _draw_cost(axes: "Axes", table: Table) -> None:
    plain_axes(axes, "What it takes", SIZE_LABEL, "core-seconds per tick")
    for agent, style in (("sequential, noop", "--"), ("staggered, late head", "-")):
        for colour, family in zip((INK, FAINT), sorted({f for f, _ in table.sizes}), strict=False):
            sizes = [size for size in table.sizes if size[0] == family]
            seconds = [table.values(size, agent, "core_seconds_per_tick").mean() for size in sizes]
            name = f"{agent.partition(',')[0]}, {family.partition(',')[0]}"
            x = [millions for _, millions in sizes]
            axes.plot(x, seconds, style, color=colour, marker="o", markersize=4, label=name)
    _size_axis(axes)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=False, fontsize=8, handlelength=3.5)


def _size_axis(axes: "Axes") -> None:
    axes.set_xscale("log")
    axes.set_xlim(0.6, 160)
    axes.xaxis.set_major_formatter("{x:g}")


def experiment(
    sizes: tuple[Size, ...], settings: Settings, work: Path, folder: Path, jobs: int
) -> bool:
    """Runs what is not done yet, writes size.json and size.png; whether all lines have passed."""
    clock = work / "seconds.json"
    started = time.perf_counter() - (read_json(clock) if clock.is_file() else 0.0)
    try:
        rows = run_all(sizes, settings, work, jobs)
    finally:  # a run that was stopped adds up the time of its calls
        write_json(clock, time.perf_counter() - started)
    table = Table(rows)
    passed = record(
        __file__,
        folder,
        acceptance(table),
        {
            "what": "one small clone acts at every size, delayed as a model of that size would be",
            "settings": asdict(settings),
            "rows": rows,
        },
        seconds=time.perf_counter() - started,
        packages=("numpy", "torch"),
    )
    draw(table, folder / "size.png", settings.balls)
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=Path("runs/realtime-size"))
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side")
    args = parser.parse_args()
    experiment(SIZES, Settings(), args.work, args.results, args.jobs)


if __name__ == "__main__":
    main()
