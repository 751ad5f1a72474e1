"""RealtimeEnv: what an environment must offer to be played tick by tick."""

from typing import Any, Protocol

import numpy as np


class RealtimeEnv(Protocol):
    """An environment whose step is one frame of 1 / fps seconds.

    Attributes:
        fps: frames per second of the world as it was made to run.
        n_actions: actions are 0 .. n_actions - 1.
        noop: the action that does nothing.
        action_names: one word for each action.
    """

    fps: float
    n_actions: int
    noop: int
    action_names: tuple[str, ...]

    def reset(self, seed: int) -> np.ndarray:
        """Begins an episode; returns o_0: features() or render84(), as the constructor was told by
        its argument `observation` ("features" or "image").
        """

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One frame: (observation, reward, terminated, truncated, info)."""

    def features(self) -> np.ndarray:
        """(n,) float32, the state in few numbers of order 1."""

    def render84(self) -> np.ndarray:
        """(84, 84) uint8, gray."""

    def get_state(self) -> dict[str, Any]:
        """All that decides the future, as plain numbers, strings, lists and arrays."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues exactly where get_state() was called."""

    def close(self) -> None:
        """Frees what the environment holds."""
