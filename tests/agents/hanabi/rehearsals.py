"""Stand-ins for self-play, in a module that the processes of workers can import."""

import os
import signal
import time

import numpy as np

from fox.agents.hanabi.episode import Episode
from fox.agents.hanabi.rules import Rules

RULES = Rules.of("2c2r", 2)


class Echo:
    """Waves of two games, which tell their numbers, the weights, and where they were played.

    Args:
        words: of a game.
    """

    def __init__(self, words=1000):
        self.words = words

    def play(self, flat, version, wave):
        assert (flat == version).all(), "torn weights, or those of another version"
        return [
            Episode(
                rules=RULES,
                number=number,
                version=version,
                words=np.full(self.words, number, np.int16),
                lengths=np.full(20, self.words // 20, np.int16),
                actions=np.zeros(20, np.int16),
                legal=np.ones((20, len(RULES.moves)), bool),
                explored=np.zeros(20, bool),
                rewards=np.zeros(20, np.float32),
                keep_score=os.getpid(),
                strict_score=0,
            )
            for number in (2 * wave, 2 * wave + 1)
        ]


class Fated:
    """Another troupe, with accidents.

    Args:
        folder: holds a file for each wave that has begun; it is empty at first.
        factory: makes that troupe.
        raises: the wave that raises.
        dies: the waves whose worker is killed, `deaths` times each.
        seconds: by which a wave is longer.
    """

    def __init__(self, folder, factory=Echo, raises=None, dies=(), deaths=1, seconds=0.0):
        self.folder, self.raises, self.dies, self.deaths = folder, raises, dies, deaths
        self.troupe, self.seconds = factory(), seconds

    def play(self, flat, version, wave):
        if wave == self.raises:
            raise ZeroDivisionError("of this game")
        begun = len(list(self.folder.glob(f"{wave}-*")))
        (self.folder / f"{wave}-{begun}").touch()
        if wave in self.dies and begun < self.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        return self.troupe.play(flat, version, wave)


def unready():
    """Nobody: it cannot be made."""
    raise FileNotFoundError("no such checkpoint")
