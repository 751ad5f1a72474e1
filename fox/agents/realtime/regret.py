"""The command `fox-realtime regret`: what a run lost by learning, by inaction and by delay."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fox.agents.realtime.agent import Agent
from fox.agents.realtime.behaviour import beta
from fox.agents.realtime.config import RunConfig
from fox.agents.realtime.decomposition import (
    BETA,
    PARTS,
    CatchOracle,
    Played,
    Reference,
    Regret,
    TrainedReference,
    bands,
    block_sums,
    decompose,
)
from fox.agents.realtime.envs.protocol import RealtimeEnv
from fox.agents.realtime.plots import draw_regret
from fox.agents.realtime.replay import Replay
from fox.agents.realtime.run import read_run
from fox.files import write_csv, write_json

NOTE = (
    "Measured against the reference named here, in the worlds that the runs played in; it is no "
    "bound, and says nothing about another reference. Bands: 95 %, of this run's blocks; not of "
    "other trainings."
)


def regret(run: str, *, reference: str | None = None, block_ticks: int = 128) -> None:
    """Parts the regret of a run into learning, inaction and delay, and draws it against time.

    A reference policy plays the run's world again: undelayed, with the run's delay, and at the
    run's policy ticks only. The differences are the parts; they sum to the regret exactly. Writes
    regret.csv, regret.json and regret.png into the folder.

    Args:
        run: folder of a run, or of several runs, which are drawn side by side.
        reference: folder of a run whose last weights are the reference. For catch it can be left
            out: the oracle that knows the actions on their way.
        block_ticks: over which rewards are nearly independent, for the bands (a ball of catch falls
            128 ticks).

    Raises:
        ValueError: there is no run, its log was overwritten, or a reference is needed.
    """
    folder = Path(run)
    folders = [folder] if (folder / "config.json").is_file() else _runs_in(folder)
    rows, summaries, curves = list[dict[str, Any]](), {}, {}
    for path in track(folders, "regret", console=Console(stderr=True)):
        config, *_ = read_run(path)
        new_reference, name = _reference(config, reference)
        env = _endless(config)
        played, whole = read_played(path, env, config.run.seed)
        kind = {"n_actions": env.n_actions, "noop": env.noop, "seed": config.run.seed}
        behaviour = beta(config.schedule.beta, **kind)
        parts = decompose(env, new_reference, played, behaviour, config.run.seed)
        step_seconds = 1 / (config.schedule.fps or env.fps)
        curves[path.name] = curve = cumulative(parts, step_seconds, block_ticks)
        rows += [{"run": path.name, **row} for row in curve]
        about = {"reference": name, "ticks": len(played.reward), "of_ticks": whole}
        summaries[path.name] = about | summarize(played, curve)
        env.close()
    write_csv(folder / "regret.csv", rows)
    write_json(
        folder / "regret.json", {"note": NOTE, "block_ticks": block_ticks, "runs": summaries}
    )
    report(summaries)
    draw_regret(folder / "regret.png", curves)


def _runs_in(folder: Path) -> list[Path]:
    """The runs in a folder's subfolders."""
    found = sorted(path.parent for path in folder.glob("*/config.json"))
    if not found:
        raise ValueError(f"expected a run, or a folder of runs, in {folder}, but found none")
    return found


def _reference(config: RunConfig, folder: str | None) -> tuple[Callable[[], Reference], str]:
    """What makes the reference, and its name."""
    if folder is None:
        if config.env.name != "catch":
            raise ValueError(
                f"there is no oracle for {config.env.name!r}: name a trained run as the reference, "
                "--reference FOLDER"
            )
        return CatchOracle, "aware oracle"
    theirs, flat, version = read_run(Path(folder))
    if theirs.env != config.env:
        raise ValueError(
            f"the reference in {folder} was trained in another world: {theirs.env} instead of "
            f"{config.env}"
        )
    return partial(TrainedReference, Agent(theirs), flat, version), folder


def _endless(config: RunConfig) -> RealtimeEnv:
    """The run's world, where a miss of the reference ends no episode."""
    endless = config.env.name == "catch"
    return (replace(config.env, lives=None) if endless else config.env).make()


def read_played(folder: Path, env: RealtimeEnv, seed: int) -> tuple[Played, int]:
    """The run in a folder, as far as its world can be played again, and how many ticks it has.

    A run that was stopped has gone on in a world whose state is not kept: what it played from there
    on is left out.
    """
    log = Replay.open(folder / "replay")
    episode, source, obs_tick = (log.column(name) for name in ("episode", "source_t", "obs_tick"))
    end = len(episode)
    for t in np.flatnonzero(log.column("start")):
        if not np.array_equal(env.reset(seed + int(episode[t])), log.column("obs")[t]):
            end = int(t)
            break
    d, reward = log.column("d")[:end].astype(np.int64), log.column("reward_t")[:end]
    played = Played(episode[:end], obs_tick[:end], source[:end], d, reward.astype(np.float64))
    return played, len(episode)


def cumulative(parts: Regret, step_seconds: float, block_ticks: int) -> list[dict[str, float]]:
    """Each part's regret at the end of each block, with its band."""
    values: dict[str, np.ndarray] = {}
    for name in (*PARTS, "total"):
        lost = getattr(parts, name)
        values[name] = block_sums(lost, block_ticks).cumsum()
        values[f"{name}_low"], values[f"{name}_high"] = bands(lost, block_ticks)
    ticks = block_ticks * np.arange(1, len(values["total"]) + 1)
    values = {"tick": ticks, "seconds": ticks * step_seconds, **values}
    columns = [column.tolist() for column in values.values()]
    return [dict(zip(values, row, strict=True)) for row in zip(*columns, strict=True)]


def summarize(played: Played, curve: list[dict[str, float]]) -> dict[str, Any]:
    """What each part lost per second, with its band, and how often beta acted.

    predicted_beta_share is (tau_I - tau_M) / tau_I, of the mean interval between policy actions.
    """
    acts, last = np.isfinite(played.tau_i), curve[-1]
    return {
        "delay_ticks": float(played.d.mean()),
        "tau_i_ticks": played.tau_i if acts else None,
        "beta_share": float((played.obs_tick == BETA).mean()),
        "predicted_beta_share": 1 - 1 / played.tau_i if acts else None,
        "seconds": last["seconds"],
        "lost_per_second": {
            name: [last[key] / last["seconds"] for key in (name, f"{name}_low", f"{name}_high")]
            for name in (*PARTS, "total")
        },
    }


def report(summaries: dict[str, dict[str, Any]]) -> None:
    """A table on the console: rewards lost per second."""
    console = Console()
    table = Table("", *summaries, title="rewards lost per second of play (95 % band)")
    for part in (*PARTS, "total"):
        lost = [about["lost_per_second"][part] for about in summaries.values()]
        table.add_row(part, *(f"{mean:.3f} ({low:.3f} to {high:.3f})" for mean, low, high in lost))
    for name, key in (
        ("delay, ticks", "delay_ticks"),
        ("ticks between policy actions", "tau_i_ticks"),
        ("share of ticks by beta", "beta_share"),
    ):
        values = [about[key] for about in summaries.values()]
        table.add_row(name, *("none" if value is None else f"{value:.3f}" for value in values))
    console.print(table)
    for name, about in summaries.items():
        if about["ticks"] < about["of_ticks"]:
            console.print(
                f"{name}: the first {about['ticks']:,} of {about['of_ticks']:,} ticks; the run was "
                "stopped there, and its world went on from a state that is not kept"
            )
