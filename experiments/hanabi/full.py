"""What does the full game's preset learn in about two hours? A curve, and no claim beyond it.

One FoX agent learns the whole game with 2 to 5 players by `fox-hanabi train --config preset:full`.
After the given hours of the run it stops, plays greedily, and what it has learnt is recorded. The
same command goes on where it was stopped.
"""

import argparse
import sys
import time
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from fox.agents.hanabi.config import RunConfig
from fox.agents.hanabi.run import EVALUATION, new_net, play_greedily, read_agent, run_agent
from fox.agents.hanabi.scores import summary
from fox.agents.metrics import read_table
from fox.agents.signals import Stopped
from fox.figures import FAINT, INK, PALETTE, new_figure, plain_axes, save_figure

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "realtime"))

from record import record  # noqa: E402 - it is found there


def learn(config: RunConfig, seconds: float) -> None:
    """Until the run is over, or so many seconds have passed."""
    until = time.perf_counter() + seconds

    def tell(row: dict[str, Any]) -> None:
        scores = "  ".join(f"{P}p {row[f'keep_{P}p']:.2f}" for P in config.env.players)
        print(f"{row['games']:,} games, points kept: {scores}", flush=True)

    try:
        run_agent(config, tell, lambda: time.perf_counter() > until)
    except Stopped as stopped:
        print(stopped, flush=True)


def draw(path: Path, rows: list[dict[str, Any]], players: list[int]) -> None:
    """Points kept and strict scores of greedy games against the games played."""
    figure = new_figure(9.5, 4)
    panels = {"keep": "Points kept", "test": "Strict score"}
    for axes, (key, title) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        plain_axes(axes, title, "games played", "")
        axes.xaxis.set_major_formatter("{x:,g}")
        for number, P in enumerate(players):
            x, y = [row["games"] for row in rows], [row[f"{key}_{P}p"] for row in rows]
            axes.plot(x, y, color=PALETTE[number], label=f"{P} players")
        axes.set_ylim(bottom=0)
    figure.axes[0].set_ylabel("mean of greedy games, of 25", color=INK)
    figure.axes[0].legend(frameon=False, fontsize=9)
    figure.supxlabel("one seed; a beginning: rule agents make 15 to 18 points", color=FAINT)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--run", type=Path, default=Path("runs/hanabi-full"))
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--decks", type=int, default=200)
    options = parser.parse_args()
    preset = files("fox.agents.hanabi.configs") / "full.yaml"
    config = RunConfig.of(yaml.safe_load(preset.read_text()))
    config = replace(config, run=replace(config.run, folder=str(options.run)))
    learn(config, 3600 * options.hours)
    _, net = read_agent(options.run)
    rows = read_table(options.run / "metrics.csv")
    scores = {
        f"{rules.players}p": summary(play_greedily(net, rules, options.decks, EVALUATION))
        for rules in config.env.rules
    }
    results = {
        "config": config.as_dict(),
        "weights": sum(p.numel() for p in new_net(config).parameters()),
        "scores": scores,
        "curve": rows,
    }
    seconds = float(rows[-1]["seconds"] or 0)
    packages = ("numpy", "torch", "open-spiel")
    record(__file__, options.results, [], results, seconds=seconds, packages=packages)
    draw(options.results / "full.png", rows, config.env.players)


if __name__ == "__main__":
    main()
