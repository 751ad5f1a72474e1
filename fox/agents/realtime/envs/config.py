"""Environments by name: what a YAML file says of its world."""

from dataclasses import dataclass

from fox.agents.realtime.envs.atari import AtariEnv
from fox.agents.realtime.envs.blocks import BlocksRT
from fox.agents.realtime.envs.catch import CatchRT
from fox.agents.realtime.envs.gameboy import Cartridge, GameBoyEnv
from fox.agents.realtime.envs.gym import make_gym
from fox.agents.realtime.envs.protocol import RealtimeEnv

NAMES = "catch, blocks, gym:ID, atari:GAME, gameboy"
SETTINGS = {  # that belong to an environment, by its name before the colon
    "catch": {"lives", "gusts"},
    "blocks": {"gravity"},
    "gym": {"noop", "fps"},
    "atari": set(),
    "gameboy": {"rom", "sha256", "cartridge"},
}


@dataclass(frozen=True)
class EnvConfig:
    """An environment and its settings; what is left None has the environment's own default.

    Args:
        name: "catch", "blocks", "gym:ID", "atari:GAME" or "gameboy".
        observation: "features" (a small vector) or "image" (84 x 84, gray).
        lives: of catch: the miss that ends the episode.
        gusts: of catch: probability per tick that the wind pushes the ball.
        gravity: of blocks: ticks in which a piece falls by one row.
        noop: of gym, required there: the action that does nothing.
        fps: of gym: frames per second, where its metadata do not say.
        rom, sha256: of gameboy: path and hash of an image of your own.
        cartridge: of gameboy: where that image keeps its score.
    """

    name: str
    observation: str = "features"
    lives: int | None = None
    gusts: float | None = None
    gravity: int | None = None
    noop: int | None = None
    fps: float | None = None
    rom: str | None = None
    sha256: str | None = None
    cartridge: Cartridge | None = None

    def make(self) -> RealtimeEnv:
        """The environment.

        Raises:
            ValueError: there is no such environment, or a setting is not one of its own.
        """
        kind, _, title = self.name.partition(":")
        if kind not in SETTINGS or (kind in ("gym", "atari")) != bool(title):
            raise ValueError(
                f"the environment's name must be one of {NAMES}, but got {self.name!r}"
            )
        given = {key: value for key, value in vars(self).items() if value is not None}
        del given["name"], given["observation"]
        if wrong := sorted(set(given) - SETTINGS[kind]):
            raise ValueError(f"{self.name!r} has no setting {wrong[0]!r}: leave it out")
        if kind == "gym":
            if self.noop is None:
                raise ValueError(f"{self.name!r} needs noop, the action that does nothing: give it")
            return make_gym(title, observation=self.observation, **given)
        if kind == "atari":
            return AtariEnv(title, self.observation)
        made = {"catch": CatchRT, "blocks": BlocksRT, "gameboy": GameBoyEnv}[kind]
        return made(self.observation, **given)
