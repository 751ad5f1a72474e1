"""Meter: ticks in, one row of what they were worth out."""

from collections import Counter
from typing import Any

import numpy as np

from fox.agents.realtime.loop import Step
from fox.agents.realtime.ticks import Source

BETAS = {source.name: source for source in Source if source is not Source.POLICY}


class Meter:
    """Sums over the ticks of one row.

    Args:
        step_seconds: M, of the world.
    """

    def __init__(self, step_seconds: float) -> None:
        self.step_seconds = step_seconds
        self._last: int | None = None  # tick with a policy action, in this episode
        self._empty()

    def _empty(self) -> None:
        self.ticks = self.gains = self.losses = self.episodes = 0
        self.reward = 0.0
        self.sources: Counter[Source] = Counter()
        self._delays: list[int] = []
        self._ages: list[int] = []
        self._gaps: list[int] = []

    def add(self, step: Step, newest: int) -> None:
        """One tick; newest is the version of the weights that the learner has published last."""
        self.ticks += 1
        self.reward += step.reward
        self.gains += step.reward > 0
        self.losses += step.reward < 0
        self.sources[step.source] += 1
        if step.source is Source.POLICY:
            self._delays.append(step.delay)
            self._ages.append(newest - step.version)
            if self._last is not None:
                self._gaps.append(step.tick - self._last)
            self._last = step.tick
        if step.terminated or step.truncated:
            self.episodes += 1
            self._last = None

    def row(self) -> dict[str, Any]:
        """The row, of everything since the last one; None where nothing was measured.

        return is reward per second of the world; gains and losses are ticks with a reward above
        and below 0; coverage is the share of ticks with a policy action, the first d of episodes
        left out; delay_ticks is the mean from observation to action; weight_age how many updates
        the weights behind an action were behind the learner's; gap_cv the deviation of the ticks
        between policy actions over their mean; beta_late and so on count ticks by Source.
        """
        policy = self.sources[Source.POLICY]
        reachable = self.ticks - self.sources[Source.BETA_RESET]
        row = {
            "return": self.reward / (self.ticks * self.step_seconds),
            "gains": self.gains,
            "losses": self.losses,
            "episodes": self.episodes,
            "coverage": policy / reachable if reachable else None,
            "delay_ticks": float(np.mean(self._delays)) if self._delays else None,
            "weight_age": float(np.mean(self._ages)) if self._ages else None,
            "gap_cv": float(np.std(self._gaps) / np.mean(self._gaps)) if self._gaps else None,
            **{name.lower(): self.sources[source] for name, source in BETAS.items()},
        }
        self._empty()
        return row
