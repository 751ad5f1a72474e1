"""RunConfig: everything that decides a Hanabi run, part by part as the YAML file has it."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from fox.agents.hanabi.learner import LearnerConfig
from fox.agents.hanabi.network import NetworkConfig
from fox.agents.hanabi.replay import ReplayConfig
from fox.agents.hanabi.rules import Rules
from fox.agents.hanabi.selfplay import ExplorationConfig, Plan
from fox.agents.ranges import above_zero, at_least, one_of

SEEDS = 2_000_000_000  # a run has one below: those from here on are of tests and evaluations
ActorsKind = Literal["inline", "process", "ray"]


@dataclass(frozen=True)
class EnvConfig:
    """What is played.

    Args:
        game: full, or a small one: 3c3r, 2c3r, 2c2r (colours and ranks).
        players: the numbers of players that one network learns to play with, in turn.

    Raises:
        ValueError: there is no such game, or not for so many players.
    """

    game: str = "full"
    players: list[int] = field(default_factory=lambda: [2, 3, 4, 5])

    def __post_init__(self) -> None:
        if not self.players or len(set(self.players)) != len(self.players):
            raise ValueError(
                f"env.players names numbers of players, each once, but got {self.players}"
            )
        _ = self.rules  # for its checks

    @property
    def rules(self) -> tuple[Rules, ...]:
        """Of each number of players."""
        return tuple(Rules.of(self.game, players) for players in self.players)


@dataclass(frozen=True)
class ActorsConfig:
    """Who plays the games that the learner learns from.

    Args:
        kind: "inline" plays between updates, in the learner's process, and repeats exactly;
            "process" beside it; "ray" on as many machines as Ray has.
        workers: of "process" and "ray".
        wave_games: of a wave, which one worker plays in lock step with one version of the weights.
        ahead: waves that each worker may have played, or be due to play, before the learner takes
            them; the more, the older the weights behind a game.

    Raises:
        ValueError: a value is out of its range.
    """

    kind: ActorsKind = "inline"
    workers: int = 1
    wave_games: int = 48
    ahead: int = 2

    def __post_init__(self) -> None:
        one_of("actors", self, kind=get_args(ActorsKind))
        at_least("actors", self, workers=1, wave_games=1, ahead=1)


@dataclass(frozen=True)
class RunSettings:
    """How long a run is, and what it leaves behind.

    Args:
        folder: everything of the run goes there.
        games: to play and learn from.
        seed: of weights, decks, exploration and batches.
        start: folder of another run, whose weights this one begins with: all games have the same
            words, and what is known of a smaller one helps. Not given, the weights are drawn.
        replay_ratio: how often a game is learnt from, in the mean: games sampled by the learner
            for each game that the actors play.
        warmup_games: before the first update.
        report_games: of one row of metrics.csv.
        test_games: for each number of players, greedy games behind each row's test scores.
        evaluation_games: the same, at the end, for every number of players that the game has.
        checkpoint_seconds: between two checkpoints; a run that is killed goes on from the last.

    Raises:
        ValueError: a value is out of its range.
    """

    folder: str = "runs/hanabi"
    games: int = 50_000
    seed: int = 0
    start: str | None = None
    replay_ratio: float = 2.2
    warmup_games: int = 150
    report_games: int = 2_000
    test_games: int = 200
    evaluation_games: int = 1_000
    checkpoint_seconds: float = 120.0

    def __post_init__(self) -> None:
        at_least("run", self, games=1, report_games=1, warmup_games=1)
        at_least("run", self, seed=0, test_games=0, checkpoint_seconds=0)
        if self.seed >= SEEDS:
            raise ValueError(f"run.seed must be below {SEEDS:,}, but got {self.seed}")
        at_least("run", self, evaluation_games=2)  # an interval needs two
        above_zero("run", self, "replay_ratio")
        if self.warmup_games >= self.games:
            raise ValueError(
                f"run.warmup_games must be fewer than run.games = {self.games}, "
                f"but got {self.warmup_games}"
            )


@dataclass(frozen=True)
class RunConfig:
    """One agent: what `fox-hanabi train` is told, and config.json keeps.

    Raises:
        ValueError: its parts do not fit together.
    """

    env: EnvConfig = field(default_factory=EnvConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    exploration: ExplorationConfig = field(default_factory=ExplorationConfig)
    actors: ActorsConfig = field(default_factory=ActorsConfig)
    run: RunSettings = field(default_factory=RunSettings)

    def __post_init__(self) -> None:
        if self.learner.batch_games < len(self.env.players):
            raise ValueError(
                f"a batch has games of each of the {len(self.env.players)} numbers of players, but "
                f"learner.batch_games is {self.learner.batch_games}: raise it"
            )
        if self.run.start is not None and self.network.pretrained is not None:
            raise ValueError(
                "run.start gives a run all of its weights, network.pretrained some: choose one, "
                f"but got {self.run.start} and {self.network.pretrained}"
            )
        if self.updates < 1:
            raise ValueError(
                f"{self.run.games} games are too few for one update of "
                f"{self.learner.batch_games} games: raise run.games or run.replay_ratio, or lower "
                "learner.batch_games"
            )

    @property
    def plan(self) -> Plan:
        """The games of the run."""
        return Plan(
            network=self.network,
            rules=self.env.rules,
            seed=self.run.seed,
            wave_games=self.actors.wave_games,
            exploration=self.exploration,
        )

    @property
    def updates(self) -> int:
        """Of the whole run."""
        return self.updates_after(self.run.games)

    def updates_after(self, games: int) -> int:
        """How many updates shall have been made when so many games were played."""
        learnt = max(games - self.run.warmup_games, 0) * self.run.replay_ratio
        return int(learnt / self.learner.batch_games)

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values; RunConfig.of makes it the same again."""
        return asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> "RunConfig":
        """The inverse of as_dict; what is left out is as by default."""
        parts = {
            "env": EnvConfig,
            "network": NetworkConfig,
            "learner": LearnerConfig,
            "replay": ReplayConfig,
            "exploration": ExplorationConfig,
            "actors": ActorsConfig,
            "run": RunSettings,
        }
        return cls(**{name: parts[name](**value) for name, value in values.items()})
