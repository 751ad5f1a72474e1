"""The learner: deep Q-learning on sequences of the log, with the delay aligned.

Legend: B sequences, T tokens, P decisions of each sequence, K those of them that are trained,
A actions, N weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fox.agents.dqn import (
    bootstrap_discount,
    double_q_target,
    huber,
    n_step_return,
    q_target,
    td_error,
)
from fox.agents.ranges import at_least, within_one
from fox.agents.realtime.policy import RealtimePolicy
from fox.agents.realtime.replay import Replay, Sequences
from fox.agents.value_learner import ValueLearner

ADAM_EPS = 1e-8


@dataclass(frozen=True)
class LearnerConfig:
    """How the learner learns.

    Args:
        batch_size: sequences per update.
        burn_in: tokens that a sequence begins with, for the trunk to remember.
        train: decisions per sequence, one token each after the burn-in.
        n_step: ticks of reward in a target before the value. Those of a sequential agent reach to
            its next decision: in a run it is the delay.
        gamma: discount per tick.
        learning_rate: Adam's.
        max_grad_norm: gradients longer than this are scaled down to it.
        target_every: updates between two updates of the target network.
        target_rate: how far that goes towards the online network: 1 copies it, and Polyak averaging
            is a small rate with target_every = 1.
        double: the online network chooses the action that the target network evaluates.
        learn_from_beta: train on the default behaviour's actions, too.

    Raises:
        ValueError: a value is out of its range.
    """

    batch_size: int = 16
    burn_in: int = 32
    train: int = 32
    n_step: int = 1
    gamma: float = 0.99
    learning_rate: float = 1e-4
    max_grad_norm: float = 10.0
    target_every: int = 1000
    target_rate: float = 1.0
    double: bool = False
    learn_from_beta: bool = False

    def __post_init__(self) -> None:
        at_least("learner", self, batch_size=1, train=1, n_step=1, target_every=1)
        at_least("learner", self, burn_in=0, learning_rate=0, max_grad_norm=0)
        within_one("learner", self, "gamma", "target_rate")


class Learner(ValueLearner[RealtimePolicy]):
    """Deep Q-learning with a target network.

    Update u draws its batch from a generator keyed by (seed, u): a resumed learner goes on bit for
    bit.

    Args:
        policy: its parameters are trained, in place.
        replay: open for reading suffices.
        config: how.
        seed: of the batches.

    Attributes:
        target, version: as ValueLearner has them.
    """

    def __init__(
        self, policy: RealtimePolicy, replay: Replay, config: LearnerConfig, seed: int
    ) -> None:
        super().__init__(policy, ADAM_EPS)
        self.policy, self.replay, self.config, self.seed = policy, replay, config, seed

    def step(self) -> dict[str, float]:
        """One update: sample, gradient, Adam; returns the metrics of `gradients`.

        Raises:
            ValueError: there are not enough rows yet.
        """
        gradient, metrics = self.gradients(self.sample())
        self.apply([gradient])
        return metrics

    def sample(self) -> Sequences:
        """The batch of this update."""
        config = self.config
        return self.replay.sample(
            np.random.default_rng([self.seed, self.version]),
            batch_size=config.batch_size,
            burn_in=config.burn_in,
            train=config.train,
            n_step=config.n_step,
            learn_from_beta=config.learn_from_beta,
            fresh=self.policy.config.fresh,
        )

    def gradients(self, sequences: Sequences) -> tuple[Tensor, dict[str, float]]:
        """The clipped gradient (N,) of the mean Huber loss; nothing in the learner changes.

        Several learners, each with its own weights, may hand theirs to the one that applies them.

        Returns:
            the gradient and loss, q (mean value of the executed actions), td_error (mean absolute),
            grad_norm (before clipping) and trained (share of the decisions that were trainable).
        """
        keep = torch.from_numpy(sequences.trainable)
        target_t = self._target(sequences, keep)
        q_t = self._q_t(sequences, keep)
        a_t = torch.from_numpy(sequences.action_t)[keep]
        error = td_error(q_t, a_t, target_t)
        count = max(len(error), 1)
        loss = huber(error, 1.0).sum() / count
        gradient, norm = self._clipped_gradient(loss, self.config.max_grad_norm)
        error = error.detach()
        metrics = {
            "loss": loss.detach(),
            "q": (target_t - error).sum() / count,
            "td_error": error.abs().sum() / count,
            "grad_norm": norm,
            "trained": keep.float().mean(),
        }
        return gradient, {name: float(value) for name, value in metrics.items()}

    def apply(self, gradients: Sequence[Tensor]) -> None:
        """One step of Adam along the mean of the gradients (N,), and the target network's share."""
        self._descend(torch.stack(list(gradients)).mean(0), self.config.learning_rate)
        if self.version % self.config.target_every == 0:
            self._move_target(self.config.target_rate)

    def _q_t(self, sequences: Sequences, keep: Tensor) -> Tensor:
        """(K, A), online values of the states in which the trained decisions were executed."""
        first, last = self.config.burn_in, self.config.burn_in + self.config.train
        h = _features(self.policy, sequences, last)[:, first:]
        fresh = None if sequences.obs_t is None else torch.from_numpy(sequences.obs_t)[keep]
        return self.policy.head(h[keep], torch.from_numpy(sequences.committed_t)[keep], fresh)

    @torch.no_grad()
    def _target(self, sequences: Sequences, keep: Tensor) -> Tensor:
        """(K,), what the trained decisions' values shall become."""
        q_tpm = self._q_tpm(self.target, sequences, keep)
        steps = torch.from_numpy(sequences.steps)[keep]
        gamma, terminated_tpm = self.config.gamma, torch.from_numpy(sequences.terminated_tpm)[keep]
        return_t = n_step_return(torch.from_numpy(sequences.reward_t)[keep], steps, gamma)
        discount_tpm = bootstrap_discount(steps, terminated_tpm, gamma)
        if not self.config.double:
            return q_target(return_t, discount_tpm, q_tpm)
        q_tpm_online = self._q_tpm(self.policy, sequences, keep)
        return double_q_target(return_t, discount_tpm, q_tpm, q_tpm_online)

    def _q_tpm(self, policy: RealtimePolicy, sequences: Sequences, keep: Tensor) -> Tensor:
        """(K, A), values of the states at which the trained decisions' returns end."""
        h = _features(policy, sequences, sequences.tokens["tick"].shape[1])
        row, p = keep.nonzero(as_tuple=True)
        h_tpm = h[row, self.config.burn_in + p + torch.from_numpy(sequences.steps)[keep]]
        fresh = None if sequences.obs_tpm is None else torch.from_numpy(sequences.obs_tpm)[keep]
        return policy.head(h_tpm, torch.from_numpy(sequences.committed_tpm)[keep], fresh)


def _features(policy: RealtimePolicy, sequences: Sequences, T: int) -> Tensor:
    """(B, T, F) of the first T tokens."""
    tokens = {name: torch.from_numpy(field[:, :T]) for name, field in sequences.tokens.items()}
    tokens |= {name: tokens[name].long() for name in ("action", "source")}  # to look up embeddings
    return policy.window(policy.encode(tokens), tokens["start"])
