"""The learner: deep Q-learning on whole games, of several numbers of players at once.

Legend: B games, R turns of all of them, d width; of the games of one rules: G games, T turns of the
longest, N turns of all, A moves. W weights.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fox.agents.dqn import action_value, huber
from fox.agents.hanabi.batch import Batch, Group, batch_of
from fox.agents.hanabi.network import HanabiNet
from fox.agents.hanabi.otherplay import renamed_at_random
from fox.agents.hanabi.replay import Replay
from fox.agents.hanabi.targets import (
    Bomb,
    bomb_rewards,
    double_q_value,
    joint_target,
    joint_value,
    n_step_target,
)
from fox.agents.ranges import above_zero, at_least, one_of, within_one
from fox.agents.value_learner import ValueLearner

ADAM_EPS = 1e-5
DRAWS = 7  # last number of seeds: decks and seats have 0 to 5 there, transcripts 6
Targets = Literal["next", "own", "vdn"]


@dataclass(frozen=True)
class LearnerConfig:
    """How the learner learns.

    Args:
        batch_games: whole games per update, equally many of each number of players.
        n_step: turns of reward in a target before the value ("own", "vdn": rounds).
        targets: "next", the value is that of whoever moves then; "own", independent learners: that
            of the same seat; "vdn", value decomposition: the values of a round's movers are
            learnt as a sum.
        gamma: discount per turn, whoever moves.
        bomb: what the last lost life costs: "strict" the score, or "keep" nothing.
        burn_in: rounds at the beginning of games that are remembered, but not learnt.
        other_play: whether games are learnt from as if each seat saw the colours under names of
            its own, as in fox.agents.hanabi.otherplay.
        learning_rate: Adam's at the beginning.
        final_rate: the share of it that is left at the last update; it falls in a line.
        max_grad_norm: gradients longer than this are scaled down to it.
        target_every: updates between two copies of the weights to the target network.
        device: where the learner computes: "cpu", "cuda" or "cuda:1"; actors play on CPUs.

    Raises:
        ValueError: a value is out of its range.
    """

    batch_games: int = 48
    n_step: int = 3
    targets: Targets = "next"
    gamma: float = 0.99
    bomb: Bomb = "strict"
    burn_in: int = 0
    other_play: bool = False
    learning_rate: float = 1e-3
    final_rate: float = 0.1
    max_grad_norm: float = 5.0
    target_every: int = 100
    device: str = "cpu"

    def __post_init__(self) -> None:
        one_of("learner", self, targets=get_args(Targets), bomb=get_args(Bomb))
        at_least("learner", self, batch_games=1, n_step=1, target_every=1, burn_in=0)
        above_zero("learner", self, "learning_rate", "max_grad_norm")
        within_one("learner", self, "gamma", "final_rate")


class Learner(ValueLearner[HanabiNet]):
    """Double deep Q-learning with a target network.

    The loss is averaged over the turns of each number of players, then over these numbers. Update u
    draws its games from a generator keyed by (seed, u): a learner that goes on after a stop does so
    bit for bit.

    Args:
        net: its parameters are trained, in place.
        replay: to draw from.
        config: how.
        seed: of the draws.
        total_updates: at which the learning rate has fallen to its last.

    Attributes:
        target, version: as ValueLearner has them.
    """

    def __init__(
        self, net: HanabiNet, replay: Replay, config: LearnerConfig, seed: int, total_updates: int
    ) -> None:
        self.device = _device(config.device)
        super().__init__(net.to(self.device), ADAM_EPS)
        self.net, self.replay, self.config, self.seed = net, replay, config, seed
        self.total_updates = total_updates

    @property
    def learning_rate(self) -> float:
        """Of the next update."""
        passed = min(self.version / self.total_updates, 1.0)
        return self.config.learning_rate * (1 - (1 - self.config.final_rate) * passed)

    def step(self) -> dict[str, float]:
        """One update: draw games, gradient, Adam, priorities.

        Returns:
            loss, and loss_Pp of each number of players; q and td_error, means of the values of the
            moves made (vdn: of the rounds) and of the errors' sizes; grad_norm before clipping; and
            lag_mean, lag_p95, lag_max, by how many updates the weights that played are older.
        """
        config = self.config
        generator = np.random.default_rng([self.seed, self.version, DRAWS])
        sample = self.replay.sample(generator, config.batch_games)
        batch = batch_of(sample.episodes, self.net.config.style)
        if config.other_play:
            batch = renamed_at_random(batch, generator)
        weights = torch.from_numpy(sample.weights).to(self.device)
        loss, metrics, errors = self._loss(batch.to(self.device), weights)
        gradient, norm = self._clipped_gradient(loss, config.max_grad_norm)
        self._descend(gradient, self.learning_rate)
        if self.version % config.target_every == 0:
            self._move_target(1.0)
        self.replay.update(sample, *errors)
        lag = self.version - 1 - np.array([episode.version for episode in sample.episodes])
        return {
            "loss": float(loss.detach()),
            **metrics,
            "grad_norm": float(norm),
            "lag_mean": float(lag.mean()),
            "lag_p95": float(np.percentile(lag, 95)),
            "lag_max": float(lag.max()),
        }

    def _loss(
        self, batch: Batch, weights: Tensor
    ) -> tuple[Tensor, dict[str, float], tuple[np.ndarray, np.ndarray]]:
        """The loss, its metrics, and by game the largest and the mean |error|."""
        q_t = action_values(self.net, batch)
        with torch.no_grad():
            q_t_target = action_values(self.target, batch)
        losses, values, errors, largest, means = {}, [], [], [], []
        each = weights.split([len(group.there) for group in batch.groups])
        for group, weight, q, q_target in zip(batch.groups, each, q_t, q_t_target, strict=True):
            value, error, learnt = self._errors(group, q, q_target)
            count = learnt.sum().clamp(min=1)
            weighted = weight[:, None] * huber(error, 1.0) * learnt
            losses[f"loss_{group.rules.players}p"] = weighted.sum() / count
            value, size = value.detach(), error.detach().abs() * learnt
            values.append(value[learnt])
            errors.append(size[learnt])
            largest.append(size.amax(1))
            means.append(size.sum(1) / learnt.sum(1).clamp(min=1))
        loss = torch.stack(list(losses.values())).mean()
        metrics = {name: float(part.detach()) for name, part in losses.items()}
        for name, parts in {"q": values, "td_error": errors}.items():
            numbers = torch.cat(parts)
            metrics[name] = float(numbers.sum()) / max(len(numbers), 1)
        sizes = torch.stack([torch.cat(largest), torch.cat(means)]).cpu().numpy()
        return loss, metrics, (sizes[0], sizes[1])

    def _errors(self, group: Group, q: Tensor, q_target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values, errors and whether they are learnt, each (G, T); by round for vdn, (G, I)."""
        config, P = self.config, group.rules.players
        q_t = group.by_game(action_value(q, group.a_t))
        v_t = group.by_game(double_q_value(q_target, q.detach(), group.legal_t))
        r_t = bomb_rewards(group.r_t, config.bomb)
        there = group.there.clone()
        there[:, : P * config.burn_in] = False
        if config.targets == "vdn":
            Q_i, there = joint_value(q_t, P), there[:, ::P]
            return Q_i, joint_target(r_t, v_t, P, config.n_step, config.gamma) - Q_i, there
        horizon = config.n_step if config.targets == "next" else config.n_step * P
        return q_t, n_step_target(r_t, v_t, horizon, config.gamma) - q_t, there


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"learner.device must be a device of PyTorch, such as cpu or cuda, but got {name!r}"
        ) from error
    found = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        raise ValueError(
            f"learner.device is {name!r}, but PyTorch finds {found} GPUs here: set it to 'cpu', or "
            "install a CUDA build of PyTorch"
        )
    return device


def action_values(net: HanabiNet, batch: Batch) -> list[Tensor]:
    """(N, A) of each group: the values of all moves in the states of all rows.

    The network encodes its own moves: those of another would not fit its states.
    """
    x = net.encode(batch.texts)
    h = net.memory(x[batch.own])
    o = x + h.flatten(0, 1)[batch.place]
    e = net.encode(batch.moves)
    return [net.head(o[group.rows], e[group.moves], group.legal_t) for group in batch.groups]
