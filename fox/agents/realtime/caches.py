"""Workers that run a policy's trunk: with a window, with their own cache, or with a shared one.

Legend: job for tick k; W ticks of a window; N workers. Every worker delivers the features of the
tokens up to o_k; the modes differ in what they compute again.
"""

import math
from dataclasses import dataclass
from multiprocessing.context import get_spawning_popen
from typing import Any, Protocol

import numpy as np
import torch

from fox.agents.flat import load_flat
from fox.agents.memory import Memory
from fox.agents.realtime.policy import PolicyConfig, RealtimePolicy, batch_of
from fox.agents.realtime.ticks import InferenceWorker, Job, Rows, token_dtype
from fox.agents.realtime.wavefront import KeyRing, Wavefront
from fox.agents.weights import WeightBuffers
from fox.cache import FoxCache
from fox.policy import FoxPolicy

# A cache that evicts may lose this share of its attention at most.
LOG_TOLERANCE = math.log(1e-6)
# One that cannot is filled anew when it holds so many histories.
LONGEST = 16


@dataclass(frozen=True)
class PolicyWorkers:
    """Makes the workers of one policy, each where it shall run; made by policy_workers.

    Attributes:
        config, observation_shape, observation_dtype, n_actions: of the policy.
        weights: that all workers read.
        lags: holds the largest lag of each worker; None on other hosts.
        keys: what "wavefront" workers share; None in the other modes.
        patience: seconds for which they wait for each other.
    """

    config: PolicyConfig
    observation_shape: tuple[int, ...]
    observation_dtype: np.dtype
    n_actions: int
    weights: WeightBuffers
    lags: Memory | None
    keys: KeyRing | None
    patience: float

    def __call__(self, worker: int) -> InferenceWorker:
        """The worker of this number, which has run once: a first call imports and allocates."""
        policy = self.policy()
        trunk: Trunk
        warm_up(policy)
        if self.keys is not None:
            trunk = Wavefront(policy, self.keys, self.patience)
        else:
            trunk = CatchUp(policy) if self.config.cache == "catchup" else Window(policy)
        return PolicyWorker(policy, trunk, self.weights, worker, self._lags()[worker : worker + 1])

    def policy(self) -> RealtimePolicy:
        """A policy whose parameters are still random."""
        shape, dtype = self.observation_shape, self.observation_dtype
        return RealtimePolicy(self.config, shape, dtype, self.n_actions).eval()

    @property
    def largest_lag(self) -> int:
        """By how many versions the oldest key that any worker has used was behind its weights."""
        return int(self._lags().max())

    def _lags(self) -> np.ndarray:
        if self.lags is None:
            return np.zeros(self.weights.workers, np.int64)
        return self.lags.array((self.weights.workers,), np.int64)

    def __getstate__(self) -> dict[str, Any]:
        if get_spawning_popen() is not None:  # to a child process, which shares the memory
            return vars(self)
        if self.keys is not None:
            raise ValueError(
                'workers with policy.cache = "wavefront" share memory, which other hosts cannot: '
                'run them as threads or processes, or set policy.cache to "catchup"'
            )
        return vars(self) | {"lags": None}


def policy_workers(
    config: PolicyConfig,
    observation_shape: tuple[int, ...],
    observation_dtype: np.dtype,
    n_actions: int,
    weights: WeightBuffers,
    *,
    patience: float = 1.0,
) -> PolicyWorkers:
    """A factory of workers for any transport, and for one run, whose ticks go on.

    Args:
        config: `config.cache` decides the kind of worker.
        observation_shape, observation_dtype, n_actions: of the policy.
        weights: where the learner publishes; reader numbers are worker numbers. Workers in
            processes need shared ones.
        patience: seconds that a "wavefront" worker waits for the one before it: those of d ticks.
    """
    keys = None
    if config.cache == "wavefront":
        keys = KeyRing(config.blocks(), config.history, 2 * config.d_max, weights.shared)
    lags = Memory(8 * weights.workers, weights.shared)
    policy = (config, observation_shape, observation_dtype, n_actions)
    return PolicyWorkers(*policy, weights, lags, keys, patience)


class Trunk(Protocol):
    """How a worker comes from a job to features.

    Attributes:
        oldest: version of the weights behind the oldest key that the last job has used.
    """

    oldest: int

    def features(self, job: Job, rows: Rows, version: int) -> np.ndarray:
        """(F,) float32, with the policy's weights, which are of this version."""


class PolicyWorker:
    """Runs a trunk with the newest weights where they lie.

    Args:
        policy: becomes a view of the weights.
        trunk: runs that policy.
        weights: to read.
        worker: number of the reader.
        lag: (1,) int64, takes the largest lag.
    """

    def __init__(
        self,
        policy: RealtimePolicy,
        trunk: Trunk,
        weights: WeightBuffers,
        worker: int,
        lag: np.ndarray,
    ) -> None:
        self.policy, self.trunk, self.weights, self.worker = policy, trunk, weights, worker
        self.lag = lag
        self._loaded = 0

    @torch.inference_mode()
    def infer(self, job: Job, rows: Rows) -> tuple[np.ndarray, int]:
        """Features (F,) float32 of the tokens up to job.obs_tick, and the weights' version."""
        with self.weights.pinned(self.worker) as (flat, version):
            if flat.ctypes.data != self._loaded:  # one of few buffers, and often the same again
                load_flat(self.policy, flat)
                self._loaded = flat.ctypes.data
            features = self.trunk.features(job, rows, version)
        self.lag[0] = max(self.lag[0], version - self.trunk.oldest)
        return features, version


class Window:
    """Reads the last W tokens again: current weights, and nothing that can be lost."""

    def __init__(self, policy: RealtimePolicy) -> None:
        self.policy = policy
        self.oldest = 0

    def features(self, job: Job, rows: Rows, version: int) -> np.ndarray:
        """(F,) float32."""
        first = job.obs_tick - self.policy.config.sees + 1
        batch = batch_of(this_episode(rows.read(first, job.obs_tick)))
        self.oldest = version
        return last(self.policy.window(self.policy.encode(batch), batch["start"]))


class CatchUp:
    """Its own cache, which takes in all ticks since the last job as one chunk.

    It is filled from the last `history` ticks at first, after a gap that is longer, and when its
    oldest keys are `version_lag` versions old. It evicts where QK-norm bounds the logits.
    """

    def __init__(self, policy: RealtimePolicy) -> None:
        assert policy.trunk is not None
        self.policy, self.trunk = policy, policy.trunk
        self.oldest = 0
        self.tick = -1  # the last one taken in
        self.cache: FoxCache | None = None

    def features(self, job: Job, rows: Rows, version: int) -> np.ndarray:
        """(F,) float32."""
        config, first = self.policy.config, self.tick + 1
        refill = not self._goes_on(job, version)
        if refill:
            first = job.obs_tick - config.history + 1
        tokens = rows.read(first, job.obs_tick)
        episode = this_episode(tokens)
        if refill or episode["start"][0]:
            self.cache, self.oldest = cache_of(self.trunk), version
        assert self.cache is not None
        batch = batch_of(episode)
        h = self.policy.extend(self.cache, self.policy.encode(batch), batch["start"])
        self.tick = job.obs_tick
        return last(h)

    def _goes_on(self, job: Job, version: int) -> bool:
        config, new = self.policy.config, job.obs_tick - self.tick
        return (
            self.cache is not None
            and 0 < new <= config.history
            and version - self.oldest <= config.version_lag
            and (self.cache.evicts or self.cache.length + new <= LONGEST * config.history)
        )


def cache_of(trunk: FoxPolicy) -> FoxCache:
    """An empty cache for one row, which evicts if its keys are bounded."""
    bounded = trunk.config.qk_norm and trunk.config.fgate_type != "none"
    return trunk.new_cache(1, rollback=1, log_pruning_tolerance=LOG_TOLERANCE if bounded else None)


@torch.inference_mode()
def warm_up(policy: RealtimePolicy) -> None:
    """Runs a policy on one token of zeros."""
    zeros = np.zeros(policy.observation_shape, policy.observation_dtype)
    batch = batch_of(np.zeros(1, token_dtype(zeros)))
    policy.window(policy.encode(batch), batch["start"])


def this_episode(tokens: np.ndarray) -> np.ndarray:
    """The tokens from the last start on: nothing before it can be seen."""
    starts = np.flatnonzero(tokens["start"])
    return tokens[starts[-1] :] if len(starts) else tokens


def last(h: torch.Tensor) -> np.ndarray:
    """(1, T, F) -> (F,), which keeps no more than that."""
    return h[0, -1].numpy().copy()
