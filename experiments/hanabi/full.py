"""What does the full game's preset learn in about two hours? Curves, and no claim beyond them.

Two FoX agents learn the whole game with 2 to 5 players by `fox-hanabi train --config preset:full`,
each on one core: one from weights that are drawn, the other, by `--run.start`, from those of an
agent of preset:small, which knows two colours, three ranks, and 2 or 3 players. After the given
hours each stops and plays greedily. The same command goes on where it was stopped.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.resources import files
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml

from fox.agents.hanabi.config import RunConfig
from fox.agents.hanabi.run import EVALUATION, play_greedily, read_agent, run_agent
from fox.agents.hanabi.scores import Scores
from fox.agents.metrics import read_table
from fox.agents.signals import Stopped, asked_to_stop
from fox.figures import FAINT, INK, PALETTE, new_figure, plain_axes, save_figure

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "realtime"))

from record import record  # noqa: E402 - it is found there

DRAWN, STARTED = "from drawn weights", "from a 2c3r agent"


def config(folder: Path, start: Path | None) -> RunConfig:
    """The preset, in a folder of its own."""
    preset = files("fox.agents.hanabi.configs") / "full.yaml"
    ours = RunConfig.of(yaml.safe_load(preset.read_text()))
    run = replace(ours.run, folder=str(folder), start=None if start is None else str(start))
    return replace(ours, run=run)


def learn(name: str, ours: RunConfig, hours: float, decks: int) -> dict[str, Any]:
    """One agent, until the run is over or has lasted so many hours; and what it plays like."""
    folder = Path(ours.run.folder)
    metrics = folder / "metrics.csv"
    rows = read_table(metrics) if metrics.is_file() else []
    so_far = float(rows[-1]["seconds"] or 0) if rows else 0.0
    until = time.perf_counter() + 3600 * hours - so_far

    def tell(row: dict[str, Any]) -> None:
        scores = "  ".join(
            f"{P}p {row[f'test_{P}p']:.2f} ({row[f'keep_{P}p']:.2f})" for P in ours.env.players
        )
        print(f"{name}, {row['games']:,} games: strict (kept) {scores}", flush=True)

    with asked_to_stop() as asked:
        try:
            run_agent(ours, tell, lambda: asked.is_set() or time.perf_counter() > until)
        except Stopped as stopped:
            print(f"{name}: {stopped}", flush=True)
            if asked.is_set():
                raise KeyboardInterrupt from None
    _, net = read_agent(folder)
    return {
        "kind": name,
        "config": ours.as_dict(),
        "weights": sum(p.numel() for p in net.parameters()),
        "scores": {
            f"{rules.players}p": Scores.of(play_greedily(net, rules, decks, EVALUATION)).summary()
            for rules in ours.env.rules
        },
        "curve": read_table(metrics),
    }


def draw(path: Path, runs: Sequence[dict[str, Any]], players: Sequence[int]) -> None:
    """Points kept and strict scores of greedy games against the games played."""
    figure = new_figure(10, 4.2)
    panels = {"keep": "Points kept", "test": "Strict score"}
    for axes, (key, title) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        plain_axes(axes, title, "games played", "")
        axes.xaxis.set_major_formatter("{x:,g}")
        for run, dashes in zip(runs, ("--", "-"), strict=True):
            for number, P in enumerate(players):
                x = [row["games"] for row in run["curve"]]
                y = [row[f"{key}_{P}p"] for row in run["curve"]]
                label = f"{P} players, {run['kind']}"
                axes.plot(x, y, dashes, color=PALETTE[number], label=label, linewidth=1.4)
        axes.set_ylim(bottom=0)
    figure.axes[0].set_ylabel("mean of greedy games, of 25", color=INK)
    figure.supxlabel("one seed each; rule agents make 15 to 18 points", color=FAINT, fontsize=8.5)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=8.5)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--runs", type=Path, default=Path("runs/hanabi-full"))
    parser.add_argument(
        "--start",
        type=Path,
        default=Path("runs/small"),
        help="folder of a run of fox-hanabi train --config preset:small",
    )
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--decks", type=int, default=200)
    options = parser.parse_args()
    read_agent(options.start)  # or there is nothing to start from
    started = time.perf_counter()
    beginnings = {DRAWN: None, STARTED: options.start}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(
                learn,
                name,
                config(options.runs / name.replace(" ", "-"), start),
                options.hours,
                options.decks,
            )
            for name, start in beginnings.items()
        ]
        runs = [job.result() for job in jobs]
    seconds = time.perf_counter() - started
    options.results.mkdir(parents=True, exist_ok=True)
    packages = ("numpy", "torch", "open-spiel")
    record(__file__, options.results, [], {"runs": runs}, seconds=seconds, packages=packages)
    draw(options.results / "full.png", runs, runs[0]["config"]["env"]["players"])


if __name__ == "__main__":
    main()
