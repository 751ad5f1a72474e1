"""RealtimePolicy: tokens to features on a worker, features to Q values at the due tick.

Legend: B batch, T ticks, C width of a token, F features, A actions, d action delay in ticks.
"""

from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

from fox.agents.realtime.networks import (
    IMPALA_FEATURES,
    Impala,
    LateHead,
    TokenEncoder,
)
from fox.agents.realtime.timing import median_seconds
from fox.cache import FoxCache
from fox.config import FoxConfig
from fox.policy import FoxPolicy


@dataclass(frozen=True)
class PolicyConfig:
    """What decides a policy's networks and how its workers remember.

    Args:
        trunk: "fox" (the blocks of a FoX over the ticks) or "impala" (the last frame only).
        block: "llama" or "pro", the FoX family.
        hidden_size, num_hidden_layers, num_heads: of the FoX trunk, as in FoxConfig.
        width, depth: of the IMPALA trunk: its channels times width, and 1 or 2 times the sections.
        cache: what a worker keeps: "window" (nothing: it reads the last `window` tokens again),
            "catchup" (its own cache, which takes in all ticks since its last job), "wavefront"
            (one cache that all workers share).
        window: ticks that mode "window" sees; a learner's decisions see learner.burn_in ticks or
            more before their own.
        history: ticks that the caches are refilled from after a loss, and that "wavefront" sees.
        version_lag: how many weight versions the oldest key of a cache may be behind; beyond it
            "catchup" refills, and "wavefront" sees the newer keys only.
        head: "late" (looks at the actions since the observation) or "plain" (one linear layer).
        head_size: width of the late head.
        d_max: the largest delay that it knows, in ticks.
        fresh: the late head also looks at the newest observation, by a small network.
        init_from: a checkpoint folder of ours whose trunk the policy starts from; its sizes must
            be those above, and its block is taken as it is.

    Raises:
        ValueError: a value is out of its range, or two do not fit together.
    """

    trunk: Literal["fox", "impala"] = "fox"
    block: Literal["llama", "pro"] = "llama"
    hidden_size: int = 128
    num_hidden_layers: int = 2
    num_heads: int = 4
    width: int = 1
    depth: int = 1
    cache: Literal["window", "catchup", "wavefront"] = "window"
    window: int = 32
    history: int = 256
    version_lag: int = 1000
    head: Literal["late", "plain"] = "late"
    head_size: int = 128
    d_max: int = 128
    fresh: bool = False
    init_from: str | None = None

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(PolicyConfig).items():
            value, allowed = getattr(self, name), get_args(kind)
            if kind is int and (not isinstance(value, int) or value < 1):
                raise ValueError(f"policy.{name} must be a whole number from 1 on, not {value!r}")
            if isinstance(value, str) and allowed and str not in allowed and value not in allowed:
                raise ValueError(f"policy.{name} must be one of {allowed}, but got {value!r}")
        if self.depth > 2:
            raise ValueError(f"policy.depth must be 1 or 2, but got {self.depth}")
        if self.trunk == "impala" and (self.cache != "window" or self.init_from is not None):
            raise ValueError(
                "an IMPALA trunk sees the last frame only: it has no cache and no checkpoint; "
                'leave out policy.cache and policy.init_from, or set policy.trunk to "fox"'
            )
        if self.head == "plain" and self.fresh:
            raise ValueError('only policy.head = "late" looks at a fresh observation')

    @property
    def sees(self) -> int:
        """Ticks that a worker may ask the observation ring for."""
        if self.trunk == "impala":
            return 1
        return self.window if self.cache == "window" else self.history

    def blocks(self) -> FoxConfig:
        """The FoX trunk's shape and parts: the checkpoint's, if there is one."""
        if self.init_from is not None:
            return FoxPolicy.from_checkpoint(self.init_from).config
        return FoxConfig.preset(
            f"fox-{self.block}-125m",
            vocab_size=1,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_heads=self.num_heads,
            max_position_embeddings=None,
        )


class RealtimePolicy(nn.Module):
    """Token encoder, trunk and head; the trunk runs on workers, the head at the due tick.

    Args:
        config: of the networks.
        observation_shape: (n,) or (H, W).
        observation_dtype: NumPy's.
        n_actions: A.

    Attributes:
        config: as given.
        features: F, numbers that a worker delivers.

    Raises:
        ValueError: the observations do not fit the trunk, or the checkpoint does not fit the
            config.
    """

    def __init__(
        self,
        config: PolicyConfig,
        observation_shape: tuple[int, ...],
        observation_dtype: np.dtype,
        n_actions: int,
    ) -> None:
        super().__init__()
        self.config = config
        self.observation_shape = tuple(observation_shape)
        self.observation_dtype = np.dtype(observation_dtype)
        self.n_actions = n_actions
        self.encoder: nn.Module
        self.trunk: FoxPolicy | None = None
        if config.trunk == "impala":
            self.features = IMPALA_FEATURES
            self.encoder = Impala(self.observation_shape, config.width, config.depth)
        else:
            self.features = config.hidden_size
            self.encoder = TokenEncoder(self.observation_shape, n_actions, self.features)
            self.trunk = _trunk(config)
        self.q_head: nn.Module
        if config.head == "plain":
            self.q_head = nn.Linear(self.features, n_actions)
        else:
            fresh = self.observation_shape if config.fresh else None
            self.q_head = LateHead(self.features, config.head_size, n_actions, config.d_max, fresh)

    def encode(self, tokens: dict[str, Tensor]) -> Tensor:
        """Tokens (B, T) as batch_of makes them -> (B, T, C)."""
        if self.trunk is None:
            obs = tokens["obs"]
            return self.encoder(obs.flatten(0, 1)).unflatten(0, obs.shape[:2])
        return self.encoder(tokens)

    def window(self, x: Tensor, starts: Tensor) -> Tensor:
        """(B, T, C), (B, T) bool -> features (B, T, F) of whole sequences, with gradients."""
        return x if self.trunk is None else self.trunk(x, starts)

    def extend(self, cache: FoxCache, x: Tensor, starts: Tensor) -> Tensor:
        """(B, T, C), (B, T) bool -> features (B, T, F) of tokens that go on where a cache ended."""
        if self.trunk is None:
            raise ValueError(
                "an IMPALA trunk sees the last frame only and has no cache: call window"
            )
        return self.trunk.extend(cache, x, starts)

    def head(self, h: Tensor, committed: Tensor, fresh: Tensor | None = None) -> Tensor:
        """Q values at the due tick.

        Args:
            h: (B, F), the features of o_k.
            committed: (B, n) int64, n <= d_max: column j is a_{k+j} as it was executed; -1 where
                there is none (j >= d, or not known).
            fresh: (B, ...), the newest observations, for heads that look at them.

        Returns:
            (B, A).
        """
        if isinstance(self.q_head, LateHead):
            return self.q_head(h, committed, fresh)
        return self.q_head(h)


def _trunk(config: PolicyConfig) -> FoxPolicy:
    if config.init_from is None:
        return FoxPolicy(config.blocks())
    trunk = FoxPolicy.from_checkpoint(config.init_from).float()
    for name in ("hidden_size", "num_hidden_layers", "num_heads"):
        wanted, given = getattr(config, name), getattr(trunk.config, name)
        if wanted != given:
            raise ValueError(
                f"policy.{name} is {wanted}, but the checkpoint {config.init_from} has {given}: "
                f"set policy.{name} to {given}"
            )
    return trunk


def batch_of(tokens: np.ndarray) -> dict[str, Tensor]:
    """Tokens (T,) or (B, T) of token_dtype as tensors (B, T, ...) by field; (T,) has B = 1.

    obs keeps its dtype, reward is float32, start bool, the others int64.
    """
    if tokens.ndim == 1:
        tokens = tokens[None]
    batch = {}
    for name in tokens.dtype.names or ():
        field = np.ascontiguousarray(tokens[name])
        wide = name in ("tick", "episode", "action", "source")
        batch[name] = torch.from_numpy(field.astype(np.int64) if wide else field)
    return batch


@torch.no_grad()
def head_seconds(policy: RealtimePolicy) -> float:
    """Seconds of one call of the head, for one decision with d_max committed actions."""
    h = torch.zeros(1, policy.features)
    committed = torch.zeros(1, policy.config.d_max, dtype=torch.int64)
    fresh = None
    if policy.config.fresh:
        zeros = np.zeros((1, *policy.observation_shape), policy.observation_dtype)
        fresh = torch.from_numpy(zeros)
    return median_seconds(lambda: policy.head(h, committed, fresh))


def check_head(policy: RealtimePolicy, tick_seconds: float) -> float:
    """Measures the head and returns its seconds.

    Raises:
        ValueError: it needs more than a tenth of a tick, so the actor would be late itself.
    """
    seconds, budget = head_seconds(policy), tick_seconds / 10
    if seconds > budget:
        raise ValueError(
            f"the head must take at most a tenth of a tick, {budget * 1e3:.2f} ms, but takes "
            f"{seconds * 1e3:.2f} ms here: make the policy narrower, or leave out policy.fresh"
        )
    return seconds
