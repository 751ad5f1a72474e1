"""Do small FoX agents learn the reduced games on two cores within twenty minutes, and what carries?

Each agent is one set of weights that learns by self-play with several numbers of players at once,
by `fox-hanabi train` with a preset; two train at a time, each on one core. KINDS says what differs:
the game, the numbers of players, and the memory over own turns. Then all play with all, and with
the rule agents, by `fox-hanabi evaluate`. The same command goes on where it was stopped.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from importlib.resources import files
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.progress import track

from fox.agents.hanabi.config import RunConfig
from fox.agents.hanabi.evaluate import evaluate
from fox.agents.hanabi.run import new_net, run_agent
from fox.agents.hanabi.scores import estimate
from fox.agents.metrics import read_table
from fox.figures import FAINT, INK, PALETTE, new_figure, plain_axes, save_figure

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "realtime"))

from record import Line, record  # noqa: E402 - it is found there

BUDGET, SMOKE_BUDGET = 2400, 60  # CPU-seconds: twenty minutes of two cores, and one of one
DECKS = 500  # of each pairing in cross-play


@dataclass(frozen=True)
class Kind:
    """Agents that differ in the seed alone.

    Attributes:
        preset: of fox-hanabi train.
        players: numbers of players that they learn with.
        memory: over own turns.
        wanted: the mean strict score that is asked for, by the number of players.
        share: of the preset's games.
    """

    preset: str
    players: tuple[int, ...]
    memory: str
    wanted: dict[int, float]
    share: float = 1.0


MINI, SMALL = {2: 3.6, 3: 3.3}, {2: 4.6, 3: 4.4}
SMOKE = "smoke, FoX memory"
KINDS = {
    SMOKE: Kind("mini", (2,), "fox", {2: 0.42 + 1.0}, share=0.16),  # one point over random play
    "mini, FoX memory": Kind("mini", (2, 3), "fox", MINI),
    "mini, LSTM memory": Kind("mini", (2, 3), "lstm", {}),
    "mini, no memory": Kind("mini", (2, 3), "none", {}),
    "small, FoX memory": Kind("small", (2, 3), "fox", SMALL),
    "small, never with 3": Kind("small", (2, 4), "fox", {}, share=0.25),
}


def config(name: str, seed: int, folder: Path) -> RunConfig:
    """What a run of this kind is."""
    kind = KINDS[name]
    path = files("fox.agents.hanabi.configs") / f"{kind.preset}.yaml"
    preset = RunConfig.of(yaml.safe_load(path.read_text()))
    return replace(
        preset,
        env=replace(preset.env, players=list(kind.players)),
        network=replace(preset.network, memory=kind.memory),
        run=replace(
            preset.run, seed=seed, folder=str(folder), games=int(kind.share * preset.run.games)
        ),
    )


def place(runs: Path, name: str, seed: int) -> Path:
    """The folder of a run."""
    return runs / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"


def learn(name: str, seed: int, runs: Path) -> dict[str, Any]:
    """One agent: its evaluation, and the curve of its training."""
    torch.set_num_threads(1)
    ours = config(name, seed, place(runs, name, seed))
    result = run_agent(ours, lambda row: None, lambda: False)
    curve = read_table(place(runs, name, seed) / "metrics.csv")
    return {
        "kind": name,
        "seed": seed,
        "weights": sum(p.numel() for p in new_net(ours).parameters()),
        "games": ours.run.games,
        "turns": int(curve[-1]["turns"] or 0),
        "updates": result["version"],
        "cpu_seconds": round(result["cpu_seconds"], 1),
        "seconds": round(result["seconds"], 1),
        "scores": result["scores"],
        "curve": [
            {key: row[key] for key in ("games", "cpu_seconds", *tests(KINDS[name].players))}
            for row in curve
        ],
    }


def tests(players: Sequence[int]) -> list[str]:
    """The columns of metrics.csv with greedy scores."""
    return [f"test_{P}p" for P in players]


def learn_all(seeds: Sequence[int], names: Sequence[str], runs: Path) -> Iterator[dict[str, Any]]:
    """Every kind and seed, two at a time, as they come."""
    jobs = [(name, seed) for name in names for seed in seeds]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(learn, *job, runs) for job in jobs]):
            yield done.result()


def scores(runs: Sequence[dict[str, Any]], name: str, P: int) -> list[float]:
    """Mean strict scores of a kind with P players, by seed."""
    of_kind = sorted((run for run in runs if run["kind"] == name), key=lambda run: run["seed"])
    return [run["scores"][f"{P}p"]["strict"] for run in of_kind]


def kinds_of(runs: Sequence[dict[str, Any]]) -> dict[str, Kind]:
    """The kinds of which there are runs."""
    there = {run["kind"] for run in runs}
    return {name: kind for name, kind in KINDS.items() if name in there}


def acceptance(runs: Sequence[dict[str, Any]]) -> list[Line]:
    """What was asked for, and what came out."""
    lines = []
    for name, kind in kinds_of(runs).items():
        for P, least in kind.wanted.items():
            middle, _, low, high = estimate(scores(runs, name, P))
            measured = f"{middle:.2f} ({low:.2f} to {high:.2f})"
            lines.append(Line(f"{name}, {P} players: {least} or more", measured, middle >= least))
    for wanted, budget, some in (
        ("each learns", BUDGET, runs),
        ("each smoke test takes", SMOKE_BUDGET, [run for run in runs if run["kind"] == SMOKE]),
    ):
        if some:
            longest = max(run["cpu_seconds"] for run in some)
            line = Line(f"{wanted} in {budget} CPU-seconds or fewer", longest, longest <= budget)
            lines.append(line)
    return lines


def table(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean strict scores over seeds of every kind, with their intervals."""
    rows = []
    for name, kind in kinds_of(runs).items():
        for key in next(run["scores"] for run in runs if run["kind"] == name):
            P = int(key[:-1])
            values = scores(runs, name, P)
            middle, _, low, high = estimate(values)
            rows.append(
                {"kind": name, "players": P, "trained": P in kind.players, "seeds": len(values)}
                | {"strict": middle, "low": low, "high": high}
            )
    return rows


def draw(path: Path, runs: Sequence[dict[str, Any]]) -> None:
    """Curves of the greedy scores, one panel for each game and number of players."""
    panels = [(preset, P) for preset in ("mini", "small") for P in (2, 3)]
    figure = new_figure(13, 4)
    for axes, (preset, P) in zip(figure.subplots(1, len(panels)).flat, panels, strict=True):
        plain_axes(axes, f"{preset}, {P} players", "CPU-seconds", "")
        for number, (name, kind) in enumerate(kinds_of(runs).items()):
            if kind.preset != preset or P not in kind.players or name == SMOKE:
                continue
            curves = [run["curve"] for run in runs if run["kind"] == name]
            x = np.mean([[point["cpu_seconds"] for point in curve] for curve in curves], axis=0)
            y = np.array([[point[f"test_{P}p"] for point in curve] for curve in curves])
            colour = PALETTE[number % len(PALETTE)]
            axes.plot(x, y.mean(0), color=colour, label=name)
            axes.fill_between(x, y.min(0), y.max(0), color=colour, alpha=0.12, linewidth=0)
            if kind.wanted:
                axes.axhline(kind.wanted[P], color=FAINT, linestyle=":", linewidth=1.2)
        axes.set_ylim(bottom=0)
    figure.axes[0].set_ylabel("mean strict score, greedy", color=INK)
    handles = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    about = "lines: means over the seeds; bands: lowest and highest; dotted: asked for"
    figure.supxlabel(about, fontsize=8.5, color=FAINT)
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper center", ncols=5, frameon=False
    )
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--runs", type=Path, default=Path("runs/hanabi-learning"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("intervals over seeds need 2 seeds or more")
    options.results.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    seeds, names = range(options.seeds), options.kinds
    found = learn_all(seeds, names, options.runs)
    runs = list(track(found, "agents", total=len(names) * len(seeds)))
    runs.sort(key=lambda run: (list(KINDS).index(run["kind"]), run["seed"]))
    for name in [name for name in names if KINDS[name].wanted and name != SMOKE]:
        preset = KINDS[name].preset
        output = options.runs / f"cross_play-{preset}"
        evaluate(
            [str(place(options.runs, name, seed)) for seed in seeds],
            games=DECKS,
            output=str(output),
        )
        for path in [*output.glob("*.png"), *output.glob("*.csv"), *output.glob("*.json")]:
            shutil.copy(path, options.results / f"{preset}_{path.name}")
    results = {"table": table(runs), "runs": runs}
    seconds = time.perf_counter() - started
    packages = ("numpy", "torch", "open-spiel")
    lines = acceptance(runs)
    record(__file__, options.results, lines, results, seconds=seconds, packages=packages)
    draw(options.results / "learning.png", runs)


if __name__ == "__main__":
    main()
