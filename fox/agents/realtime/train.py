"""fox-realtime train: one agent, or several of one size side by side, and what became of them."""

import multiprocessing
import os
import platform
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table

from fox.agents.metrics import read_table
from fox.agents.realtime.agent import Agent
from fox.agents.realtime.config import (
    ExplorationConfig,
    Interactions,
    RunConfig,
    RunSettings,
    ScheduleConfig,
)
from fox.agents.realtime.envs.config import EnvConfig
from fox.agents.realtime.learner import LearnerConfig
from fox.agents.realtime.plots import draw_learning
from fox.agents.realtime.policy import PolicyConfig
from fox.agents.realtime.run import run_agent
from fox.agents.signals import Stopped, asked_to_stop, spared_ctrl_c
from fox.files import write_csv, write_json

PLAY = {  # key of a row: heading, format
    "return": ("return/s", "{:+.2f}"),
    "coverage": ("coverage", "{:.1%}"),
    "delay_ticks": ("delay", "{:.1f}"),
}
TRAINING = PLAY | {
    "weight_age": ("age", "{:.1f}"),
    "fps": ("fps", "{:.1f}"),
    "updates": ("updates", "{:.0f}"),
    "loss": ("loss", "{:.3f}"),
}
SCORE = {"gains": ("won", "{}"), "losses": ("lost", "{}")}
EVALUATION = {"workers": ("workers", "{}")} | SCORE | PLAY | {"gap_cv": ("gap cv", "{:.2f}")}


def train(
    env: EnvConfig,
    policy: PolicyConfig = PolicyConfig(),  # noqa: B008 (frozen)
    schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008
    learner: LearnerConfig = LearnerConfig(),  # noqa: B008
    exploration: ExplorationConfig = ExplorationConfig(),  # noqa: B008
    run: RunSettings = RunSettings(),  # noqa: B008
    interactions: list[Interactions] | None = None,
) -> None:
    """Train an agent while its world goes on, and evaluate it; the same command goes on.

    Everything of a run goes into run.folder: config.json, metrics.csv, learning.png,
    evaluation.json, the log of ticks and a checkpoint. Ctrl-C and kill -9 leave a run that the same
    command continues.

    Args:
        env: the world.
        policy: the networks.
        schedule: workers, delay, clock.
        learner: how it learns.
        exploration: random actions.
        run: length and folder.
        interactions: trains one agent for each, all at once, with everything else equal, in
            folders of these names in run.folder, and compares them: comparison.json, .csv, .png.
    """
    config = RunConfig(env, policy, schedule, learner, exploration, run)
    folder = Path(run.folder)
    configs: dict[str, RunConfig] = {schedule.interaction: config}
    if interactions is not None and len(set(interactions)) != max(len(interactions), 1):
        raise ValueError(f"interactions names agents, each once, but got {interactions}")
    if interactions is not None:
        configs = {
            name: replace(
                config,
                schedule=replace(schedule, interaction=name),
                run=replace(run, folder=str(folder / name)),
            )
            for name in interactions
        }
    together = _alone if interactions is None else _side_by_side
    try:
        with Board(configs) as board:
            results = together(configs, board)
    except Stopped as stopped:
        print(f"{stopped}: the same command goes on", flush=True)
        raise KeyboardInterrupt from None
    _report(folder, configs, results)


class Board:
    """What is known of every agent, while it trains: a table on a terminal, else lines.

    Args:
        configs: of the agents by their names.
    """

    def __init__(self, configs: Mapping[str, RunConfig]) -> None:
        self.configs = configs
        self.rows: dict[str, dict[str, Any]] = {name: {} for name in configs}
        self.live = Live(self, refresh_per_second=2) if sys.stdout.isatty() else None

    def __enter__(self) -> "Board":
        for name, config in self.configs.items():
            print(f"{name}: {config.run.ticks:,} ticks, all in {config.run.folder}", flush=True)
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def tell(self, name: str, row: dict[str, Any]) -> None:
        """A new row of an agent."""
        self.rows[name] = row
        if self.live is None:
            values = (
                f"{heading} {form.format(row[key])}"
                for key, (heading, form) in TRAINING.items()
                if row.get(key) is not None
            )
            print(f"{name}: {self._progress(name)}  {'  '.join(values)}", flush=True)

    def __rich__(self) -> Table:
        rows = {name: {"tick": self._progress(name), **row} for name, row in self.rows.items()}
        return _table(rows, {"tick": ("ticks", "{}"), **TRAINING})

    def _progress(self, name: str) -> str:
        run, row = self.configs[name].run, self.rows[name]
        if "evaluated" in row:
            return f"evaluated {row['evaluated']:,}/{run.evaluation_ticks:,}"
        return f"{row['tick']:,}/{run.ticks:,}" if row else "starting"


def _alone(configs: Mapping[str, RunConfig], board: Board) -> dict[str, dict[str, Any]]:
    """Trains one agent in this process."""
    ((name, config),) = configs.items()
    with asked_to_stop() as asked:
        return {name: run_agent(config, lambda row: board.tell(name, row), asked.is_set)}


def _side_by_side(configs: Mapping[str, RunConfig], board: Board) -> dict[str, dict[str, Any]]:
    """Trains each agent in its own process; where one fails, the others are asked to stop."""
    context = multiprocessing.get_context("spawn")
    agents: dict[Any, str] = {}  # those that run, by their connections
    for name, config in configs.items():
        connection, theirs = context.Pipe()
        with spared_ctrl_c():
            context.Process(target=_child, args=(config, theirs), name=name).start()
        theirs.close()
        agents[connection] = name
    results: dict[str, dict[str, Any]] = {}
    errors: list[Exception] = []
    with asked_to_stop() as asked:
        told = False
        while agents:
            for ready in wait(list(agents), timeout=0.2):
                message = _received(ready)
                if isinstance(message, Row):
                    board.tell(agents[ready], message.values)
                    continue
                name = agents.pop(ready)
                if isinstance(message, Exception):
                    errors.append(message)
                    asked.set()
                else:
                    results[name] = message
            if asked.is_set() and not told:
                told = True
                for connection in agents:
                    with suppress(BrokenPipeError):
                        connection.send("stop")
    # An agent that stopped because another failed is not the news.
    for error in sorted(errors, key=lambda error: isinstance(error, Stopped)):
        raise error
    return {name: results[name] for name in configs}


@dataclass(frozen=True)
class Row:
    """What an agent's process tells of its progress."""

    values: dict[str, Any]


def _received(connection: Any) -> Any:
    try:
        return connection.recv()
    except EOFError:
        return RuntimeError("the process of an agent has ended without a word: was it killed?")


def _child(config: RunConfig, connection: Connection) -> None:
    """What an agent's process does; it stops when its parent says so, or is gone."""
    message: Any
    try:
        message = run_agent(config, lambda row: connection.send(Row(row)), connection.poll)
    except (Stopped, ValueError, ModuleNotFoundError) as error:
        message = error
    except BaseException:  # the parent raises it
        message = RuntimeError(f"an agent's process raised\n{traceback.format_exc()}")
    with suppress(BrokenPipeError):
        connection.send(message)


def _report(
    folder: Path, configs: Mapping[str, RunConfig], results: Mapping[str, dict[str, Any]]
) -> None:
    """Figures of the training, and the evaluations side by side."""
    Console().print(_table(results, EVALUATION, "evaluation, without exploration"))
    curves = {
        name: read_table(Path(config.run.folder) / "metrics.csv")
        for name, config in configs.items()
    }
    if len(configs) > 1:
        some = next(iter(configs.values()))
        facts = {
            "agents": results,
            "environment": some.env.name,
            "parameters": len(Agent(some).weights),
            "inference_seconds": some.schedule.inference_seconds,
            "clock": some.schedule.clock,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "cores": os.cpu_count(),
        }
        write_json(folder / "comparison.json", facts)
        rows = [
            {"agent": name}
            | {key: value for key, value in result.items() if not isinstance(value, dict)}
            for name, result in results.items()
        ]
        write_csv(folder / "comparison.csv", rows)
        draw_learning(folder / "comparison.png", curves)
    for name, config in configs.items():
        draw_learning(Path(config.run.folder) / "learning.png", {name: curves[name]})
    print(f"all in {folder}", flush=True)


def _table(
    rows: Mapping[str, Mapping[str, Any]],
    columns: Mapping[str, tuple[str, str]],
    title: str | None = None,
) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("agent", no_wrap=True)
    for heading, _ in columns.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in rows.items():
        cells = (
            "" if row.get(key) is None else form.format(row[key])
            for key, (_, form) in columns.items()
        )
        table.add_row(name, *cells)
    return table
