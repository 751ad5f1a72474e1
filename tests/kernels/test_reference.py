"""Identities of the maths, on the definition itself."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fox.kernels.reference import reference_attention


def draw(
    seed: int = 0, B: int = 2, T: int = 6, T_k: int | None = None, H: int = 2, D: int = 4
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    T_k = T if T_k is None else T_k
    q, k, v = (
        torch.randn(B, n, H, D, generator=generator, dtype=torch.float64) for n in (T, T_k, T_k)
    )
    log_f = F.logsigmoid(torch.randn(B, T_k, H, generator=generator, dtype=torch.float64))
    return [q, k, v, log_f]


def product_of_gates(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, scale: float) -> Tensor:
    """exp(scores) times the product of gates between key and row, normalised: no running sum."""
    B, T, H, _ = q.shape
    T_k = k.shape[1]
    f = log_f.exp()
    out = torch.zeros_like(q)
    for b in range(B):
        for h in range(H):
            for m in range(T):
                i = T_k - T + m
                weight = torch.stack(
                    [
                        (scale * q[b, m, h] @ k[b, j, h]).exp() * f[b, j + 1 : i + 1, h].prod()
                        for j in range(i + 1)
                    ]
                )
                out[b, m, h] = weight @ v[b, : i + 1, h] / weight.sum()
    return out


@pytest.mark.parametrize("T_k", [6, 9])
def test_reference_is_the_product_of_gates_times_exp_of_scores(T_k: int) -> None:
    q, k, v, log_f = draw(T_k=T_k)
    log_f[0, 3, 1] = -math.inf
    out, _ = reference_attention(q, k, v, log_f, 0.5)
    torch.testing.assert_close(out, product_of_gates(q, k, v, log_f, 0.5))


def test_gradients_are_those_of_finite_differences() -> None:
    inputs = [x.requires_grad_() for x in draw(T=4, T_k=5)]

    def both(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        return reference_attention(*inputs, 0.5)

    assert torch.autograd.gradcheck(both, inputs)


def test_gradients_with_resets_and_padding_are_those_of_finite_differences() -> None:
    q, k, v, log_f = draw(T=4, T_k=6)
    reset = torch.zeros_like(log_f, dtype=torch.bool)
    reset[0, 3] = reset[1, 5, 0] = True
    start = torch.tensor([0, 4])

    def visible(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor) -> Tensor:
        return reference_attention(q, k, v, log_f.masked_fill(reset, -math.inf), 0.5, start)[0]

    assert torch.autograd.gradcheck(visible, [x.requires_grad_() for x in (q, k, v, log_f)])


def test_an_empty_row_gives_zero_and_no_gradient() -> None:
    inputs = [x.requires_grad_() for x in draw(T=5)]
    out, lse = reference_attention(*inputs, 0.5, torch.tensor([5, 2]))
    assert (out[0] == 0).all()
    assert (out[1, :2] == 0).all()
    assert (lse[0] == -math.inf).all()
    assert lse[1, :, 2:].isfinite().all()
    for gradient in torch.autograd.grad(out.sum() + lse[1, :, 2:].sum(), inputs):
        assert gradient.isfinite().all()
        assert (gradient[0] == 0).all()


def test_open_gates_are_ordinary_causal_attention() -> None:
    q, k, v, log_f = draw()
    out, lse = reference_attention(q, k, v, torch.zeros_like(log_f), 0.5)
    heads = [x.transpose(1, 2) for x in (q, k, v)]
    want = F.scaled_dot_product_attention(*heads, is_causal=True, scale=0.5).transpose(1, 2)
    torch.testing.assert_close(out, want)
    scores = (0.5 * heads[0] @ heads[1].mT).masked_fill(
        torch.ones(6, 6, dtype=torch.bool).triu(1), -math.inf
    )
    torch.testing.assert_close(lse, scores.logsumexp(-1))
