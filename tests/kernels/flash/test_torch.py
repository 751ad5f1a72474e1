"""The Triton kernels under torch.compile, autocast, checkpointing, and with odd requests."""

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fox import FoxConfig
from fox.kernels import api, forgetting_attention, forgetting_attention_with_kvcache
from fox.kernels.flash.ops import flash_attention, flash_attention_backward, flash_decode
from fox.model import Block

Inputs = Callable[..., list[Tensor]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_ops_keep_the_contract_of_torch(
    random_inputs: Inputs, device: torch.device, dtype: torch.dtype
) -> None:
    inputs = [
        x.to(device).requires_grad_()
        for x in random_inputs(20, 30, H=4, H_kv=2, gates="mixed resets", dtype=dtype)
    ]
    start = torch.tensor([0, 3], device=device)
    bound = torch.ones(2, 4, dtype=torch.float64, device=device)
    inputs[3] = inputs[3].detach().to(torch.float64 if dtype == torch.float32 else dtype)
    inputs[3].requires_grad_()
    options = (0.3, 25, start, None, None, None, None, -9.0, bound)
    torch.library.opcheck(flash_attention, (*inputs, *options))
    with torch.no_grad():
        results = flash_attention(*inputs, 0.3)
        arguments = (*results[:2], *inputs, *results, 0.3, *(None,) * 6)
        tests = ("test_schema", "test_faketensor")
        torch.library.opcheck(flash_attention_backward, arguments, test_utils=tests)


def test_the_decode_op_keeps_the_contract_of_torch(
    random_inputs: Inputs, device: torch.device
) -> None:
    q, k, v, log_f = (x.to(device) for x in random_inputs(3, H=4, H_kv=2))
    caches = [torch.zeros(2, 20, 2, 16, device=device) for _ in range(2)]
    caches.append(torch.zeros(2, 20, 4, device=device, dtype=torch.float64))
    filled = torch.tensor([0, 9], device=device)
    tests = ("test_schema", "test_faketensor")
    for ragged in (filled, None):
        arguments = (q, *caches, k, v, log_f, ragged, 5, 0.3)
        torch.library.opcheck(flash_decode, arguments, test_utils=tests)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_is_eager_without_a_graph_break(
    random_inputs: Inputs, device: torch.device, dynamic: bool
) -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, start: Tensor) -> Tensor:
        out, lse = forgetting_attention(
            2 * q, k, v, log_f, seq_start=start, log_pruning_tolerance=-20.0,
            return_lse=True, backend="flash",
        )  # fmt: skip
        return out.square().sum() + lse.clamp(min=-9.0).sum()

    compiled = torch.compile(attend, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for T in (20, 33):
        inputs = [x.to(device).requires_grad_() for x in random_inputs(T, gates="mixed resets")]
        start = torch.tensor([0, 5], device=device)
        want = torch.autograd.grad(attend(*inputs, start), inputs)
        got = torch.autograd.grad(compiled(*inputs, start), inputs)
        torch.testing.assert_close(got, want)


@pytest.fixture
def block(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> Block:
    """A small FoX (Pro) block on the flash backend."""
    monkeypatch.setattr(api, "checked_backend", lambda *_: "flash")
    return Block(FoxConfig.preset("fox-pro-125m", hidden_size=32, num_heads=2)).to(device)


def test_a_compiled_fox_block_has_no_graph_break(block: Block, device: torch.device) -> None:
    x = torch.randn(2, 20, 32, device=device, requires_grad=True)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    want = torch.autograd.grad(block(x).square().sum(), [x, *block.parameters()])
    got = torch.autograd.grad(compiled(x).square().sum(), [x, *block.parameters()])
    torch.testing.assert_close(got, want)


def test_an_exported_fox_block_holds_the_op(block: Block, device: torch.device) -> None:
    x = torch.randn(2, 20, 32, device=device)
    length = torch.export.Dim("length", min=3, max=64)
    exported = torch.export.export(block, (x,), dynamic_shapes=({1: length},))
    assert "fox.flash_attention" in str(exported.graph)
    x = torch.randn(2, 33, 32, device=device)
    torch.testing.assert_close(exported.module()(x), block(x))


def test_autocast_narrows_q_k_v_and_never_the_gates(
    random_inputs: Inputs, device: torch.device
) -> None:
    inputs = [x.to(device).requires_grad_() for x in random_inputs(40)]
    narrow = [x.detach().half().requires_grad_() for x in inputs[:3]]
    narrow.append(inputs[3].detach().requires_grad_())
    with torch.autocast(device.type, torch.float16):
        out = forgetting_attention(*inputs, backend="flash")
        gradients = torch.autograd.grad(out.float().square().sum(), inputs)
    want = forgetting_attention(*narrow, backend="flash")
    assert out.dtype == torch.float16
    assert torch.equal(out, want)
    wanted = torch.autograd.grad(want.float().square().sum(), narrow)
    for one, other, x in zip(gradients, wanted, inputs, strict=True):
        assert one.dtype == x.dtype
        assert torch.equal(one, other.float())


def test_checkpointed_gradients_are_the_same(random_inputs: Inputs, device: torch.device) -> None:
    inputs = [x.to(device).requires_grad_() for x in random_inputs(40)]

    def attend(*inputs: Tensor) -> Tensor:
        return forgetting_attention(*inputs, backend="flash")

    want = torch.autograd.grad(attend(*inputs).square().sum(), inputs)
    got = torch.autograd.grad(
        checkpoint(attend, *inputs, use_reentrant=False).square().sum(), inputs
    )
    torch.testing.assert_close(got, want, atol=0, rtol=0)


def test_gradients_of_gradients_are_refused_by_name(
    random_inputs: Inputs, device: torch.device
) -> None:
    inputs = [x.to(device).requires_grad_() for x in random_inputs(9)]
    out = forgetting_attention(*inputs, backend="flash")
    (dq,) = torch.autograd.grad(out.square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(NotImplementedError, match=r'"flash"; backend "reference" has'):
        dq.sum().backward()


def test_what_flash_does_not_compute_is_refused_with_who_does(
    random_inputs: Inputs, device: torch.device
) -> None:
    double = [x.to(device) for x in random_inputs(5, dtype=torch.float64)]
    with pytest.raises(ValueError, match=r'got float64; backend "blocked" computes in float64'):
        forgetting_attention(*double, backend="flash")
    q, k, v, _ = (x.to(device) for x in random_inputs(5))
    caches = [k.double(), v.double(), torch.zeros(2, 5, 2, device=device).double()]
    with pytest.raises(ValueError, match=r'caches of .* got float64; backend "blocked" reads any'):
        forgetting_attention_with_kvcache(q, *caches, backend="flash")
    wide = [x.to(device) for x in random_inputs(5, D=257)]
    with pytest.raises(ValueError, match=r'up to 256, but got D = 257; backend "blocked" takes'):
        forgetting_attention(*wide, backend="flash")


def test_the_default_dtype_changes_nothing(random_inputs: Inputs, device: torch.device) -> None:
    inputs = [x.to(device).requires_grad_() for x in random_inputs(40)]

    def run() -> list[Tensor]:
        out, lse = forgetting_attention(*inputs, return_lse=True, backend="flash")
        return [out, lse, *torch.autograd.grad(out.square().sum(), inputs)]

    want = run()
    torch.set_default_dtype(torch.float16)
    try:
        got = run()
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)


def test_sequences_without_keys_see_nothing(device: torch.device) -> None:
    q = torch.randn(5, 2, 16, device=device, requires_grad=True)
    k = torch.zeros(0, 2, 16, device=device, requires_grad=True)
    log_f = torch.zeros(0, 2, device=device, requires_grad=True)
    cu = [torch.tensor(x, dtype=torch.int32, device=device) for x in ([0, 5], [0, 0])]
    out, lse = api.forgetting_attention_varlen(
        q, k, k, log_f, *cu, 5, 0, return_lse=True, log_pruning_tolerance=-9.0, backend="flash"
    )
    out.sum().backward()
    assert (out == 0).all()
    assert (lse == -torch.inf).all()
    assert (q.grad == 0).all()


@pytest.mark.parametrize("gates", ["mixed", "steep resets"])
@pytest.mark.parametrize("window", [None, 30])
def test_decoding_by_chunks_is_the_full_forward(
    random_inputs: Inputs, device: torch.device, gates: str, window: int | None
) -> None:
    q, k, v, log_f = (x.to(device) for x in random_inputs(110, H=4, H_kv=2, gates=gates))
    start = torch.tensor([[0, 9], [7, 9]], device=device)[:, 0]  # with a stride
    options = {"window_size": window, "seq_start": start, "backend": "flash"}
    want = forgetting_attention(q, k, v, log_f, **options)
    cache = [torch.full((2, 120, 2, 16), torch.nan, device=device) for _ in range(2)]
    cache.append(torch.full((2, 120, 4), torch.nan, device=device, dtype=torch.float64))
    borders = [0, 90, 91, 92, 109, 110]  # the first chunk is a prefill by the forward kernel
    for first, last in itertools.pairwise(borders):
        new = [x[:, first:last] for x in (k, v, log_f)]
        filled = first if first % 2 else torch.tensor([first, first], device=device)
        got = forgetting_attention_with_kvcache(
            q[:, first:last], *cache, *new, filled, log_pruning_tolerance=-25.0, **options
        )
        torch.testing.assert_close(got, want[:, first:last], atol=2e-5, rtol=1e-5)


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_shape_is_that_of_the_definition(
    random_inputs: Inputs, device: torch.device, data: st.DataObject
) -> None:
    T_k = data.draw(st.integers(1, 70), label="T_k")
    T = data.draw(st.integers(1, T_k), label="T")
    H_kv = data.draw(st.sampled_from([1, 2]), label="H_kv")
    H = H_kv * data.draw(st.sampled_from([1, 2, 3]), label="group")
    D = data.draw(st.integers(1, 40), label="D")
    gates = data.draw(st.sampled_from(["mixed", "steep resets", "shut", "open resets"]))
    start = data.draw(st.none() | st.integers(0, T_k), label="seq_start")
    window = data.draw(st.none() | st.integers(1, 80), label="window_size")
    tolerance = data.draw(st.none() | st.floats(-40, -18), label="tolerance")
    inputs = random_inputs(T, T_k, B=1, H=H, H_kv=H_kv, D=D, gates=gates, seed=T * T_k)
    inputs = [x.to(device).requires_grad_() for x in inputs]
    options = {"window_size": window, "softmax_scale": data.draw(st.floats(0.05, 1.0))}
    if start is not None:
        options["seq_start"] = torch.tensor([start], device=device)
    got = forgetting_attention(*inputs, log_pruning_tolerance=tolerance, backend="flash", **options)
    want = forgetting_attention(*inputs, backend="reference", **options)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    weights = torch.randn(got.shape, device=device)
    pairs = [torch.autograd.grad((out * weights).sum(), inputs) for out in (got, want)]
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
