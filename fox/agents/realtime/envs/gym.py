"""Any Gymnasium environment with discrete actions, one step per tick."""

from typing import TYPE_CHECKING, Any

import numpy as np

from fox.agents.realtime.envs.image import gray, shrink

if TYPE_CHECKING:
    import gymnasium


def make_gym(
    identifier: str, noop: int, observation: str = "features", fps: float | None = None
) -> "GymEnv":
    """gymnasium.make(identifier) as a RealtimeEnv; the other arguments are those of GymEnv.

    Raises:
        ModuleNotFoundError: gymnasium is not installed.
        ValueError: it makes no such environment.
    """
    try:
        import gymnasium
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "gym environments need gymnasium: pip install 'fox-transformer[gym]'"
        ) from error
    try:
        env = gymnasium.make(identifier, render_mode="rgb_array")
    except gymnasium.error.Error as error:
        raise ValueError(
            f"expected the id of a Gymnasium environment, but got {identifier!r}: {error}"
        ) from error
    return GymEnv(env, noop, observation, fps)


def _flattens(space: "gymnasium.Space") -> bool:
    try:
        return space.is_np_flattenable
    except NotImplementedError:  # of a space that is not Gymnasium's own
        return False


class GymEnv:
    """A Gymnasium environment whose step is one frame: nothing is skipped, repeated or held back.

    Args:
        env: with a Discrete action space; with render_mode "rgb_array" where images are wanted.
        noop: the action that does nothing, or comes nearest to it; Gymnasium does not say.
        observation: "features" (its own observation, flattened) or "image" (what it renders).
        fps: frames per second; None: what its metadata say under "render_fps".

    Raises:
        ValueError: the environment does not fit.
    """

    def __init__(
        self,
        env: "gymnasium.Env",
        noop: int,
        observation: str = "features",
        fps: float | None = None,
    ) -> None:
        from gymnasium import spaces

        if observation not in ("features", "image"):
            raise ValueError(f"observation must be 'features' or 'image', but got {observation!r}")
        if type(env.unwrapped).__module__.startswith("ale_py"):
            raise ValueError(
                "Gymnasium's Atari games skip frames and repeat actions at random: name the game "
                "atari:GAME instead"
            )
        if not isinstance(env.action_space, spaces.Discrete):
            raise ValueError(
                f"the action space must be Discrete, but is {env.action_space}: wrap the "
                "environment in one that offers a choice of actions"
            )
        if observation == "features" and not _flattens(env.observation_space):
            raise ValueError(
                f"observations must flatten to a vector, but the space is {env.observation_space}: "
                "choose observation='image', or wrap the environment"
            )
        if observation == "image" and env.render_mode != "rgb_array":
            raise ValueError(
                f"images need render_mode 'rgb_array', but the environment has {env.render_mode!r}"
            )
        fps = fps or env.metadata.get("render_fps")
        if fps is None:
            raise ValueError("the environment's metadata do not say 'render_fps': give fps")
        self._env, self._first_action = env, int(env.action_space.start)
        self.fps, self.n_actions, self.noop = float(fps), int(env.action_space.n), noop
        if not 0 <= noop < self.n_actions:
            raise ValueError(f"noop must be one of the {self.n_actions} actions, but got {noop}")
        self.action_names = tuple(str(action) for action in range(self.n_actions))
        self._flatten = spaces.flatten
        self._observe = self.features if observation == "features" else self.render84
        self.reset(0)

    def reset(self, seed: int) -> np.ndarray:
        """Begins an episode with this seed."""
        self._seed, self._actions = seed, list[int]()
        self._newest, _ = self._env.reset(seed=seed)
        return self._observe()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One frame: (observation, reward, terminated, truncated, info)."""
        self._newest, reward, terminated, truncated, info = self._env.step(
            self._first_action + action
        )
        self._actions.append(action)
        return self._observe(), float(reward), bool(terminated), bool(truncated), info

    def features(self) -> np.ndarray:
        """(n,) float32, the environment's own observation as gymnasium.spaces.flatten has it."""
        return np.asarray(self._flatten(self._env.observation_space, self._newest), np.float32)

    def render84(self) -> np.ndarray:
        """(84, 84) uint8, the rendered picture in gray."""
        return shrink(gray(np.asarray(self._env.render())))

    def get_state(self) -> dict[str, Any]:
        """The episode's seed and actions: what Gymnasium lets us know of any environment."""
        return {"seed": self._seed, "actions": list(self._actions)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Plays the episode again up to where get_state() was called."""
        self.reset(state["seed"])
        for action in state["actions"]:
            self.step(action)

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()
