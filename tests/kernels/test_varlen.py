"""Sequences laid end to end equal separate calls."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fox.kernels import forgetting_attention, forgetting_attention_varlen

Inputs = Callable[..., list[Tensor]]
LENGTHS = {
    "empty, short and long": ([0, 1, 17, 64, 130, 0], [0, 1, 17, 64, 130, 0]),
    "more keys than queries": ([3, 40, 0, 1], [10, 40, 7, 300]),
    "more queries than keys": ([10, 5, 4], [3, 0, 4]),
}


@pytest.mark.parametrize("backend", ["reference", "blocked"])
@pytest.mark.parametrize("tolerance", [None, -25.0])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_varlen_is_separate_calls(
    random_inputs: Inputs,
    lengths: tuple[list[int], list[int]],
    tolerance: float | None,
    backend: str,
) -> None:
    rows, keys = ([0, *itertools.accumulate(x)] for x in lengths)
    inputs = random_inputs(rows[-1], keys[-1], B=1, H=4, H_kv=2, gates="mixed resets")
    inputs = [x[0].requires_grad_() for x in inputs]
    cu_q, cu_k = (torch.tensor(x, dtype=torch.int32) for x in (rows, keys))
    options = {"log_pruning_tolerance": tolerance, "return_lse": True, "backend": backend}
    out, lse = forgetting_attention_varlen(
        *inputs, cu_q, cu_k, max(lengths[0]), max(lengths[1]), **options
    )
    weights = torch.randn_like(out)
    got = torch.autograd.grad((out * weights).sum(), inputs)
    want = [torch.zeros_like(x) for x in inputs]
    for (q0, q1), (k0, k1) in zip(itertools.pairwise(rows), itertools.pairwise(keys), strict=True):
        blind = max(q1 - q0 - k1 + k0, 0)
        assert (out[q0 : q0 + blind] == 0).all()
        assert (lse[:, q0 : q0 + blind] == -math.inf).all()
        part = (slice(q0 + blind, q1), *[slice(k0, k1)] * 3)
        alone = [x[at][None].detach().requires_grad_() for x, at in zip(inputs, part, strict=True)]
        one, one_lse = forgetting_attention(*alone, backend="reference", return_lse=True)
        torch.testing.assert_close(out[part[0]], one[0], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(lse[:, part[0]], one_lse[0], atol=2e-5, rtol=1e-5)
        gradients = torch.autograd.grad((one[0] * weights[part[0]]).sum(), alone)
        for whole, at, gradient in zip(want, part, gradients, strict=True):
            whole[at] = gradient[0]
    for name, one, other in zip("qkvf", got, want, strict=True):
        assert (one[other == 0].abs() < 2e-6).all()
        torch.testing.assert_close(one, other, atol=4e-5, rtol=1e-5, msg=lambda m, n=name: n + m)
    for first, last in itertools.pairwise(keys):
        if last > first and backend == "blocked":
            assert (got[3][first] == 0).all()
