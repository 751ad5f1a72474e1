"""Inputs that the kernel tests share."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor


def draw(
    T: int,
    T_k: int | None = None,
    *,
    B: int = 2,
    H: int = 2,
    H_kv: int | None = None,
    D: int = 16,
    gates: str = "mixed",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> list[Tensor]:
    """q, k, v (standard deviation 0.5) and log_f."""
    generator = torch.Generator().manual_seed(seed)
    T_k = T if T_k is None else T_k
    H_kv = H if H_kv is None else H_kv

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    q, k, v = 0.5 * normal(B, T, H, D), 0.5 * normal(B, T_k, H_kv, D), normal(B, T_k, H_kv, D)
    log_f = {
        "mixed": lambda: F.logsigmoid(normal(B, T_k, H) + torch.linspace(0.0, 6.0, H)),
        "steep": lambda: F.logsigmoid(2 * normal(B, T_k, H) - 3.0),
        "shut": lambda: torch.full((B, T_k, H), -50.0),
        "open": lambda: torch.zeros(B, T_k, H),
    }[gates.removesuffix(" resets")]()
    if gates.endswith(" resets"):
        for b in range(B):
            for h in range(H):
                at = torch.randperm(T_k, generator=generator)[:4] if b else torch.arange(3, 5)
                log_f[b, at[at < T_k], h if b % 2 else slice(None)] = -math.inf
        log_f[0, 0], log_f[-1, -1] = -math.inf, -1e5
    return [
        q.to(dtype),
        k.to(dtype),
        v.to(dtype),
        log_f.to(torch.promote_types(dtype, torch.float32)),
    ]


@pytest.fixture
def random_inputs() -> Callable[..., list[Tensor]]:
    return draw
