"""The networks of a realtime policy beside its trunk: encoders of tokens and frames, and heads.

Legend: B batch, T ticks, C width of a token, F features, A actions, d action delay in ticks.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fox.agents.realtime.ticks import Source

# Strides of the pooling of each section, by depth: the second is the paper's deeper network.
_STRIDES = {1: (2, 2, 2), 2: (2, 1, 1, 1, 2, 1)}
IMPALA_FEATURES = 512
SMALLEST = 20  # pixels that the convolutions of a frame's encoder need


def as_image(obs: Tensor) -> Tensor:
    """(N, H, W) gray, uint8 or floating -> (N, 1, H, W) float32 in [0, 1] for uint8."""
    return obs.unsqueeze(1).float() / (255 if obs.dtype == torch.uint8 else 1)


class FrameEncoder(nn.Module):
    """A small convolutional network for one gray frame.

    Args:
        shape: (H, W) of a frame, each at least SMALLEST.
        dim: numbers that come out.
        channels: of the first convolution; the second has twice as many.
    """

    def __init__(self, shape: tuple[int, int], dim: int, channels: int) -> None:
        super().__init__()
        self.near = nn.Conv2d(1, channels, 8, stride=4)
        self.far = nn.Conv2d(channels, 2 * channels, 4, stride=2)
        places = math.prod(((side - 8) // 4 + 1 - 4) // 2 + 1 for side in shape)
        self.out = nn.Linear(2 * channels * places, dim)

    def forward(self, obs: Tensor) -> Tensor:
        """(N, H, W) -> (N, dim)."""
        x = F.relu(self.far(F.relu(self.near(as_image(obs)))))
        return self.out(x.flatten(1))


class VectorEncoder(nn.Module):
    """Two layers for an observation of a few numbers of order 1."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.near = nn.Linear(size, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, obs: Tensor) -> Tensor:
        """(N, size) -> (N, dim)."""
        return self.out(F.silu(self.near(obs.float())))


def observation_encoder(shape: tuple[int, ...], dim: int, channels: int) -> nn.Module:
    """The encoder for vectors (n,) or gray frames (H, W)."""
    if len(shape) == 1:
        return VectorEncoder(shape[0], dim)
    if len(shape) == 2 and min(shape) >= SMALLEST:
        return FrameEncoder((shape[0], shape[1]), dim, channels)
    raise ValueError(
        f"an observation must be a vector (n,) or a gray frame (H, W) of at least {SMALLEST} x "
        f"{SMALLEST}, but has shape {shape}: make small ones vectors, and leave out earlier frames "
        "and colours, since the trunk sees the frames before"
    )


class TokenEncoder(nn.Module):
    """x_k = enc(o_k) + action(a_{k-1}) + source(of a_{k-1}) + reward(r_{k-1}) + start(k)."""

    def __init__(self, shape: tuple[int, ...], n_actions: int, dim: int) -> None:
        super().__init__()
        self.obs = observation_encoder(shape, dim, 16)
        self.action = nn.Embedding(n_actions, dim)
        self.source = nn.Embedding(len(Source), dim)
        self.reward = nn.Linear(1, dim, bias=False)
        self.start = nn.Embedding(2, dim)
        for part in (self.action, self.source, self.start):
            # The observation's code is about this large, and must not drown.
            nn.init.normal_(part.weight, std=0.2)

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        """Tokens (B, T) as batch_of makes them -> (B, T, C)."""
        obs = tokens["obs"]
        x = self.obs(obs.flatten(0, 1)).unflatten(0, obs.shape[:2])
        x = x + self.action(tokens["action"]) + self.source(tokens["source"])
        return x + self.reward(tokens["reward"].unsqueeze(-1)) + self.start(tokens["start"].long())


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> the same."""
        return x + self.second(F.relu(self.first(F.relu(x))))


class Impala(nn.Module):
    """The IMPALA residual network on one gray frame, as the paper scales it.

    Sections of convolution, pooling and two residual blocks, with 16 k, 32 k, 32 k, ... channels;
    then 512 features. For 84 x 84 frames k = 1, 7, 29, 98 have 0.90, 10.4, 104.7, 1008 million
    parameters.

    Args:
        shape: (H, W) of a frame.
        width: k.
        depth: 1 for three sections, 2 for six.

    Source: Espeholt et al., IMPALA, 2018; sizes of Riemer et al., Enabling Realtime RL at Scale
    with Staggered Asynchronous Inference, ICLR 2025.
    """

    def __init__(self, shape: tuple[int, ...], width: int, depth: int) -> None:
        super().__init__()
        strides, sides = _STRIDES[depth], list(shape)
        for stride in strides:
            sides = [(side - 2 - 3) // stride + 1 for side in sides]
        if len(shape) != 2 or min(sides) < 1:
            raise ValueError(
                "the IMPALA trunk reads gray frames (H, W), such as 84 x 84, but observations have "
                f'shape {shape}; make the environment with observation="image"'
            )
        channels = [1, 16 * width] + [32 * width] * (len(strides) - 1)
        layers: list[nn.Module] = []
        for before, after, stride in zip(channels, channels[1:], strides, strict=False):
            layers += [nn.Conv2d(before, after, 3), nn.MaxPool2d(3, stride=stride)]
            layers += [Residual(after), Residual(after)]
        self.sections = nn.Sequential(*layers)
        self.out = nn.Linear(channels[-1] * math.prod(sides), IMPALA_FEATURES)

    def forward(self, obs: Tensor) -> Tensor:
        """(N, H, W) -> (N, 512)."""
        return F.relu(self.out(F.relu(self.sections(as_image(obs))).flatten(1)))


class LateHead(nn.Module):
    """Q values from old features and everything that was done since.

    q = out(relu(hidden(relu(into(h_k) + sum_{j < d} E[j, a_{k+j}] + fresh(o_{k+d})))))

    The trunk's h_k is d ticks old when its action is due; by then all actions on the way are
    known, so this small network looks at them at the due tick.

    Args:
        features: F.
        width: of its two hidden layers.
        n_actions: A.
        d_max: the largest delay.
        fresh_shape: of an observation, if the head also looks at the newest; else None.
    """

    def __init__(
        self,
        features: int,
        width: int,
        n_actions: int,
        d_max: int,
        fresh_shape: tuple[int, ...] | None,
    ) -> None:
        super().__init__()
        self.n_actions, self.d_max = n_actions, d_max
        self.into = nn.Linear(features, width)
        self.committed = nn.Embedding(d_max * n_actions + 1, width)
        # A sum of d rows of order 1 would drown h.
        nn.init.normal_(self.committed.weight, std=0.02)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, n_actions)
        self.fresh: nn.Module | None = None
        if fresh_shape is not None:
            self.fresh = observation_encoder(fresh_shape, width, 8)

    def forward(self, h: Tensor, committed: Tensor, fresh: Tensor | None = None) -> Tensor:
        """(B, F), (B, n <= d_max) actions or -1, observations (B, ...) -> (B, A)."""
        n = committed.shape[1]
        if n > self.d_max:
            raise ValueError(
                f"the head knows at most d_max = {self.d_max} committed actions, but got {n}: "
                "set a larger policy.d_max"
            )
        if (fresh is None) != (self.fresh is None):
            wanted = "no fresh observation" if self.fresh is None else "a fresh observation"
            raise ValueError(f"the head was made for {wanted}, but fresh is {type(fresh).__name__}")
        nothing = self.d_max * self.n_actions
        place = torch.arange(n, device=committed.device) * self.n_actions + committed
        place = place.masked_fill(committed < 0, nothing)
        weight = self.committed.weight
        x = self.into(h) + F.embedding_bag(place, weight, mode="sum", padding_idx=nothing)
        if self.fresh is not None:
            x = x + self.fresh(fresh)
        return self.out(F.relu(self.hidden(F.relu(x))))
