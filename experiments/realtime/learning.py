"""Does a staggered agent learn to play better than a sequential one of the same size?

CatchRT in virtual time: the network really runs, and its inference is said to take 0.41 s, so that
an action lands 25 ticks after its observation. All agents are the same small FoX, learn by the same
deep Q-learning with the same number of updates in the background, which cost no time of the world,
and are evaluated alike. "staggered" has 25 workers. "sequential" has one, whose default behaviour
is noop or to repeat the last action, and its targets reach to its next decision. "at equal
core-seconds" plays 25 times longer: its one worker is then busy for as long as the 25 workers of
the staggered agent are together, and its learner makes as many updates.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import HERE, Line, interval, record
from rich.progress import track

from fox.agents.metrics import read_table
from fox.agents.realtime.config import ExplorationConfig, RunConfig, RunSettings, ScheduleConfig
from fox.agents.realtime.envs.catch import CatchRT
from fox.agents.realtime.envs.config import EnvConfig
from fox.agents.realtime.learner import LearnerConfig
from fox.agents.realtime.policy import PolicyConfig
from fox.agents.realtime.run import run_agent
from fox.figures import FOX, INK, TRANSFORMER, new_figure, plain_axes, save_figure

D = 25  # ticks
STEP_SECONDS = 1 / CatchRT.fps
LONGER = D  # workers of the staggered agent, all busy, over the one of a sequential agent


@dataclass(frozen=True)
class Kind:
    """A kind of agent: how it interacts, and how many times longer it plays."""

    interaction: str
    beta: str = "noop"
    longer: int = 1


KINDS = {
    "staggered": Kind("staggered"),
    "sequential, noop": Kind("sequential"),
    "sequential, repeat": Kind("sequential", "repeat"),
    "sequential, noop, at equal core-seconds": Kind("sequential", longer=LONGER),
    "sequential, repeat, at equal core-seconds": Kind("sequential", "repeat", longer=LONGER),
}


def config(kind: Kind, seed: int, ticks: int, folder: Path) -> RunConfig:
    """What a run of this kind is; everything that is not said is the same for all."""
    length = ticks * kind.longer
    return RunConfig(
        env=EnvConfig("catch"),
        policy=PolicyConfig(hidden_size=32, num_hidden_layers=1, num_heads=2, window=16, d_max=D),
        schedule=ScheduleConfig(
            interaction=kind.interaction,
            workers=D if kind.interaction == "staggered" else 1,
            clock="virtual",
            beta=kind.beta,
            inference_seconds=(D - 0.01) * STEP_SECONDS,
        ),
        learner=LearnerConfig(
            batch_size=8,
            burn_in=8,
            train=64,
            n_step=30,
            gamma=0.98,
            learning_rate=1e-3,
            target_every=1,
            target_rate=0.005,
        ),
        exploration=ExplorationConfig(first=1.0, last=0.05, decay_ticks=length // 2, hold_ticks=32),
        run=RunSettings(
            folder=str(folder),
            ticks=length,
            evaluation_ticks=12_800,
            seed=seed,
            updates_per_tick=0.25 / kind.longer,
            warmup_ticks=1000 * kind.longer,
            replay_ticks=length,
            report_ticks=ticks // 12 * kind.longer,
            checkpoint_ticks=length,
        ),
    )


def learn(name: str, seed: int, ticks: int, runs: Path) -> dict[str, Any]:
    """One agent: its evaluation, and the curve of its training."""
    torch.set_num_threads(1)
    kind = KINDS[name]
    folder = runs / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    ours = config(kind, seed, ticks, folder)
    started = time.process_time()
    result = run_agent(ours, lambda row: None, lambda: False)
    return {
        "kind": name,
        "seed": seed,
        "catch_rate": result["gains"] / (result["gains"] + result["losses"]),
        "balls": result["gains"] + result["losses"],
        "coverage": result["coverage"],
        "workers": result["workers"],
        "ticks": ours.run.ticks,
        "updates": result["version"],
        # Each inference keeps a core busy for its time, in virtual seconds.
        "inference_core_seconds": ours.run.ticks * result["coverage"] * D * STEP_SECONDS,
        "seconds": round(time.process_time() - started, 1),
        "curve": [
            {"tick": row["tick"], "catch_rate": row["gains"] / (row["gains"] + row["losses"])}
            for row in read_table(folder / "metrics.csv")
        ],
    }


def learn_all(seeds: Sequence[int], ticks: int, runs: Path) -> Iterator[dict[str, Any]]:
    """Every kind and seed, two at a time, as they come."""
    jobs = [(name, seed) for seed in seeds for name in KINDS]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for done in as_completed(pool.submit(learn, *job, ticks, runs) for job in jobs):
            yield done.result()


def rates(runs: Sequence[dict[str, Any]], name: str) -> list[float]:
    """Catch rates of a kind, by seed."""
    of_kind = [run for run in runs if run["kind"] == name]
    return [run["catch_rate"] for run in sorted(of_kind, key=lambda run: run["seed"])]


def acceptance(runs: Sequence[dict[str, Any]]) -> list[Line]:
    """Staggered against each sequential agent, seed by seed; and what all of it cost."""
    lines = []
    ours = rates(runs, "staggered")
    for name in KINDS:
        if name != "staggered":
            differences = [a - b for a, b in zip(ours, rates(runs, name), strict=True)]
            middle, low, high = interval(differences)
            measured = f"{middle:+.3f} ({low:+.3f} to {high:+.3f})"
            lines.append(Line(f"staggered catches more than {name}", measured, low > 0))
    minutes = sum(run["seconds"] for run in runs) / 2 / 60
    wanted = "at most 20 minutes of two cores, for all agents"
    return [*lines, Line(wanted, round(minutes, 1), minutes <= 20)]


def draw(path: Path, runs: Sequence[dict[str, Any]]) -> None:
    """Curves of training against the share of the updates, and the evaluations."""
    figure = new_figure(10.5, 4.2)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    plain_axes(left, "While they learn and explore", "share of training", "balls caught")
    plain_axes(right, "Afterwards, 100 balls per seed", "balls caught", "")
    colours = {name: FOX if name == "staggered" else TRANSFORMER for name in KINDS}
    lines = {"repeat": "--", "noop": "-"}
    for place, name in enumerate(reversed(KINDS)):
        kind, values = KINDS[name], rates(runs, name)
        middle, low, high = interval(values)
        right.barh(place, middle, color=colours[name], alpha=0.3 if kind.longer > 1 else 0.7)
        right.plot([low, high], [place, place], color=INK, linewidth=1)
        right.plot(values, [place] * len(values), ".", color=INK, markersize=4)
        if kind.longer == 1:
            curves = [run["curve"] for run in runs if run["kind"] == name]
            heights = np.array([[point["catch_rate"] for point in curve] for curve in curves])
            x = np.arange(1, heights.shape[1] + 1) / heights.shape[1]
            style = {"color": colours[name], "linestyle": lines[kind.beta], "label": name}
            left.plot(x, heights.mean(0), **style)
            left.fill_between(x, heights.min(0), heights.max(0), color=colours[name], alpha=0.1)
    right.set_yticks(range(len(KINDS)), [name.replace(", at", ",\nat") for name in reversed(KINDS)])
    left.legend(frameon=False)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--runs", type=Path, default=Path("runs/realtime-learning"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ticks", type=int, default=18_000)
    options = parser.parse_args()
    started = time.perf_counter()
    runs = learn_all(range(options.seeds), options.ticks, options.runs)
    runs = list(track(runs, "agents", total=len(KINDS) * options.seeds))
    runs.sort(key=lambda run: (list(KINDS).index(run["kind"]), run["seed"]))
    means = {name: interval(rates(runs, name)) for name in KINDS}
    results = {"delay_ticks": D, "catch_rate": means, "runs": runs}
    seconds = time.perf_counter() - started
    packages = ("numpy", "torch")
    record(__file__, options.results, acceptance(runs), results, seconds=seconds, packages=packages)
    draw(options.results / "learning.png", runs)


if __name__ == "__main__":
    main()
