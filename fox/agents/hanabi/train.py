"""fox-hanabi train: an agent learns by playing with itself, and what became of it."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fox.agents.hanabi.config import ActorsConfig, EnvConfig, RunConfig, RunSettings
from fox.agents.hanabi.learner import LearnerConfig
from fox.agents.hanabi.network import NetworkConfig, blank_net
from fox.agents.hanabi.plots import draw_learning
from fox.agents.hanabi.replay import ReplayConfig
from fox.agents.hanabi.report import report_run
from fox.agents.hanabi.run import run_agent
from fox.agents.hanabi.selfplay import ExplorationConfig
from fox.agents.metrics import read_table
from fox.agents.signals import Stopped, asked_to_stop

COLUMNS = {  # key of a row of metrics.csv: heading, format
    "updates": ("updates", "{:,}"),
    "loss": ("loss", "{:.4f}"),
    "random_rate": ("random", "{:.1%}"),
    "lag_mean": ("age", "{:.0f}"),
    "games_per_second": ("games/s", "{:.1f}"),
}


def train(
    env: EnvConfig = EnvConfig(),  # noqa: B008 (frozen)
    network: NetworkConfig = NetworkConfig(),  # noqa: B008
    learner: LearnerConfig = LearnerConfig(),  # noqa: B008
    replay: ReplayConfig = ReplayConfig(),  # noqa: B008
    exploration: ExplorationConfig = ExplorationConfig(),  # noqa: B008
    actors: ActorsConfig = ActorsConfig(),  # noqa: B008
    run: RunSettings = RunSettings(),  # noqa: B008
) -> None:
    """Train an agent by self-play, and evaluate it; the same command goes on.

    Everything of a run goes into run.folder: config.json, metrics.csv, learning.png,
    evaluation.json, the games that the learner draws from and a checkpoint. Ctrl-C and kill -9
    leave a run that the same command continues.

    Args:
        env: the game, and the numbers of players.
        network: reads texts and remembers turns.
        learner: how it learns.
        replay: what it learns from.
        exploration: random moves.
        actors: who plays.
        run: length and folder.
    """
    config = RunConfig(env, network, learner, replay, exploration, actors, run)
    weights = sum(p.numel() for p in blank_net(network).parameters())
    print(
        f"{env.game} with {_join(env.players)} players, {weights:,} weights, {run.games:,} games, "
        f"{config.updates:,} updates, all in {run.folder}",
        flush=True,
    )
    try:
        with Board(config) as board, asked_to_stop() as asked:
            result = run_agent(config, board.tell, asked.is_set)
    except Stopped as stopped:
        print(f"{stopped}: the same command goes on", flush=True)
        raise KeyboardInterrupt from None
    report_run(result)
    folder = Path(run.folder)
    draw_learning(folder / "learning.png", {folder.name: read_table(folder / "metrics.csv")})
    print(f"all in {run.folder}", flush=True)


class Board:
    """A line for every row of metrics.csv, and on a terminal a bar below them."""

    def __init__(self, config: RunConfig) -> None:
        self.players = config.env.players
        self.bar = Progress(
            TextColumn("games"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            disable=not sys.stdout.isatty(),
        )
        self.task = self.bar.add_task("games", total=config.run.games)

    def __enter__(self) -> "Board":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def tell(self, row: dict[str, Any]) -> None:
        """A new row of metrics.csv."""
        tests = [f"{P}p {row[f'test_{P}p']:.2f}" for P in self.players if f"test_{P}p" in row]
        rest = [
            f"{heading} {form.format(row[key])}"
            for key, (heading, form) in COLUMNS.items()
            if row.get(key) is not None
        ]
        line = f"{row['games']:,} games  {'  '.join([*tests, *rest])}"
        if self.bar.disable:
            print(line, flush=True)
        else:
            self.bar.console.print(line, highlight=False)
        self.bar.update(self.task, completed=row["games"])


def _join(players: Iterable[int]) -> str:
    return ", ".join(map(str, players))
