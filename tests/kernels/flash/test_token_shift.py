"""The fused token shift = the PyTorch one in float64: the output, the state, each gradient."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fox.kernels.token_shift import flash_token_shift, flash_token_shift_backward, token_shift

# Largest error against float64, absolute and relative, by the dtype of the result.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}

Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that nobody has written holds NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def draw(
    device: torch.device,
    T: int,
    D: int = 16,
    *,
    B: int = 2,
    H: int = 2,
    dtype: torch.dtype = torch.float32,
    given: str = "state starts",
) -> Inputs:
    """y, alpha (float32), state, starts."""
    y = torch.randn(B, T, H, D).to(device, dtype)
    alpha = torch.rand(B, T, H).to(device)
    state = torch.randn(B, H, D).to(device, dtype) if "state" in given else None
    starts = torch.rand(B, T).to(device) < 0.3 if "starts" in given else None
    return y, alpha, state, starts


def results(inputs: Inputs, d_shifted: Tensor, backend: str) -> dict[str, Tensor]:
    """The outputs, and the gradients of a fixed functional of both."""
    *floats, starts = inputs
    leaves = [None if x is None else x.detach().requires_grad_() for x in floats]
    shifted, last = token_shift(*leaves, starts, backend=backend)
    loss = (shifted * d_shifted).sum() + (last * d_shifted[:, 0]).sum()
    gradients = torch.autograd.grad(loss, [x for x in leaves if x is not None])
    names = ("shifted", "last", "dy", "dalpha", "dstate")
    return dict(zip(names, (shifted.detach(), last.detach(), *gradients), strict=False))


def assert_is_blocked(inputs: Inputs) -> None:
    y, alpha, state, starts = inputs
    d_shifted = torch.randn(y.shape).to(y)
    wide = (y.double(), alpha.double(), None if state is None else state.double(), starts)
    want = results(wide, d_shifted.double(), "blocked")
    for name, x in results(inputs, d_shifted, "flash").items():
        t = TOLERANCE[x.dtype]
        torch.testing.assert_close(
            x.double(), want[name], atol=t, rtol=t, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("T", [1, 2, 15, 64, 65, 200])
@pytest.mark.parametrize("D", [1, 16, 60, 64, 128])
def test_flash_is_blocked(device: torch.device, D: int, T: int, dtype: torch.dtype) -> None:
    assert_is_blocked(draw(device, T, D, dtype=dtype))


@pytest.mark.parametrize("given", ["nothing", "state", "starts"])
@pytest.mark.parametrize("T", [1, 2, 300])
def test_state_and_starts_may_be_left_out(device: torch.device, T: int, given: str) -> None:
    assert_is_blocked(draw(device, T, given=given))


@pytest.mark.parametrize("H", [1, 3, 12, 16, 24])
def test_any_number_of_heads_works(device: torch.device, H: int) -> None:
    assert_is_blocked(draw(device, 70, 8, H=H))


@pytest.mark.parametrize("D", [256, 300])
def test_wide_heads_work(device: torch.device, D: int) -> None:
    assert_is_blocked(draw(device, 17, D, B=1, H=1))


@pytest.mark.parametrize("dtypes", ["float32 float16 float32", "float16 float16 float32"])
def test_y_alpha_and_state_may_differ_in_dtype(device: torch.device, dtypes: str) -> None:
    y, alpha, state, starts = draw(device, 33)
    y, alpha, state = (
        x.to(getattr(torch, name))
        for x, name in zip((y, alpha, state), dtypes.split(), strict=True)
    )
    assert_is_blocked((y, alpha, state, starts))


def test_alphas_of_0_and_1_give_the_row_and_its_predecessor_exactly(device: torch.device) -> None:
    y, alpha, state, _ = draw(device, 20)
    assert torch.equal(token_shift(y, alpha.fill_(0), state, backend="flash")[0], y)
    before = torch.cat([state[:, None], y[:, :-1]], dim=1)
    assert torch.equal(token_shift(y, alpha.fill_(1), state, backend="flash")[0], before)


def test_any_strides_are_read(device: torch.device) -> None:
    y, alpha, state, starts = draw(device, 40, 32)
    y = y.transpose(1, 2).contiguous().transpose(1, 2)
    alpha = alpha.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    starts = starts.T.contiguous().T
    assert_is_blocked((y, alpha, state.transpose(0, 1).contiguous().transpose(0, 1), starts))
    assert_is_blocked((y[:, ::2, :, ::2], alpha[:, ::2], state[..., ::2], starts[:, ::2]))
    assert_is_blocked((y[:1].expand(2, -1, -1, -1), alpha[:, :1].expand(-1, 40, -1), state, starts))


def test_offsets_pass_32_bits(device: torch.device, tmp_path: Path) -> None:
    strides = (2**30 + 16, 2**29 + 64, 2**29 + 512, 1)
    file, size = str(tmp_path / "sparse"), sum(strides) * 4
    sparse = torch.from_file(file, shared=True, size=size, dtype=torch.float16)
    sparse = sparse.as_strided((3, 5, 5, 16), strides)
    y, alpha, state, starts = draw(device, 5, B=3, H=5, dtype=torch.float16)
    sparse.copy_(y)
    want = results((y, alpha, state, starts), y, "flash")
    got = results((sparse.to(device), alpha, state, starts), y, "flash")
    assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize("cut", [1, 32, 63])
def test_chunks_joined_by_the_state_equal_one_pass(device: torch.device, cut: int) -> None:
    inputs = draw(device, 64)
    y, alpha, state, starts = inputs
    leaves = [x.requires_grad_() for x in (y, alpha, state)]
    first, between = token_shift(y[:, :cut], alpha[:, :cut], state, starts[:, :cut], "flash")
    second, last = token_shift(y[:, cut:], alpha[:, cut:], between, starts[:, cut:], "flash")
    whole, whole_last = token_shift(*inputs, backend="flash")
    joined = torch.cat([first, second], dim=1)
    assert torch.equal(joined, whole)
    assert torch.equal(last, whole_last)
    got = torch.autograd.grad(joined.square().sum() + last.sum(), leaves)
    want = torch.autograd.grad(whole.square().sum() + whole_last.sum(), leaves)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("B", "T", "H", "D"), [(2, 0, 2, 4), (0, 3, 2, 4), (2, 3, 2, 0)])
def test_empty_tensors_work(device: torch.device, B: int, T: int, H: int, D: int) -> None:
    y, alpha, state, starts = draw(device, T, D, B=B, H=H)
    leaves = [x.requires_grad_() for x in (y, alpha, state)]
    shifted, last = token_shift(y, alpha, state, starts, backend="flash")
    assert shifted.shape == y.shape
    assert last.shape == state.shape
    gradients = torch.autograd.grad(shifted.sum() + last.sum(), leaves, materialize_grads=True)
    for x, gradient in zip(leaves[:2], gradients, strict=False):
        assert torch.equal(gradient, torch.zeros_like(x))
    arguments = (torch.ones_like(shifted), *(x.detach() for x in leaves), starts)
    assert not any(x.any() for x in flash_token_shift_backward(*arguments))


def test_the_ops_keep_the_contract_of_torch(device: torch.device) -> None:
    for given in ("nothing", "state starts"):
        inputs = draw(device, 5, D=6, dtype=torch.float16, given=given)
        leaves = [x if x is None else x.requires_grad_() for x in inputs[:3]]
        torch.library.opcheck(flash_token_shift, (*leaves, inputs[3]))
        detached = [x if x is None else x.detach() for x in leaves]
        arguments = (torch.ones_like(inputs[0]), *detached, inputs[3])
        tests = ("test_schema", "test_faketensor")
        torch.library.opcheck(flash_token_shift_backward, arguments, test_utils=tests)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_is_eager_without_a_graph_break(device: torch.device, dynamic: bool) -> None:
    def shift(y: Tensor, alpha: Tensor, state: Tensor, starts: Tensor) -> Tensor:
        shifted, last = token_shift(2 * y, alpha, state, starts, backend="flash")
        return shifted.square().sum() + last.sum()

    compiled = torch.compile(shift, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for T in (5, 9):
        inputs = draw(device, T)
        leaves = [x.requires_grad_() for x in inputs[:3]]
        want = torch.autograd.grad(shift(*inputs), leaves)
        got = torch.autograd.grad(compiled(*inputs), leaves)
        torch.testing.assert_close(got, want)


def test_nothing_inside_is_autocast(device: torch.device) -> None:
    inputs = draw(device, 33)
    d_shifted = torch.randn(inputs[0].shape).to(device)
    want = results(inputs, d_shifted, "flash")
    with torch.autocast(device.type, torch.bfloat16):
        got = results(inputs, d_shifted, "flash")
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_gradients_of_gradients_are_refused_by_name(device: torch.device) -> None:
    y, alpha, *_ = draw(device, 5)
    shifted, _ = token_shift(y.requires_grad_(), alpha, backend="flash")
    (dy,) = torch.autograd.grad(shifted.square().sum(), y, create_graph=True)
    with pytest.raises(NotImplementedError, match='backend "blocked" has'):
        dy.sum().backward()


@pytest.mark.parametrize("wide", [0, 1, 2])
def test_float64_is_refused_with_the_backend_that_takes_it(device: torch.device, wide: int) -> None:
    inputs = list(draw(device, 5))
    inputs[wide] = inputs[wide].double()
    name = ("y", "alpha", "state")[wide]
    with pytest.raises(ValueError, match=rf'got {name} of torch\.float64; backend "blocked" takes'):
        token_shift(*inputs, backend="flash")


@pytest.mark.gpu
@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("given", ["nothing", "state starts"])
def test_flash_is_blocked_at_real_size(device: torch.device, given: str, D: int) -> None:
    inputs = draw(device, 4097, D, B=4, H=12, dtype=torch.bfloat16, given=given)
    assert_is_blocked(inputs)
    d_shifted = torch.randn_like(inputs[0])
    for name, x in results(inputs, d_shifted, "flash").items():
        assert torch.equal(x, results(inputs, d_shifted, "flash")[name]), f"{name} differs by run"


@pytest.mark.gpu
def test_outputs_pass_32_bit_offsets(device: torch.device) -> None:
    H = 2**21 + 8
    y = torch.randn(2, 4, 1, 128, device=device).bfloat16().expand(-1, -1, H, -1).contiguous()
    alpha = torch.rand(2, 4, 1, device=device).expand(-1, -1, H)
    shifted, _ = token_shift(y, alpha)
    want, _ = token_shift(y[:, :, :1], alpha[:, :, :1], backend="blocked")
    torch.testing.assert_close(shifted[:, :, -1:], want, atol=8e-3, rtol=8e-3)
