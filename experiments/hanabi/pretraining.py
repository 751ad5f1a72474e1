"""Does an encoder that has read games of rule agents learn to play sooner than one that has not?

Agents read 2c2r word by word (`network.unit: token`). Some begin with drawn weights, some with a
FoX that `fox-train` has taught to go on with transcripts of rule agents (`network.pretrained`); all
else is preset:mini, for a quarter of its games. The same command goes on where it was stopped.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.progress import track

from fox.agents.hanabi.config import RunConfig
from fox.agents.hanabi.run import run_agent
from fox.agents.hanabi.scores import estimate
from fox.agents.hanabi.transcripts import SETTINGS, transcripts
from fox.agents.metrics import read_table
from fox.figures import INK, PALETTE, new_figure, plain_axes, save_figure

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "realtime"))

from record import record  # noqa: E402 - it is found there

DRAWN, PRETRAINED = "drawn", "pretrained"
SHARE = 0.25  # of the preset's games


def preset() -> RunConfig:
    """preset:mini, by words."""
    path = files("fox.agents.hanabi.configs") / "mini.yaml"
    ours = RunConfig.of(yaml.safe_load(path.read_text()))
    games = int(SHARE * ours.run.games)
    network = replace(ours.network, unit="token")
    return replace(ours, network=network, run=replace(ours.run, games=games))


def pretrain(folder: Path) -> Path:
    """A FoX that has learnt transcripts in a folder; it is made once."""
    ours, model = preset(), folder / "fox" / "model"
    if not (model / "config.json").is_file():
        network = ours.network
        sizes = {"hidden_size": network.hidden_size, "num_heads": network.num_heads}
        sizes["num_hidden_layers"] = network.num_hidden_layers
        transcripts(str(folder), game=ours.env.game, players=ours.env.players, **sizes)
        fit = "import sys; from fox.train.cli import main; main(sys.argv[1:])"
        command = [sys.executable, "-c", fit, "fit", "--config", str(folder / SETTINGS)]
        subprocess.run(command, check=True)
    return model


def learn(kind: str, seed: int, folder: Path, model: Path) -> dict[str, Any]:
    """One agent: its scores, and the curve of its training."""
    ours = preset()
    pretrained = str(model) if kind == PRETRAINED else None
    ours = replace(
        ours,
        network=replace(ours.network, pretrained=pretrained),
        run=replace(ours.run, seed=seed, folder=str(folder / f"{kind}-{seed}")),
    )
    result = run_agent(ours, lambda row: None, lambda: False)
    curve = read_table(Path(ours.run.folder) / "metrics.csv")
    keys = ("games", "updates", "cpu_seconds", *(f"test_{P}p" for P in ours.env.players))
    return {
        "kind": kind,
        "seed": seed,
        "games": ours.run.games,
        "cpu_seconds": round(result["cpu_seconds"], 1),
        "scores": result["scores"],
        "curve": [{key: row[key] for key in keys} for row in curve],
    }


def table(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean strict scores over the seeds of both kinds, with their intervals."""
    rows = []
    for kind in (DRAWN, PRETRAINED):
        for key in runs[0]["scores"]:
            scores = [run["scores"][key]["strict"] for run in runs if run["kind"] == kind]
            middle, _, low, high = estimate(scores)
            rows.append({"kind": kind, "players": int(key[:-1]), "seeds": len(scores)})
            rows[-1] |= {"strict": middle, "low": low, "high": high}
    return rows


def draw(path: Path, runs: Sequence[dict[str, Any]], players: Sequence[int]) -> None:
    """Greedy scores against the games played: every seed, and the mean of each kind."""
    figure = new_figure(9, 3.8)
    axes = figure.subplots(1, len(players), sharey=True, squeeze=False)[0]
    for panel, P in zip(axes, players, strict=True):
        plain_axes(panel, f"{P} players", "games played", "")
        panel.xaxis.set_major_formatter("{x:,g}")
        for kind, colour in zip((DRAWN, PRETRAINED), PALETTE, strict=False):
            curves = [run["curve"] for run in runs if run["kind"] == kind]
            x = [row["games"] for row in curves[0]]
            y = np.array([[row[f"test_{P}p"] for row in curve] for curve in curves])
            panel.plot(x, y.T, color=colour, linewidth=0.8, alpha=0.4)
            panel.plot(x, y.mean(0), color=colour, linewidth=2, label=kind)
        panel.set_ylim(bottom=0)
    axes[0].set_ylabel("mean strict score, greedy", color=INK)
    axes[0].legend(frameon=False)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--runs", type=Path, default=Path("runs/hanabi-pretraining"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("intervals over seeds need 2 seeds or more")
    torch.set_num_threads(1)
    started = time.perf_counter()
    model = pretrain(options.runs / "games")
    jobs = [(kind, seed) for seed in range(options.seeds) for kind in (DRAWN, PRETRAINED)]
    runs = [learn(*job, options.runs, model) for job in track(jobs, "agents")]
    results = {"config": preset().as_dict(), "table": table(runs), "runs": runs}
    seconds = time.perf_counter() - started
    options.results.mkdir(parents=True, exist_ok=True)
    packages = ("numpy", "torch", "open-spiel")
    record(__file__, options.results, [], results, seconds=seconds, packages=packages)
    draw(options.results / "pretraining.png", runs, preset().env.players)


if __name__ == "__main__":
    main()
