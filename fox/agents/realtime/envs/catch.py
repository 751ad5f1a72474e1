"""CatchRT: catch falling balls with a paddle, in integers, so that every play repeats exactly.

Legend: px, bx, by are pixels of a 168 x 168 world, with y downwards: the paddle covers px..px + 24,
the ball bx..bx + 8. A ball takes 128 ticks to fall.
"""

from typing import Any

import numpy as np

NOOP, RIGHT, LEFT = 0, 1, 2
PADDLE_MIN, PADDLE_MAX, BALL_TOP, FLOOR = 8, 144, 16, 144
GUST_MIN, GUST_MAX, GUST = 8, 150, 16
_PIXELS = 2 * np.arange(84)


def ball_seed(seed: int) -> int:
    """Where the balls' generator begins after reset(seed): never 0, and 0xACE1 for seed 0."""
    return 1 + (0xACE0 + 31421 * seed) % 0xFFFF


def next_random(seed: int) -> int:
    """The next state of the 16-bit generator; a draw is its low byte."""
    seed ^= seed << 7 & 0xFFFF
    seed ^= seed >> 9
    return seed ^ (seed << 8 & 0xFFFF)


def moved(px: int, action: int) -> int:
    """The paddle after one tick of an action."""
    if action == RIGHT and px < PADDLE_MAX:
        return px + 2
    return px - 2 if action == LEFT and px > PADDLE_MIN else px


class CatchRT:
    """One ball after the other falls; the paddle catches it (+1) or misses it (-1).

    A ball is caught iff bx + 8 > px and bx < px + 24 at the tick that it lands. A gust pushes the
    falling ball by 16 pixels to either side; so between landings the likeliest next state of the
    world has probability 1 - gusts (for gusts <= 2/3).

    Args:
        observation: "features" or "image": what reset() and step() return.
        lives: the episode ends with the miss of this number; None: it never ends.
        gusts: probability of a gust at each tick on which no ball lands.

    Raises:
        ValueError: an argument is not as above.
    """

    fps = 60.0
    n_actions = 3
    noop = NOOP
    action_names = ("noop", "right", "left")

    def __init__(
        self, observation: str = "features", lives: int | None = None, gusts: float = 0.0
    ) -> None:
        if observation not in ("features", "image"):
            raise ValueError(f"observation must be 'features' or 'image', but got {observation!r}")
        if lives is not None and lives < 1:
            raise ValueError(f"lives must be at least 1, or None for no end, but got {lives}")
        if not 0 <= gusts <= 1:
            raise ValueError(f"gusts must be a probability in [0, 1], but got {gusts}")
        self.lives, self.gusts = lives, gusts
        self._observe = self.features if observation == "features" else self.render84
        self.reset(0)

    def reset(self, seed: int) -> np.ndarray:
        """Begins an episode; seed 0 gives the sequence of balls that the Game Boy ROM plays.

        The generator's one cycle has 65535 states, so seeds that are equal modulo 65535 give equal
        balls; the gusts of all seeds differ.
        """
        self.px, self.bx, self.by = 76, 80, BALL_TOP
        self.seed = ball_seed(seed)
        self.misses = 0
        self._wind = np.random.default_rng(seed)
        return self._observe()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One frame: (observation, reward, terminated, False, {})."""
        if not 0 <= action < self.n_actions:
            raise ValueError(f"action must be 0, 1 or 2 (noop, right, left), but got {action}")
        if self.misses == self.lives:
            raise ValueError("the episode has ended: call reset(seed) before step(action)")
        self.px = moved(self.px, action)
        self.by += 1
        reward = 0.0
        if self.by >= FLOOR:
            reward = self._land()
        elif self.gusts and self._wind.random() < self.gusts:
            push = GUST if self._wind.random() < 0.5 else -GUST
            self.bx = min(max(self.bx + push, GUST_MIN), GUST_MAX)
        return self._observe(), reward, self.misses == self.lives, False, {}

    def _land(self) -> float:
        caught = self.bx + 8 > self.px and self.bx < self.px + 24
        self.misses += not caught
        first = next_random(self.seed)
        self.seed = next_random(first)
        self.by, self.bx = BALL_TOP, 8 + (first & 127) + (self.seed & 15)
        return 1.0 if caught else -1.0

    def features(self) -> np.ndarray:
        """(4,) float32: paddle, ball and height in -1..1, and how far the ball is from the middle
        of what the paddle catches: |offset| < 1 would be caught, clipped at +-4.
        """
        offset = min(max((self.bx - self.px - 8) / 16, -4.0), 4.0)
        return np.array(
            [(self.px - 76) / 68, (self.bx - 79) / 71, (self.by - 80) / 64, offset], np.float32
        )

    def render84(self) -> np.ndarray:
        """(84, 84) uint8, two pixels of the world to one, gray where a side is in between."""
        image = np.zeros((84, 84), np.uint8)
        image[76:80] = 255 * _covered(self.px, 24)
        rows = slice(self.by // 2, (self.by + 9) // 2)
        image[rows] = np.outer(255 * _covered(self.by, 8)[rows], _covered(self.bx, 8))
        return image

    def get_state(self) -> dict[str, Any]:
        """The positions, the balls' and the wind's generators, the misses."""
        names = ("px", "bx", "by", "seed", "misses")
        return {name: getattr(self, name) for name in names} | {
            "wind": self._wind.bit_generator.state
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues exactly where get_state() was called."""
        for name in ("px", "bx", "by", "seed", "misses"):
            setattr(self, name, state[name])
        self._wind.bit_generator.state = state["wind"]

    def close(self) -> None:
        """Nothing to free."""


def _covered(first: int, length: int) -> np.ndarray:
    """(84,) share of each pixel pair that first..first + length covers."""
    return (np.clip(first + length - _PIXELS, 0, 2) - np.clip(first - _PIXELS, 0, 2)) / 2
