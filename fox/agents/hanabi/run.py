"""One agent's run in its folder: play and learn, go on after a stop, evaluate.

The folder holds config.json, metrics.csv, learning.png, evaluation.json, replay/ (the games that
the learner draws from) and checkpoint/learner.pt (renamed into place).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fox.agents.claim import claimed, read_config
from fox.agents.flat import load_flat
from fox.agents.hanabi.actors import Actors, open_actors
from fox.agents.hanabi.config import SEEDS, RunConfig
from fox.agents.hanabi.episode import Episode
from fox.agents.hanabi.game import Game
from fox.agents.hanabi.learner import Learner
from fox.agents.hanabi.network import HanabiNet, blank_net
from fox.agents.hanabi.player import NetworkPlayer
from fox.agents.hanabi.replay import Replay
from fox.agents.hanabi.rules import Rules
from fox.agents.hanabi.scores import Scores
from fox.agents.hanabi.table import play_games
from fox.agents.metrics import table
from fox.agents.signals import Stopped
from fox.files import read_json, whole_file, write_json

TEST, EVALUATION = SEEDS, SEEDS + 1  # first numbers of the seeds of their decks
# What may be given anew to a run.
FREE = {"run.folder", "run.test_games", "run.evaluation_games", "run.checkpoint_seconds"}
FREE |= {"actors.kind", "actors.workers", "actors.ahead", "learner.device"}

Tell = Callable[[dict[str, Any]], None]


def columns(players: Sequence[int]) -> list[str]:
    """Of metrics.csv, of a run with these numbers of players.

    play_Pp is the mean strict score of the games that were played to learn from, random moves
    included; test_Pp and keep_Pp are the mean strict scores and points kept of greedy games. What
    the learner tells (lags in updates, losses, q, td_error, grad_norm) is of the last update alone,
    and lost_workers is since the run was last started.
    """
    return [
        *("games", "turns", "updates", "seconds", "cpu_seconds", "games_per_second"),
        *(f"play_{P}p" for P in players),
        *(f"{kind}_{P}p" for P in players for kind in ("test", "keep")),
        *("random_rate", "sampled_per_game", "lag_mean", "lag_p95", "lag_max"),
        *("loss", *(f"loss_{P}p" for P in players), "q", "td_error", "grad_norm", "lost_workers"),
    ]


def run_agent(config: RunConfig, tell: Tell, asked: Callable[[], bool]) -> dict[str, Any]:
    """Plays and learns to the end of the run, from wherever it is; evaluates it once.

    Args:
        config: of the run; its folder may hold a part of the same run.
        tell: is given every row of metrics.csv.
        asked: whether to stop; looked at after every wave of games, and in the evaluation.

    Returns:
        the evaluation, as in evaluation.json: version (updates), games (of each number of players),
        seconds, cpu_seconds, and scores: for "2p", "3p", ... whether it was trained on, and
        Scores.summary.

    Raises:
        ValueError: the folder holds another run, or a setting does not fit.
        Stopped: `asked` said so.
    """
    torch.set_num_threads(1)  # a network of this size is too small to share
    folder = Path(config.run.folder)
    # Where this run cannot begin, the folder is not taken for it.
    going_on = _checkpoint(folder).is_file()
    net = blank_net(config.network) if going_on else new_net(config)
    with claimed(folder, config.as_dict(), FREE):
        run = _Run(config, net)
        run.learn(tell, asked)
        return run.evaluated(asked)


def new_net(config: RunConfig) -> HanabiNet:
    """The network that a run begins with: drawn by its seed, or learnt by another run.

    Raises:
        ValueError: the other run's network is not like this one's.
    """
    if config.run.start is not None:
        other, net = read_agent(Path(config.run.start))
        for name, value in asdict(config.network).items():
            theirs = getattr(other.network, name)
            if name != "pretrained" and theirs != value:
                raise ValueError(
                    f"the run in {config.run.start} has network.{name} = {theirs}, but this one, "
                    f"which starts from its weights, has {value}: choose the same"
                )
        return net
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        return HanabiNet(config.network)


def read_agent(folder: Path) -> tuple[RunConfig, HanabiNet]:
    """The config of the run in a folder, and its network with the newest saved weights, on the CPU.

    Raises:
        ValueError: there is no run, or nothing was saved yet.
    """
    config = read_config(folder, "fox-hanabi", RunConfig.of)
    path = _checkpoint(folder)
    if not path.is_file():
        raise ValueError(f"the run in {folder} has saved no weights yet: let it train on")
    net = blank_net(config.network)
    load_flat(net, _read(path)["learner"]["weights"].numpy())
    return config, net


def play_greedily(net: HanabiNet, rules: Rules, games: int, seed: int) -> list[Game]:
    """Games of a network with itself, on the decks of a seed."""
    seeds = [(seed, number) for number in range(games)]
    return play_games(rules, seeds, [NetworkPlayer(net, "self")] * rules.players)


@dataclass
class Progress:
    """How far a run is, in plain values: the checkpoint keeps it.

    Attributes:
        games, turns: played.
        next_wave: one past the highest that has come; a run that goes on begins there. Where
            workers were killed with lower ones, the games of these are never played.
        seconds, cpu_seconds: of the learner's process, in all.
        row_games, row_seconds: at the last row of metrics.csv.
        scores: strict scores since then, by the number of players.
        moves, random: since then; the latter are those that were drawn at random.
        sampled: games that the learner has drawn.
    """

    games: int = 0
    turns: int = 0
    next_wave: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    row_games: int = 0
    row_seconds: float = 0.0
    scores: dict[int, list[int]] = field(default_factory=dict)
    moves: int = 0
    random: int = 0
    sampled: int = 0

    def add(self, episodes: Sequence[Episode], wave_games: int) -> None:
        """Counts a wave."""
        for episode in episodes:
            self.games += 1
            self.turns += episode.turns
            self.moves += episode.turns
            self.random += int(episode.explored.sum())
            scores = self.scores.setdefault(episode.rules.players, [])
            scores.append(episode.strict_score)
        self.next_wave = max(self.next_wave, episodes[0].number // wave_games + 1)


class _Run:
    """A run that is being learnt, restored from its folder."""

    def __init__(self, config: RunConfig, net: HanabiNet) -> None:
        self.config, self.folder, self.net = config, Path(config.run.folder), net
        path = _checkpoint(self.folder)
        self.replay = Replay(config.replay)
        self.learner = Learner(
            self.net, self.replay, config.learner, config.run.seed, config.updates
        )
        self.progress = Progress()
        self.metrics: dict[str, float] = {}
        if path.is_file():
            state = _read(path)
            self.learner.load_state_dict(state["learner"])
            self.replay.load(self.folder / "replay", state["replay"])
            self.progress = Progress(**state["progress"])
            self.metrics = state["metrics"]
        self._clock = time.perf_counter(), time.process_time()

    def learn(self, tell: Tell, asked: Callable[[], bool]) -> None:
        """To the end of the run."""
        config, progress = self.config, self.progress
        if progress.games >= config.run.games:
            return
        names = columns(config.env.players)
        metrics = table(
            self.folder / "metrics.csv", names, lambda row: int(row["games"]) <= progress.games
        )
        with metrics as write, open_actors(config, progress.next_wave) as actors:
            actors.publish(self.learner.weights(), self.learner.version)
            saved = time.perf_counter()
            while progress.games < config.run.games and not asked():
                self._wave(actors)
                last = progress.games >= config.run.games
                if last or progress.games - progress.row_games >= config.run.report_games:
                    row = self._row(actors)
                    write(row)
                    tell(row)
                if time.perf_counter() - saved >= config.run.checkpoint_seconds:
                    self.save()
                    saved = time.perf_counter()
        self.save()
        if progress.games < config.run.games:
            raise Stopped(f"stopped after game {progress.games:,} of {config.run.games:,}")

    def save(self) -> None:
        """Writes the checkpoint; what it refers to in replay/ is there before it."""
        self._tick()
        state = {
            "replay": self.replay.save(self.folder / "replay"),
            "learner": self.learner.state_dict(),
            "progress": asdict(self.progress),
            "metrics": self.metrics,
        }
        with whole_file(_checkpoint(self.folder)) as temporary:
            torch.save(state, temporary)

    def evaluated(self, asked: Callable[[], bool]) -> dict[str, Any]:
        """evaluation.json, as it is if it is of these weights, else made anew."""
        path, config = self.folder / "evaluation.json", self.config
        wanted = {"version": self.learner.version, "games": config.run.evaluation_games}
        if not path.is_file() or not wanted.items() <= read_json(path).items():
            scores = {}
            for players in Rules.player_counts(config.env.game):
                if asked():
                    raise Stopped("stopped in the evaluation")
                rules = Rules.of(config.env.game, players)
                games = play_greedily(self.net, rules, config.run.evaluation_games, EVALUATION)
                trained = players in config.env.players
                scores[f"{players}p"] = {"trained": trained, **Scores.of(games).summary()}
            times = {"seconds": self.progress.seconds, "cpu_seconds": self.progress.cpu_seconds}
            write_json(path, {**wanted, **times, "scores": scores})
        return read_json(path)

    def _wave(self, actors: Actors) -> None:
        """The next games, and the updates that they ask for."""
        config, progress, learner = self.config, self.progress, self.learner
        episodes = actors.wave()
        for episode in episodes:
            self.replay.add(episode)
        progress.add(episodes, config.actors.wave_games)
        due = config.updates_after(min(progress.games, config.run.games))  # a wave may go beyond
        if learner.version < due:
            while learner.version < due:
                self.metrics = learner.step()
                progress.sampled += config.learner.batch_games
            actors.publish(learner.weights(), learner.version)

    def _row(self, actors: Actors) -> dict[str, Any]:
        config, progress = self.config, self.progress
        self._tick()
        seconds = progress.seconds - progress.row_seconds
        row: dict[str, Any] = {
            "games": progress.games,
            "turns": progress.turns,
            "updates": self.learner.version,
            "games_per_second": (progress.games - progress.row_games) / max(seconds, 1e-9),
            "random_rate": progress.random / progress.moves,
            "sampled_per_game": progress.sampled / progress.games,
            "lost_workers": actors.lost,
            **self.metrics,
        }
        for rules in config.env.rules:
            P = rules.players
            if scores := progress.scores.get(P):
                row[f"play_{P}p"] = float(np.mean(scores))
            if config.run.test_games:
                games = play_greedily(self.net, rules, config.run.test_games, TEST)
                row[f"test_{P}p"] = float(np.mean([game.strict_score for game in games]))
                row[f"keep_{P}p"] = float(np.mean([game.keep_score for game in games]))
        self._tick()  # the test games are in the time, too
        row |= {"seconds": progress.seconds, "cpu_seconds": progress.cpu_seconds}
        progress.row_games, progress.row_seconds = progress.games, progress.seconds
        progress.scores, progress.moves, progress.random = {}, 0, 0
        return row

    def _tick(self) -> None:
        now = time.perf_counter(), time.process_time()
        self.progress.seconds += now[0] - self._clock[0]
        self.progress.cpu_seconds += now[1] - self._clock[1]
        self._clock = now


def _read(checkpoint: Path) -> dict[str, Any]:
    """On the CPU: where its learner computed need not be there any more."""
    return torch.load(checkpoint, map_location="cpu", weights_only=True)


def _checkpoint(folder: Path) -> Path:
    return folder / "checkpoint" / "learner.pt"
