"""The blocked backend under torch.compile, autocast, checkpointing and double backward."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fox.kernels import forgetting_attention
from fox.kernels.blocked import blocked_attention, blocked_attention_backward

Inputs = Callable[..., list[Tensor]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gates", ["mixed", "mixed resets"])
def test_the_ops_keep_the_contract_of_torch(
    random_inputs: Inputs, gates: str, dtype: torch.dtype
) -> None:
    inputs = [
        x.requires_grad_() for x in random_inputs(70, 90, H=4, H_kv=2, gates=gates, dtype=dtype)
    ]
    start = torch.tensor([0, 3])
    bound = torch.ones(2, 4, dtype=torch.float64)
    torch.library.opcheck(
        blocked_attention, (*inputs, 0.3, start, 16, None, None, -9.0, bound, None)
    )
    with torch.no_grad():
        out, lse = blocked_attention(*inputs, 0.3, None, 16)
        arguments = (out, lse, *inputs, out, lse, 0.3, None, 16, *[None] * 5)
        tests = ("test_schema", "test_faketensor")
        torch.library.opcheck(blocked_attention_backward, arguments, test_utils=tests)


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_is_eager_without_a_graph_break(
    random_inputs: Inputs, dynamic: bool, window: int | None
) -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, start: Tensor) -> Tensor:
        options = {"window_size": window, "log_pruning_tolerance": -20.0, "return_lse": True}
        out, lse = forgetting_attention(2 * q, k, v, log_f, seq_start=start, **options)
        return out.square().sum() + lse.clamp(min=-9.0).sum()

    compiled = torch.compile(attend, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for T in (40, 65):
        inputs = [x.requires_grad_() for x in random_inputs(T, gates="mixed resets")]
        start = torch.tensor([0, 5])
        want = torch.autograd.grad(attend(*inputs, start), inputs)
        got = torch.autograd.grad(compiled(*inputs, start), inputs)
        torch.testing.assert_close(got, want)


def test_autocast_narrows_q_k_v_and_never_the_gates(random_inputs: Inputs) -> None:
    inputs = [x.requires_grad_() for x in random_inputs(200, gates="mixed")]
    narrow = [x.detach().bfloat16().requires_grad_() for x in inputs[:3]]
    narrow.append(inputs[3].detach().requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        out = forgetting_attention(*inputs)
        gradients = torch.autograd.grad(out.float().square().sum(), inputs)
    want = forgetting_attention(*narrow)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, want)
    wanted = torch.autograd.grad(want.float().square().sum(), narrow)
    for one, other, x in zip(gradients, wanted, inputs, strict=True):
        assert one.dtype == x.dtype
        assert torch.equal(one, other.float())


def test_nothing_inside_is_autocast(random_inputs: Inputs) -> None:
    inputs = [x.requires_grad_() for x in random_inputs(70)]
    want, _ = blocked_attention(*inputs, 0.3, engine="matmul")
    wanted = torch.autograd.grad(want.square().sum(), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = blocked_attention(*inputs, 0.3, engine="matmul")
        gradients = torch.autograd.grad(out.square().sum(), inputs)
    assert torch.equal(out, want)
    for one, other in zip(gradients, wanted, strict=True):
        assert torch.equal(one, other)


def test_checkpointed_gradients_are_the_same(random_inputs: Inputs) -> None:
    inputs = [x.requires_grad_() for x in random_inputs(100)]
    want = torch.autograd.grad(forgetting_attention(*inputs).square().sum(), inputs)
    out = checkpoint(forgetting_attention, *inputs, use_reentrant=False)
    got = torch.autograd.grad(out.square().sum(), inputs)
    torch.testing.assert_close(got, want, atol=0, rtol=0)


def test_gradients_of_gradients_are_refused_by_name(random_inputs: Inputs) -> None:
    inputs = [x.requires_grad_() for x in random_inputs(9)]
    (dq,) = torch.autograd.grad(
        forgetting_attention(*inputs).square().sum(), inputs[:1], create_graph=True
    )
    with pytest.raises(NotImplementedError, match='backend "reference" has'):
        dq.sum().backward()


def test_meta_tensors_have_the_right_shapes(random_inputs: Inputs) -> None:
    inputs = [x.to("meta") for x in random_inputs(9, H=4, H_kv=2, dtype=torch.bfloat16)]
    out, lse = forgetting_attention(*inputs, return_lse=True)
    assert out.shape == (2, 9, 4, 16)
    assert out.dtype == torch.bfloat16
    assert lse.shape == (2, 4, 9)
