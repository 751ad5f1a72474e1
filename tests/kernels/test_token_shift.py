"""token_shift: the formula, its state, its document starts."""

import pytest
import torch

from fox.kernels.token_shift import token_shift


def random_inputs(T=9, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(2, T, 3, 4, generator=generator, dtype=dtype)
    return y, torch.rand(2, T, 3, generator=generator, dtype=dtype)


def test_each_row_is_mixed_with_the_one_before():
    y = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1)
    alpha = torch.tensor([0.5, 0.25, 1.0]).view(1, 3, 1)
    shifted, state = token_shift(y, alpha)
    torch.testing.assert_close(shifted.flatten(), torch.tensor([0.5, 1.75, 2.0]))
    assert state.item() == 4.0


@pytest.mark.parametrize("cut", [1, 4, 8])
def test_chunks_joined_by_the_state_equal_one_pass(cut):
    y, alpha = random_inputs()
    first, state = token_shift(y[:, :cut], alpha[:, :cut])
    second, state = token_shift(y[:, cut:], alpha[:, cut:], state)
    whole, last = token_shift(y, alpha)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    torch.testing.assert_close(state, last)


def test_a_document_start_sees_no_predecessor():
    y, alpha = random_inputs()
    starts = torch.zeros(2, 9, dtype=torch.bool)
    starts[:, [0, 5]] = True
    shifted, _ = token_shift(y, alpha, state=y[:, 0], starts=starts)
    parts = [token_shift(y[:, :5], alpha[:, :5])[0], token_shift(y[:, 5:], alpha[:, 5:])[0]]
    torch.testing.assert_close(shifted, torch.cat(parts, dim=1))


def test_no_tokens_leave_the_state_alone():
    y, alpha = random_inputs()
    shifted, state = token_shift(y[:, :0], alpha[:, :0], state=y[:, 3])
    assert shifted.shape == (2, 0, 3, 4)
    assert torch.equal(state, y[:, 3])


def test_gradients_match_finite_differences():
    y, alpha = (x.requires_grad_() for x in random_inputs(T=4))
    state = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    starts = torch.tensor([[False, False, True, False]] * 2)
    assert torch.autograd.gradcheck(lambda *x: token_shift(*x, starts), (y, alpha, state))


def test_bfloat16_rows_are_mixed_in_float32():
    y, alpha = random_inputs(dtype=torch.float32)
    shifted, state = token_shift(y.bfloat16(), alpha)
    exact, _ = token_shift(y.bfloat16().float(), alpha)
    assert shifted.dtype == state.dtype == torch.bfloat16
    assert torch.equal(shifted, exact.bfloat16())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": torch.zeros(2, 9, 4)}, r"y \(B, T, H, D\) and alpha \(B, T, H\), but got"),
        ({"state": torch.zeros(2, 4)}, r"expected state \(B, H, D\) = \(2, 3, 4\), but got"),
        (
            {"starts": torch.zeros(9) > 0},
            r"starts \(B, T\) = \(2, 9\) of torch.bool, but got \(9,\)",
        ),
        ({"starts": torch.zeros(2, 9)}, r"of torch.bool, but got \(2, 9\) of torch.float32"),
        ({"alpha": torch.zeros(2, 9, 3, device="meta")}, "alpha on cpu like y, but got meta"),
        ({"state": torch.zeros(2, 3, 4, device="meta")}, "state on cpu like y, but got meta"),
        ({"starts": torch.ones(2, 9, device="meta") > 0}, "starts on cpu like y, but got meta"),
        ({"backend": "triton"}, r"one of \('flash', 'blocked'\) or None, but got 'triton'"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, message):
    y, alpha = random_inputs()
    with pytest.raises(ValueError, match=message):
        token_shift(**({"y": y, "alpha": alpha} | arguments))


def test_flash_is_refused_on_a_cpu_with_the_backend_that_runs(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    y, alpha = random_inputs(dtype=torch.float32)
    with pytest.raises(ValueError, match='tensors on cpu; backend "blocked" runs on every device'):
        token_shift(y, alpha, backend="flash")
    default, _ = token_shift(y, alpha)
    assert torch.equal(default, token_shift(y, alpha, backend="blocked")[0])
