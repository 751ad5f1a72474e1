"""Running log gates stay exact over a million tokens, and their reverse is a reverse sum."""

import math

import pytest
import torch

from fox.kernels.gates import log_gate_gradient, running_log_gates


@pytest.mark.parametrize("T", [2**16, 2**20])
@pytest.mark.parametrize("value", [-0.69314718, -1e-3, -90.0])
def test_differences_are_exact_after_many_gates(T: int, value: float) -> None:
    # The float32 value itself is what is summed, so the exact difference is a multiple of it.
    log_f = torch.full((1, T, 1), value)
    running = running_log_gates(log_f)[0, 0]
    exact = float(log_f[0, 0, 0])
    for distance in (1, 64, 1024):
        error = (running[distance:] - running[:-distance] - distance * exact).abs().max()
        assert error <= 1e-5 + 2.0**-22 * abs(distance * exact)


def test_a_million_resets_leave_neighbours_exact() -> None:
    log_f = torch.full((1, 2**20, 1), -math.inf)
    log_f[0, -1000:] = -0.125
    running = running_log_gates(log_f)[0, 0]
    assert running.isfinite().all()
    assert (running[-1] - running[-9] + 1.0).abs() <= 4e-6


def test_padding_counts_as_open_gates() -> None:
    log_f = torch.full((2, 5, 1), -1.0)
    running = running_log_gates(log_f, torch.tensor([0, 3]))
    assert running[:, 0].tolist() == [[-1, -2, -3, -4, -5], [0, 0, 0, -1, -2]]


def test_a_total_continues_the_sum() -> None:
    log_f = -torch.rand(2, 9, 3)
    whole = running_log_gates(log_f)
    late = running_log_gates(log_f[:, 4:], total=whole[..., 3])
    torch.testing.assert_close(late, whole[..., 4:], atol=1e-14, rtol=0)


def test_the_gradient_is_the_transpose_of_the_sum() -> None:
    log_f = -torch.rand(2, 7, 3, dtype=torch.float64)
    start = torch.tensor([0, 2])
    d_lambda = torch.randn(2, 3, 7, dtype=torch.float64)
    leaf = log_f.clone().requires_grad_()
    (want,) = torch.autograd.grad((running_log_gates(leaf, start) * d_lambda).sum(), leaf)
    got = log_gate_gradient(d_lambda, log_f, start)
    want[0, :1] = want[1, :3] = 0.0  # the first visible gate acts on no pair
    torch.testing.assert_close(got, want)


def test_the_gradient_of_a_reset_is_zero() -> None:
    log_f = torch.tensor([0.0, -1.0, -math.inf, -1e4, -9999.0])[None, :, None]
    gradient = log_gate_gradient(torch.ones(1, 1, 5, dtype=torch.float64), log_f)
    assert gradient.flatten().tolist() == [0, 4, 0, 0, 1]
