"""Workers that run a policy's trunk: with a window, with a cache of their own, or with a shared one.

Legend: job for tick k; W ticks of a window; L layers. Every worker delivers the features of the
tokens up to o_k; the modes differ in what is computed again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from fox.agents.realtime.policy import PolicyConfig, RealtimePolicy, batch_of, load_flat
from fox.agents.realtime.ticks import InferenceWorker, Job, Rows
from fox.agents.realtime.weights import WeightBuffers


@dataclass(frozen=True)
class PolicyWorkers:
    """Makes the workers of one policy, each where it shall run; made by policy_workers.

    Attributes:
        config, observation_shape, observation_dtype, n_actions: of the policy.
        weights: that all workers read.
    """

    config: PolicyConfig
    observation_shape: tuple[int, ...]
    observation_dtype: np.dtype
    n_actions: int
    weights: WeightBuffers

    def __call__(self, worker: int) -> InferenceWorker:
        """The worker of this number."""
        return WindowWorker(self, worker)

    def policy(self) -> RealtimePolicy:
        """A policy whose parameters are still random."""
        shape, dtype = self.observation_shape, self.observation_dtype
        return RealtimePolicy(self.config, shape, dtype, self.n_actions).eval()


def policy_workers(
    config: PolicyConfig,
    observation_shape: tuple[int, ...],
    observation_dtype: np.dtype,
    n_actions: int,
    weights: WeightBuffers,
) -> PolicyWorkers:
    """A factory of workers for any transport; it can be pickled to processes.

    Args:
        config: `config.cache` decides the kind of worker.
        observation_shape, observation_dtype, n_actions: of the policy.
        weights: where the learner publishes; reader numbers are worker numbers.
    """
    return PolicyWorkers(config, observation_shape, observation_dtype, n_actions, weights)


class Pinned:
    """A policy that runs with the newest weights where they lie.

    Args:
        workers: what made the worker.
        worker: its number.
    """

    def __init__(self, workers: PolicyWorkers, worker: int) -> None:
        self.policy = workers.policy()
        self.weights, self.worker = workers.weights, worker
        self._loaded = 0

    @contextmanager
    def version(self) -> Iterator[int]:
        """Holds the newest weights still and in the policy; tells their version."""
        with self.weights.pinned(self.worker) as (flat, version):
            if flat.ctypes.data != self._loaded:  # one of three buffers
                load_flat(self.policy, flat)
                self._loaded = flat.ctypes.data
            yield version


class WindowWorker:
    """Reads the last W tokens again and computes all of them: current weights, nothing to lose."""

    def __init__(self, workers: PolicyWorkers, worker: int) -> None:
        self.pinned = Pinned(workers, worker)
        self.window = workers.config.sees

    @torch.inference_mode()
    def infer(self, job: Job, rows: Rows) -> tuple[np.ndarray, int]:
        """Features (F,) float32 of the tokens up to job.obs_tick, and the weights' version."""
        tokens = this_episode(rows.read(job.obs_tick - self.window + 1, job.obs_tick))
        batch, policy = batch_of(tokens), self.pinned.policy
        with self.pinned.version() as version:
            h = policy.window(policy.encode(batch), batch["start"])[0, -1]
        return h.numpy(), version


def this_episode(tokens: np.ndarray) -> np.ndarray:
    """The tokens from the last start on: nothing before it can be seen."""
    starts = np.flatnonzero(tokens["start"])
    return tokens[starts[-1] :] if len(starts) else tokens
