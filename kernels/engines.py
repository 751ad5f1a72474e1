"""Two ways to compute one tile, forward and backward, with the same inputs and results.

Legend: B batch, H heads, M rows of the tile, N keys of the tile, D head size. A causal tile has
M = N and hides keys after the row; any other tile is seen whole.
"""

import functools
import warnings

import torch
from torch import Tensor

Tensors3 = tuple[Tensor, Tensor, Tensor]


def aten_forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """PyTorch's CPU flash attention with a number per key: out (B, H, M, D), lse (B, H, M).

    Args:
        q: (B, H, M, D). k, v: (B, H, N, D). bias: (B, H, 1, N), added to the scores of its key.
    """
    op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    return op(q, k, v, 0.0, causal, attn_mask=bias, scale=scale)


def aten_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    bias: Tensor,
    causal: bool,
    scale: float,
) -> Tensors3:
    """dq, dk, dv of a tile, given out and lse of the whole rows."""
    op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    return op(d_out, q, k, v, out, lse, 0.0, causal, attn_mask=bias, scale=scale)


def matmul_forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """The same by matmuls: any device, any dtype, M x N scores at a time."""
    scores = _scores(q, k, bias, causal, scale)
    lse = scores.logsumexp(-1)
    return scores.sub_(lse.unsqueeze(-1)).exp_() @ v, lse


def matmul_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    bias: Tensor,
    causal: bool,
    scale: float,
) -> Tensors3:
    """The same by matmuls."""
    weights = _scores(q, k, bias, causal, scale).sub_(lse.unsqueeze(-1)).exp_()
    dv = weights.mT @ d_out
    d_scores = (d_out @ v.mT).sub_((d_out * out).sum(-1, keepdim=True)).mul_(weights).mul_(scale)
    return d_scores @ k, d_scores.mT @ q, dv


def _scores(q: Tensor, k: Tensor, bias: Tensor, causal: bool, scale: float) -> Tensor:
    scores = (q @ k.mT).mul_(scale).add_(bias)
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu_(1)
        scores.masked_fill_(later, float("-inf"))
    return scores


@functools.cache
def aten_works() -> bool:
    """Whether this PyTorch's CPU flash attention does what aten_forward and _backward say.

    Neither the ops nor a mask together with the causal flag are documented, so both are tried once
    per process on a causal and on a past tile.
    """
    generator = torch.Generator().manual_seed(0)
    q, k, v, d_out = torch.randn(4, 1, 2, 70, 8, generator=generator).unbind()
    bias = torch.randn(1, 2, 1, 70, generator=generator)
    for causal in (True, False):
        want_out, want_lse = matmul_forward(q, k, v, bias, causal, 0.3)
        rest = (want_out, want_lse, bias, causal, 0.3)
        want = (want_out, want_lse, *matmul_backward(d_out, q, k, v, *rest))
        try:
            got = (
                *aten_forward(q, k, v, bias, causal, 0.3),
                *aten_backward(d_out, q, k, v, *rest),
            )
        except (AttributeError, RuntimeError, TypeError) as error:
            return _warn(str(error).splitlines()[0])
        for one, other in zip(got, want, strict=True):
            if one.shape != other.shape or not torch.allclose(one, other, atol=1e-4):
                return _warn("its results are not those of plain matmuls")
    return True


def _warn(reason: str) -> bool:
    warnings.warn(
        f"torch {torch.__version__}: the CPU flash attention that fox.kernels builds on cannot be "
        f"used ({reason}). Plain matmuls do its work, about 3 times slower and as exactly; "
        "torch 2.13 is known to work.",
        stacklevel=2,
    )
    return False
