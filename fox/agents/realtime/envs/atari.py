"""Atari games, frame by frame, from the ones that ale-py carries in its own wheel (GPL-2.0)."""

import re
from typing import Any

import numpy as np

from fox.agents.realtime.envs.image import shrink

MAX_NOOPS = 30  # frames that reset() lets pass, at most


class AtariEnv:
    """A game without frame skipping and without repeated actions: every frame is a tick.

    The games have no chance of their own: a seed lets 0..30 frames pass before the episode begins
    (Mnih et al., Human-level control through deep reinforcement learning, 2015).

    Args:
        game: "Tetris", "Boxing", "Krull", "NameThisGame", or another name that ale-py knows.
        observation: "features" (the machine's 128 bytes of memory) or "image".

    Raises:
        ModuleNotFoundError: ale-py is not installed.
        ValueError: an argument is not as above.
    """

    fps = 60.0

    def __init__(self, game: str, observation: str = "features") -> None:
        if observation not in ("features", "image"):
            raise ValueError(f"observation must be 'features' or 'image', but got {observation!r}")
        try:
            import ale_py
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "Atari games need ale-py: pip install 'fox-transformer[atari]'"
            ) from error
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._ale = ale_py.ALEInterface()
        self._ale.setInt("frame_skip", 1)
        self._ale.setFloat("repeat_action_probability", 0.0)
        self._ale.setInt("random_seed", 0)
        self._ale.loadROM(_path(game))
        self._state_of = ale_py.ALEState  # from bytes
        others = [a for a in self._ale.getMinimalActionSet() if a != ale_py.Action.NOOP]
        self._actions = [ale_py.Action.NOOP, *others]
        self.n_actions, self.noop = len(self._actions), 0
        self.action_names = tuple(action.name.lower() for action in self._actions)
        self._observe = self.features if observation == "features" else self.render84
        self.reset(0)

    def reset(self, seed: int) -> np.ndarray:
        """Begins an episode, after a number of idle frames that the seed decides."""
        self._ale.reset_game()
        for _ in range(np.random.default_rng(seed).integers(MAX_NOOPS + 1)):
            self._ale.act(self._actions[self.noop])
        return self._observe()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One frame: (observation, change of the score, game over, truncated, {})."""
        reward = float(self._ale.act(self._actions[action]))
        return (
            self._observe(),
            reward,
            self._ale.game_over(with_truncation=False),
            self._ale.game_truncated(),
            {},
        )

    def features(self) -> np.ndarray:
        """(128,) float32, the machine's memory in 0..1."""
        return self._ale.getRAM().astype(np.float32) / 255

    def render84(self) -> np.ndarray:
        """(84, 84) uint8, the screen in gray."""
        return shrink(self._ale.getScreenGrayscale())

    def get_state(self) -> dict[str, Any]:
        """The machine's state as bytes."""
        return {"ale": self._ale.cloneState(include_rng=True).serialize()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues exactly where get_state() was called."""
        self._ale.restoreState(self._state_of(state["ale"]))

    def close(self) -> None:
        """Nothing to free."""


def _path(game: str) -> str:
    """The image of a game: NameThisGame is name_this_game there."""
    from ale_py import roms

    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", game).lower()
    if name not in roms.get_all_rom_ids():
        raise ValueError(
            f"game must be one that ale-py knows, such as 'Tetris', 'Boxing', 'Krull' or "
            f"'NameThisGame', but got {game!r}"
        )
    return str(roms.get_rom_path(name))
