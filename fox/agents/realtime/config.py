"""RunConfig: everything that decides a realtime run, part by part as the YAML file has it."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from fox.agents.ranges import above_zero, at_least
from fox.agents.realtime.envs.config import EnvConfig
from fox.agents.realtime.learner import LearnerConfig
from fox.agents.realtime.policy import PolicyConfig

Interactions = Literal["staggered", "sequential"]


@dataclass(frozen=True)
class ScheduleConfig:
    """How observations become actions, and how time passes.

    Args:
        interaction: "staggered" gives each tick's observation to an idle worker; "sequential" has
            one worker, which looks again when its action has landed.
        workers: how many; None: as many as the durations of inference ask for, and one if
            sequential.
        delay_ticks: d; None: measured at the start and adapted.
        transport: where the workers are, on a wall clock: "thread", "process" or "ray". In virtual
            time they are nowhere: an inference takes inference_seconds.
        beta: the default behaviour where no action has arrived: "noop", "repeat", "random", or the
            folder of a run in the same world whose policy is small enough to act within a tick.
        late: what a result is worth after its tick: "drop" nothing, "newest" the next free tick.
        clock: "wall", or "virtual": as fast as this machine plays and learns, and repeatable.
        overrun: what a wall clock does when the world is more than two ticks late: "slip" lets it
            wait, "skip" plays what was missed at once, by default behaviour.
        inference_seconds: an inference lasts at least so long on a wall clock, as that of a model
            too slow for this machine does, and exactly so long in virtual time.
        fps: ticks per second in the environment's place.

    Raises:
        ValueError: a value is out of its range, or two do not fit together.
    """

    interaction: Interactions = "staggered"
    workers: int | None = None
    delay_ticks: int | None = None
    transport: Literal["thread", "process", "ray"] = "thread"
    beta: str = "noop"
    late: Literal["drop", "newest"] = "drop"
    clock: Literal["wall", "virtual"] = "wall"
    overrun: Literal["slip", "skip"] = "slip"
    inference_seconds: float | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        at_least("schedule", self, workers=1, delay_ticks=1)
        above_zero("schedule", self, "inference_seconds", "fps")
        if self.interaction == "sequential" and self.workers not in (None, 1):
            raise ValueError(
                f"sequential play has one worker, but schedule.workers is {self.workers}: leave it "
                "out"
            )
        if self.clock == "virtual" and self.inference_seconds is None:
            raise ValueError(
                "in virtual time an inference lasts as long as schedule.inference_seconds says: "
                "set it"
            )

    @property
    def shares(self) -> bool:
        """Whether workers are in processes, with which memory is shared."""
        return self.clock == "wall" and self.transport == "process"


@dataclass(frozen=True)
class ExplorationConfig:
    """Random actions in the policy's place, see behaviour.Exploration.

    Args:
        first, last: share of random actions at the first tick, and from tick decay_ticks on.
        decay_ticks: in between it falls evenly.
        hold_ticks: a random action is held for so many ticks.
    """

    first: float = 1.0
    last: float = 0.05
    decay_ticks: int = 20_000
    hold_ticks: int = 8


@dataclass(frozen=True)
class RunSettings:
    """How long a run is, and what it leaves behind.

    Args:
        folder: everything of the run goes there.
        ticks: of play, before the evaluation.
        evaluation_ticks: of play with the last weights, without exploration or learning.
        seed: of weights, batches, episodes, exploration and random default behaviour.
        updates_per_tick: how often the learner learns; on a wall clock at most, since it has its
            own process and does not wait.
        publish_every: updates between two versions of the weights that workers get.
        replay_ticks: how many of the newest ticks the learner draws from.
        warmup_ticks: ticks before the first update.
        report_ticks: ticks of one row of metrics.csv.
        checkpoint_ticks: ticks between two checkpoints; a run that is killed goes on from the last.

    Raises:
        ValueError: a value is out of its range.
    """

    folder: str = "runs/realtime"
    ticks: int = 36_000
    evaluation_ticks: int = 7_680
    seed: int = 0
    updates_per_tick: float = 0.25
    publish_every: int = 10
    replay_ticks: int = 100_000
    warmup_ticks: int = 1_000
    report_ticks: int = 600
    checkpoint_ticks: int = 3_600

    def __post_init__(self) -> None:
        at_least("run", self, ticks=1, evaluation_ticks=1, publish_every=1)
        at_least("run", self, report_ticks=1, checkpoint_ticks=1)
        at_least("run", self, seed=0, updates_per_tick=0, warmup_ticks=0)


@dataclass(frozen=True)
class RunConfig:
    """One agent in one world: what `fox-realtime train` is told, and config.json keeps."""

    env: EnvConfig
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    exploration: ExplorationConfig = field(default_factory=ExplorationConfig)
    run: RunSettings = field(default_factory=RunSettings)

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values; RunConfig.of makes it the same again."""
        return asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> "RunConfig":
        """The inverse of as_dict."""
        parts = {
            "env": EnvConfig,
            "policy": PolicyConfig,
            "schedule": ScheduleConfig,
            "learner": LearnerConfig,
            "exploration": ExplorationConfig,
            "run": RunSettings,
        }
        return cls(**{name: kind(**values[name]) for name, kind in parts.items()})
