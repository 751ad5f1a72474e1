"""Blocked = reference, for the output, lse and every gradient."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fox.kernels import engines, forgetting_attention
from fox.kernels.blocked import blocked_attention
from fox.kernels.reference import reference_attention

Inputs = Callable[..., list[Tensor]]

# Largest error of out, lse and gradients against float64, absolute and relative.
TOLERANCE = {
    torch.float64: (1e-11, 1e-11),
    torch.float32: (4e-5, 2e-5),
    torch.bfloat16: (2e-2, 1.6e-2),
}
ENGINES = ("aten", "matmul")
GATES = ("mixed", "steep", "shut", "open", "mixed resets", "steep resets")
LENGTHS = ((1, 1), (2, 2), (15, 15), (63, 63), (64, 64), (65, 65), (127, 200), (1, 17), (200, 200))


def outputs_and_gradients(
    attend: Callable[..., tuple[Tensor, Tensor]], inputs: list[Tensor]
) -> list[Tensor]:
    """out, lse and the gradients of a fixed functional of both, NaN where something is not set."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out, lse = attend(*inputs)
    generator = torch.Generator().manual_seed(1)
    d_out = torch.randn(out.shape, generator=generator).to(out.dtype)
    d_lse = torch.randn(lse.shape, generator=generator).to(lse.dtype)
    visible = lse.detach() > -math.inf
    loss = (out * d_out).sum() + (lse.where(visible, 0.0) * d_lse).sum()
    return [out.detach(), lse.detach(), *torch.autograd.grad(loss, inputs)]


def assert_is_reference(
    inputs: list[Tensor], engine: str | None, start: Tensor | None = None, **pruning: object
) -> None:
    dtype = inputs[0].dtype
    wide = [x.double() for x in inputs]
    want = outputs_and_gradients(lambda *x: reference_attention(*x, 0.3, start), wide)

    def blocked(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = blocked_attention(
            q, k, v, log_f, 0.3, start, None, None, engine=engine, **pruning
        )
        return out.to(q.dtype), lse

    got = outputs_and_gradients(blocked, inputs)
    atol, rtol = TOLERANCE[dtype]
    for name, one, other in zip(("out", "lse", "dq", "dk", "dv", "dlog_f"), got, want, strict=True):
        assert one.dtype in (dtype, torch.promote_types(dtype, torch.float32))
        torch.testing.assert_close(
            one.double(), other, atol=atol, rtol=rtol, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize(("T", "T_k"), LENGTHS)
def test_blocked_is_reference(
    random_inputs: Inputs, T: int, T_k: int, gates: str, engine: str
) -> None:
    H_kv = 1 if T % 2 else 2
    assert_is_reference(random_inputs(T, T_k, H=2, H_kv=H_kv, gates=gates), engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("gates", ["mixed", "steep", "mixed resets"])
@pytest.mark.parametrize(("T", "T_k"), [(700, 700), (300, 1100)])
def test_blocked_is_reference_across_chunks(
    random_inputs: Inputs, T: int, T_k: int, gates: str, engine: str
) -> None:
    assert_is_reference(random_inputs(T, T_k, B=1, H=3, gates=gates), engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("D", [16, 32, 60, 64, 100])
def test_blocked_is_reference_for_head_sizes(random_inputs: Inputs, D: int, engine: str) -> None:
    assert_is_reference(random_inputs(63, H=4, H_kv=2, D=D), engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("gates", ["mixed", "mixed resets"])
@pytest.mark.parametrize("start", [[0, 0, 0], [0, 17, 64], [65, 64, 1]])
def test_blocked_is_reference_with_left_padding(
    random_inputs: Inputs, start: list[int], gates: str, engine: str
) -> None:
    inputs = random_inputs(50, 65, B=3, gates=gates)
    assert_is_reference(inputs, engine, torch.tensor(start))


@pytest.mark.parametrize(
    ("dtype", "engine"),
    [(torch.float64, "matmul"), (torch.bfloat16, "aten"), (torch.bfloat16, "matmul")],
)
@pytest.mark.parametrize("gates", GATES)
def test_blocked_is_reference_in_other_dtypes(
    random_inputs: Inputs, gates: str, dtype: torch.dtype, engine: str
) -> None:
    assert_is_reference(random_inputs(130, H=4, H_kv=2, gates=gates, dtype=dtype), engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("T_k", [700, 900])
def test_pruned_is_reference_within_its_tolerance(
    random_inputs: Inputs, T_k: int, engine: str
) -> None:
    inputs = random_inputs(700, T_k, B=1, H=4, gates="mixed")
    assert_is_reference(inputs, engine, log_pruning_tolerance=-20.0)


def test_blocked_takes_strided_and_expanded_inputs(random_inputs: Inputs) -> None:
    q, k, v, log_f = random_inputs(40, H=4)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k)]
    expanded = v[:, :, :1].expand(-1, -1, 4, -1)
    assert_is_reference([*strided, expanded, log_f[:1].expand(2, -1, -1)], "aten")


def test_blocked_writes_every_number_it_returns(random_inputs: Inputs) -> None:
    # Uninitialised memory is NaN-filled, so that a gap cannot pass for a zero.
    start = torch.tensor([0, 70])
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        for gates in ("mixed", "mixed resets"):
            for engine in ENGINES:
                assert_is_reference(random_inputs(70, 90, gates=gates), engine, start)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("subset", range(1, 16))
def test_any_subset_of_inputs_may_want_a_gradient(random_inputs: Inputs, subset: int) -> None:
    inputs = random_inputs(20, gates="mixed resets")
    everything = [x.clone().requires_grad_() for x in inputs]
    want = torch.autograd.grad(forgetting_attention(*everything).square().sum(), everything)
    some = [x.clone().requires_grad_(bool(subset >> n & 1)) for n, x in enumerate(inputs)]
    forgetting_attention(*some).square().sum().backward()
    for n, x in enumerate(some):
        assert (x.grad is not None) == bool(subset >> n & 1)
        if x.grad is not None:
            torch.testing.assert_close(x.grad, want[n], atol=0, rtol=0)


def test_empty_batches_and_empty_queries_work(random_inputs: Inputs) -> None:
    for B, T, T_k in ((0, 5, 5), (2, 0, 5), (2, 0, 0)):
        inputs = [x.requires_grad_() for x in random_inputs(T, T_k, B=B)]
        for backend in ("reference", "blocked"):
            out = forgetting_attention(*inputs, backend=backend)
            assert out.shape == (B, T, 2, 16)
            for x, gradient in zip(inputs, torch.autograd.grad(out.sum(), inputs), strict=True):
                assert gradient.shape == x.shape
                assert (gradient == 0).all()


def test_a_broken_cpu_attention_is_noticed_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = engines.aten_forward

    def wrong(*args: object) -> tuple[Tensor, Tensor]:
        out, lse = real(*args)
        return out + 0.01, lse

    engines.aten_works.cache_clear()
    monkeypatch.setattr(engines, "aten_forward", wrong)
    with pytest.warns(UserWarning, match=r"torch .*results are not those.*Plain matmuls"):
        assert not engines.aten_works()
    assert not engines.aten_works()
    monkeypatch.undo()
    engines.aten_works.cache_clear()
    assert engines.aten_works()


def test_a_missing_cpu_attention_is_noticed_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object) -> tuple[Tensor, Tensor]:
        raise AttributeError("no such op")

    engines.aten_works.cache_clear()
    monkeypatch.setattr(engines, "aten_forward", missing)
    with pytest.warns(UserWarning, match=r"no such op.*Plain matmuls"):
        assert not engines.aten_works()
    monkeypatch.undo()
    engines.aten_works.cache_clear()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [1e-15, 1e12])
def test_gradients_scale_with_the_output_gradient(
    random_inputs: Inputs, size: float, engine: str
) -> None:
    inputs = [x.requires_grad_() for x in random_inputs(200, gates="mixed")]
    softmax_scale = inputs[0].shape[-1] ** -0.5
    out, _ = blocked_attention(*inputs, softmax_scale, engine=engine)
    plain = torch.autograd.grad(out, inputs, torch.ones_like(out), retain_graph=True)
    scaled = torch.autograd.grad(out, inputs, torch.full_like(out, size))
    for expected, got in zip(plain, scaled, strict=True):
        assert (got / size - expected).norm() <= 1e-5 * expected.norm()
