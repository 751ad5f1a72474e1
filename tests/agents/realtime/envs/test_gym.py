"""The adapter passes every step of a Gymnasium environment on, unchanged."""

import sys

import numpy as np
import pytest

pytest.importorskip("gymnasium")

import gymnasium
from gymnasium import spaces

from fox.agents.realtime.envs.gym import GymEnv, make_gym


class Walk(gymnasium.Env):
    """A number that actions -1 and 1 move, until 3 or -3; shown as a bright column."""

    def __init__(self, render_mode="rgb_array", fps=20, actions=None, observations=None):
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": fps}
        self.render_mode = render_mode
        self.action_space = actions or spaces.Discrete(3, start=-1)
        self.observation_space = observations or spaces.Dict(
            {"at": spaces.Box(-3, 3, (1,)), "sign": spaces.Discrete(2)}
        )

    def observe(self):
        return {"at": np.array([self.at], np.float32), "sign": int(self.at > 0)}

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.at = int(self.np_random.integers(-1, 2))
        return self.observe(), {}

    def step(self, action):
        self.at += int(action)
        return self.observe(), -0.5, abs(self.at) == 3, False, {"at": self.at}

    def render(self):
        picture = np.zeros((70, 70, 3), np.uint8)
        picture[:, 10 * (self.at + 3) : 10 * (self.at + 4)] = 255
        return picture


def test_one_step_is_one_tick_of_the_environment():
    env, plain = make_gym("CartPole-v1", noop=0), gymnasium.make("CartPole-v1")
    np.testing.assert_array_equal(env.reset(3), plain.reset(seed=3)[0])
    for tick in range(200):
        observation, reward, terminated, truncated, _ = env.step(tick % 2)
        expected = plain.step(tick % 2)
        np.testing.assert_array_equal(observation, expected[0])
        assert (reward, terminated, truncated) == expected[1:4]
        if terminated:
            break
    assert (env.fps, env.n_actions, env.noop) == (50.0, 2, 0)
    env.close()


def test_observations_are_flattened_and_actions_begin_at_zero():
    env = GymEnv(Walk(), noop=1)
    at, *sign = env.reset(0)
    assert sign == ([0, 1] if at > 0 else [1, 0])
    observation, reward, _, _, info = env.step(2)
    assert observation[0] == at + 1 == info["at"]
    assert observation.dtype == np.float32
    assert reward == -0.5
    assert env.step(1)[0][0] == at + 1
    assert env.step(0)[0][0] == at
    assert env.action_names == ("0", "1", "2")


def test_the_rendered_picture_is_the_image():
    env = GymEnv(Walk(), noop=1, observation="image")
    image = env.reset(0)
    assert image.shape == (84, 84)
    first = 12 * (env.step(1)[4]["at"] + 3)
    assert (image[:, first : first + 12] == 255).all()
    assert image.sum() == 255 * 84 * 12


def test_a_state_plays_the_same_episode_on():
    env, other = GymEnv(Walk(), noop=1), GymEnv(Walk(), noop=1)
    env.reset(11)
    for action in (2, 1, 1):
        env.step(action)
    other.set_state(env.get_state())
    np.testing.assert_array_equal(other.features(), env.features())
    assert other.get_state() == env.get_state() == {"seed": 11, "actions": [2, 1, 1]}


class Words(spaces.Space):
    """A space of another package's own."""

    def __init__(self):
        super().__init__((), str)


BOX = spaces.Box(-1, 1, (2,))


@pytest.mark.parametrize(
    ("env", "settings", "message"),
    [
        (Walk(), {"observation": "pixels"}, "must be 'features' or 'image', but got 'pixels'"),
        (Walk(actions=BOX), {}, r"action space must be Discrete, but is Box.*wrap the environment"),
        (
            Walk(observations=spaces.Graph(BOX, None)),
            {},
            "must flatten.*choose observation='image'",
        ),
        (Walk(observations=spaces.Dict({"goal": Words()})), {}, "must flatten.*choose observation"),
        (Walk(render_mode=None), {"observation": "image"}, "but the environment has None"),
        (Walk(fps=None), {}, "metadata do not say 'render_fps': give fps"),
        (Walk(), {"noop": 3}, "noop must be one of the 3 actions, but got 3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused(env, settings, message):
    with pytest.raises(ValueError, match=message):
        GymEnv(env, **{"noop": 1} | settings)


def test_atari_games_are_sent_to_their_own_environment():
    ale_py = pytest.importorskip("ale_py")
    gymnasium.register_envs(ale_py)
    with pytest.raises(ValueError, match=r"skip frames.*name the game atari:GAME instead"):
        make_gym("ALE/Boxing-v5", noop=0)


def test_an_environment_that_gymnasium_does_not_know_is_refused():
    with pytest.raises(ValueError, match=r"expected the id of a .* but got 'Cart-v1': Environment"):
        make_gym("Cart-v1", noop=0)


def test_a_missing_gymnasium_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fox-transformer\[gym\]'"):
        make_gym("CartPole-v1", noop=0)
