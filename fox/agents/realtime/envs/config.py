"""Environments by name: what a YAML file says of its world."""

from dataclasses import asdict, dataclass

from fox.agents.realtime.envs.catch import CatchRT
from fox.agents.realtime.envs.protocol import RealtimeEnv

# Which settings belong to which environment, by the name before the colon.
SETTINGS = {"catch": {"lives", "gusts"}}


@dataclass(frozen=True)
class EnvConfig:
    """An environment and its settings; those left None have the environment's default.

    Args:
        name: "catch".
        observation: "features" or "image" (84 x 84, gray).
        lives: of "catch": the miss that ends the episode.
        gusts: of "catch": probability per tick that the wind pushes the ball.
    """

    name: str
    observation: str = "features"
    lives: int | None = None
    gusts: float | None = None

    def make(self) -> RealtimeEnv:
        """The environment (see make_env)."""
        return make_env(**asdict(self))


def make_env(
    name: str,
    observation: str = "features",
    *,
    lives: int | None = None,
    gusts: float | None = None,
) -> RealtimeEnv:
    """The environment of this name; the arguments are those of EnvConfig.

    Raises:
        ValueError: there is no such environment, or a setting is not one of its own.
    """
    kind = name.partition(":")[0]
    if kind not in SETTINGS:
        raise ValueError(f"name must be 'catch', but got {name!r}")
    given = {"lives": lives, "gusts": gusts}
    given = {key: value for key, value in given.items() if value is not None}
    if wrong := sorted(set(given) - SETTINGS[kind]):
        raise ValueError(f"{name!r} has no setting {wrong[0]!r}: leave it out")
    return CatchRT(observation, lives, gusts or 0.0)
