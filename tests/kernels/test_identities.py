"""Identities of the maths, on both backends."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fox.kernels import forgetting_attention
from fox.kernels.blocked import blocked_attention
from fox.kernels.reference import reference_attention

Inputs = Callable[..., list[Tensor]]

pytestmark = pytest.mark.parametrize("backend", ["reference", "blocked"])
CLOSE = {"atol": 2e-5, "rtol": 1e-5}


def gradients(inputs: list[Tensor], backend: str, **options: object) -> list[Tensor]:
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = forgetting_attention(*inputs, backend=backend, **options)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    return [out.detach(), *torch.autograd.grad((out * weights.to(out.dtype)).sum(), inputs)]


def test_open_gates_are_ordinary_causal_attention(random_inputs: Inputs, backend: str) -> None:
    q, k, v, log_f = random_inputs(90, gates="open")
    heads = [x.transpose(1, 2) for x in (q, k, v)]
    want = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2)
    torch.testing.assert_close(forgetting_attention(q, k, v, log_f, backend=backend), want, **CLOSE)


def test_a_constant_gate_is_a_linear_bias(random_inputs: Inputs, backend: str) -> None:
    q, k, v, log_f = random_inputs(90)
    distance = torch.arange(90)[:, None] - torch.arange(90)
    bias = (-0.3 * distance).masked_fill(distance < 0, -math.inf)
    heads = [x.transpose(1, 2) for x in (q, k, v)]
    want = F.scaled_dot_product_attention(*heads, attn_mask=bias).transpose(1, 2)
    got = forgetting_attention(q, k, v, torch.full_like(log_f, -0.3), backend=backend)
    torch.testing.assert_close(got, want, **CLOSE)


def test_a_vector_added_to_all_keys_changes_nothing(random_inputs: Inputs, backend: str) -> None:
    q, k, v, log_f = random_inputs(90)
    one = forgetting_attention(q, k, v, log_f, backend=backend)
    other = forgetting_attention(q, k + torch.randn(16), v, log_f, backend=backend)
    torch.testing.assert_close(one, other, **CLOSE)


def test_the_first_visible_gate_has_no_effect(random_inputs: Inputs, backend: str) -> None:
    q, k, v, log_f = random_inputs(90)
    start = torch.tensor([0, 11])
    *_, d_log_f = gradients([q, k, v, log_f], backend, seq_start=start)
    assert d_log_f[0, 0].abs().max() < 1e-6
    assert d_log_f[1, :12].abs().max() < 1e-6
    assert (d_log_f[1, 12].abs() > 1e-4).all()
    changed = log_f.clone()
    changed[0, 0], changed[1, :12] = -3.0, -5.0
    one = forgetting_attention(q, k, v, log_f, seq_start=start, backend=backend)
    other = forgetting_attention(q, k, v, changed, seq_start=start, backend=backend)
    torch.testing.assert_close(one, other, **CLOSE)


def test_the_row_sums_of_the_score_gradient_vanish(random_inputs: Inputs, backend: str) -> None:
    # A gate at position 0 acts on no pair, so what its gradient sums to is rounding alone.
    q, k, v, log_f = random_inputs(90)
    q = torch.cat([q, torch.zeros(2, 90, 2, 1)], dim=-1).requires_grad_()
    k = torch.cat([k, torch.ones(2, 90, 2, 1)], dim=-1)
    v = torch.cat([v, torch.zeros(2, 90, 2, 1)], dim=-1)
    out = forgetting_attention(q, k, v, log_f, softmax_scale=1.0, backend=backend)
    (dq,) = torch.autograd.grad(out.square().sum(), q)
    assert dq[..., -1].abs().max() < 1e-5 * dq.abs().max()


def test_a_later_token_changes_no_earlier_row(random_inputs: Inputs, backend: str) -> None:
    q, k, v, log_f = random_inputs(150)
    before = forgetting_attention(q, k, v, log_f, backend=backend)
    for x in (q, k, v, log_f):
        x[:, 100] -= 1.0
    after = forgetting_attention(q, k, v, log_f, backend=backend)
    torch.testing.assert_close(before[:, :100], after[:, :100], atol=2e-6, rtol=0)
    assert (before[:, 100] != after[:, 100]).any(-1).all()


def test_a_closed_gate_hides_every_earlier_token(random_inputs: Inputs, backend: str) -> None:
    q, k, v, log_f = random_inputs(90)
    log_f[:, 33] = -math.inf
    inputs = [q, k, v, log_f]
    whole = gradients(inputs, backend)
    late = forgetting_attention(*(x[:, 33:] for x in inputs), backend=backend)
    torch.testing.assert_close(whole[0][:, 33:], late, **CLOSE)
    for x in inputs[1:3]:
        x[:, :33] = 100.0
    assert torch.equal(forgetting_attention(*inputs, backend=backend)[:, 33:], whole[0][:, 33:])
    assert (whole[4][:, 33] == 0).all()


def test_packed_by_resets_is_separate_calls(random_inputs: Inputs, backend: str) -> None:
    inputs = random_inputs(300, H=4)
    borders = [0, 1, 40, 41, 170, 300]
    inputs[3][:, borders[1:-1]] = -math.inf
    packed = gradients(inputs, backend)
    weights = torch.randn(packed[0].shape, generator=torch.Generator().manual_seed(2))
    for first, last in itertools.pairwise(borders):
        part = [x[:, first:last].detach().requires_grad_() for x in inputs]
        out = forgetting_attention(*part, backend=backend)
        alone = torch.autograd.grad((out * weights[:, first:last]).sum(), part)
        for name, one, other in zip("oqkvf", packed, (out, *alone), strict=True):
            torch.testing.assert_close(
                one[:, first:last], other, atol=4e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_left_padded_is_unpadded(random_inputs: Inputs, backend: str) -> None:
    inputs = random_inputs(80, B=1)
    want = gradients(inputs, backend)
    padded = [torch.cat([torch.full_like(x[:, :13], 7.0), x], dim=1) for x in inputs]
    padded[3][:, :13] = -1.0
    out = forgetting_attention(*padded, seq_start=torch.tensor([13]), backend=backend)
    torch.testing.assert_close(out[:, 13:], want[0], **CLOSE)
    assert (out[:, :13] == 0).all()


def test_permuting_batch_and_heads_permutes_results(random_inputs: Inputs, backend: str) -> None:
    inputs = random_inputs(100, B=3, H=4, gates="mixed resets")
    heads, rows = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])
    one = forgetting_attention(*inputs, backend=backend)[rows][:, :, heads]
    other = forgetting_attention(*(x[rows][:, :, heads] for x in inputs), backend=backend)
    torch.testing.assert_close(one, other, **CLOSE)


def test_grouped_heads_are_repeated_heads(random_inputs: Inputs, backend: str) -> None:
    q, k, v, log_f = random_inputs(70, H=4, H_kv=2)
    grouped = gradients([q, k, v, log_f], backend)
    wide = gradients([q, k.repeat_interleave(2, 2), v.repeat_interleave(2, 2), log_f], backend)
    torch.testing.assert_close(grouped[0], wide[0], **CLOSE)
    for n in (2, 3):
        torch.testing.assert_close(grouped[n], wide[n].unflatten(2, (2, 2)).sum(3), **CLOSE)


def test_gates_of_a_group_are_repeated_gates(random_inputs: Inputs, backend: str) -> None:
    q, k, v, log_f = random_inputs(70, H=4, H_kv=2)
    shared = gradients([q, k, v, log_f[..., :2]], backend)
    wide = gradients([q, k, v, log_f[..., :2].repeat_interleave(2, -1)], backend)
    torch.testing.assert_close(shared[0], wide[0], **CLOSE)
    torch.testing.assert_close(shared[4], wide[4].unflatten(2, (2, 2)).sum(3), atol=4e-5, rtol=1e-5)


def test_queries_at_the_end_are_the_last_rows(random_inputs: Inputs, backend: str) -> None:
    q, k, v, log_f = random_inputs(200, gates="mixed resets")
    whole = forgetting_attention(q, k, v, log_f, backend=backend)
    for T in (1, 2, 63, 150):
        late = forgetting_attention(q[:, -T:], k, v, log_f, backend=backend)
        torch.testing.assert_close(late, whole[:, -T:], **CLOSE)


def test_two_runs_are_bitwise_equal(random_inputs: Inputs, backend: str) -> None:
    inputs = random_inputs(300, H=4, gates="mixed resets")
    for one, other in zip(gradients(inputs, backend), gradients(inputs, backend), strict=True):
        assert torch.equal(one, other)


def test_the_last_gate_decides_at_a_large_running_sum(random_inputs: Inputs, backend: str) -> None:
    # The running sum reaches -1e6, where one float32 number per token rounds to 0.06.
    q, k, v, log_f = random_inputs(1024, B=1, H=1)
    log_f[:, :512], log_f[:, 512:] = -2000.0, -0.01
    got = gradients([q, k, v, log_f], backend)
    want = gradients([x.double() for x in (q, k, v, log_f)], "reference")
    for one, other, atol in zip(got, want, (1e-5, 1e-4, 1e-4, 1e-4, 5e-4), strict=True):
        torch.testing.assert_close(one.double(), other, atol=atol, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    T=st.integers(1, 90), more=st.integers(0, 40), seed=st.integers(0, 10**6),
    steepness=st.sampled_from([0.0, 0.01, 1.0, 100.0, 9e3, math.inf]),
    share=st.sampled_from([0.0, 0.05, 1.0]), start=st.integers(0, 130),
)  # fmt: skip
def test_any_gates_agree_with_the_definition(
    backend: str, T: int, more: int, seed: int, steepness: float, share: float, start: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    N = T + more
    q, k, v = (torch.randn(2, n, 2, 16, generator=generator) for n in (T, N, N))
    hit = torch.rand(2, N, 2, generator=generator) < share
    log_f = torch.where(hit, -torch.tensor(steepness), -0.05).requires_grad_()
    seq_start = torch.tensor([0, min(start, N)])
    attend = {"reference": reference_attention, "blocked": blocked_attention}[backend]
    out, lse = attend(q, k, v, log_f, 0.25, seq_start)
    want, want_lse = reference_attention(*(x.double() for x in (q, k, v, log_f)), 0.25, seq_start)
    torch.testing.assert_close(out.double(), want, **CLOSE)
    torch.testing.assert_close(lse.double(), want_lse, **CLOSE)
    (gradient,) = torch.autograd.grad(out.square().sum(), log_f, retain_graph=True)
    (wanted,) = torch.autograd.grad(want.square().sum(), log_f)
    torch.testing.assert_close(gradient, wanted, atol=1e-4, rtol=1e-4)
