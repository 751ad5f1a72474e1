"""The Triton forward and backward against the definition in float64."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fox.kernels import forgetting_attention, forgetting_attention_varlen

Inputs = Callable[..., list[Tensor]]

GATES = ["mixed", "mixed resets", "steep", "steep resets", "shut", "open"]
LENGTHS = [1, 2, 15, 63, 64, 65, 127, 200]
HEAD_DIMS = [16, 32, 60, 64, 100, 128]
GROUPS = [1, 2, 4]
# Largest errors allowed, relative to the root mean square of what is expected, and on top of it.
# The gradient of a gate sums a rectangle of scores: it gets SUMMED times as much.
RELATIVE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
ABSOLUTE = {torch.float32: 2e-6, torch.float16: 2e-5, torch.bfloat16: 2e-4}
SUMMED = 10


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a kernel forgot to write shows as NaN."""

    def poison(create: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def created(*args: object, **kwargs: object) -> Tensor:
            x = create(*args, **kwargs)
            return x.fill_(math.nan) if x.is_floating_point() else x

        return created

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))


def gradients(
    attend: Callable[..., tuple[Tensor, Tensor]], inputs: list[Tensor], *, with_lse: bool = True
) -> list[Tensor]:
    """out, lse and the gradients of fixed weighted sums of both."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out, lse = attend(*inputs)
    generator = torch.Generator().manual_seed(1)
    d_out = torch.randn(out.shape, generator=generator).to(out.device, inputs[0].dtype)
    d_lse = torch.randn(lse.shape, generator=generator).to(lse.device, lse.dtype)
    loss = (out * d_out.to(out.dtype)).sum()
    if with_lse:
        loss = loss + torch.where(lse.isfinite(), lse, 0.0).mul(d_lse).sum()
    return [out, lse, *torch.autograd.grad(loss, inputs)]


def check(
    got: list[Tensor], want: list[Tensor], dtype: torch.dtype, names: str = "out lse q k v log_f"
) -> None:
    for name, x, exact in zip(names.split(), got, want, strict=True):
        assert x.shape == exact.shape, name
        x, exact = x.double(), exact.double()
        assert torch.equal(x == -math.inf, exact == -math.inf), name
        finite = exact.isfinite()
        x, exact = x[finite], exact[finite]
        assert x.isfinite().all(), name
        if not x.numel():
            continue
        error, size = (x - exact).square().mean().sqrt().item(), exact.square().mean().sqrt().item()
        worst, largest = (x - exact).abs().max().item(), exact.abs().max().item()
        times = SUMMED if name == "log_f" else 1
        relative, absolute = times * RELATIVE[dtype], times * ABSOLUTE[dtype]
        assert error <= relative * size + absolute, (name, error, size)
        assert worst <= 10 * (relative * largest + absolute), (name, worst, largest)


def compare(inputs: list[Tensor], device: torch.device, **options: object) -> None:
    """flash on the inputs against the reference on the same numbers in float64."""
    dtype = inputs[0].dtype
    inputs = [x.to(device) for x in inputs]
    options = {n: x.to(device) if isinstance(x, Tensor) else x for n, x in options.items()}
    exact = {n: x for n, x in options.items() if n not in ("log_pruning_tolerance", "logit_bound")}

    def flash(*x: Tensor) -> tuple[Tensor, Tensor]:
        return forgetting_attention(*x, return_lse=True, backend="flash", **options)

    def reference(*x: Tensor) -> tuple[Tensor, Tensor]:
        return forgetting_attention(*x, return_lse=True, backend="reference", **exact)

    check(gradients(flash, inputs), gradients(reference, [x.double() for x in inputs]), dtype)


def case(i: int, j: int) -> object:
    """Every length with every kind of gate, and with each the other options in turn."""
    group = GROUPS[(i + 2 * j) % 3]
    sizes = {"D": HEAD_DIMS[(i + j) % 6], "H": max(2, group), "H_kv": max(2, group) // group}
    options = ["plain", "padded", "windowed", "pruned"][(i + j // 2) % 4]
    dtype = torch.float16 if (i + j) % 5 == 4 else torch.float32
    name = f"{LENGTHS[i]}-{GATES[j]}-{sizes['D']}-{group}-{options}-{str(dtype)[6:]}"
    return pytest.param(LENGTHS[i], GATES[j], sizes, options, dtype, id=name)


@pytest.mark.parametrize(
    ("T", "gates", "sizes", "options", "dtype"), [case(i, j) for i in range(8) for j in range(6)]
)
def test_output_and_gradients_are_those_of_the_definition(
    random_inputs: Inputs,
    device: torch.device,
    T: int,
    gates: str,
    sizes: dict[str, int],
    options: str,
    dtype: torch.dtype,
) -> None:
    B = 2 if options == "padded" else 1
    inputs = random_inputs(T, B=B, gates=gates, dtype=dtype, **sizes)
    extra: dict[str, object] = {
        "plain": {},
        "padded": {"seq_start": torch.tensor([T // 3, T])},  # the second row sees nothing
        "windowed": {"window_size": max(1, T // 4)},
        "pruned": {"log_pruning_tolerance": -20.0 if dtype == torch.float32 else -12.0},
    }[options]
    compare(inputs, device, **extra)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("T", "T_k", "options"),
    [
        (1, 15, {}),
        (1, 130, {"window_size": 40}),
        (17, 64, {"seq_start": torch.tensor([0, 60])}),
        (31, 64, {"log_pruning_tolerance": -15.0}),
        (50, 90, {"window_size": 33, "log_pruning_tolerance": -15.0}),
        (129, 257, {"seq_start": torch.tensor([130, 3])}),
    ],
    ids=str,
)
def test_rows_align_to_the_end_of_the_keys(
    random_inputs: Inputs,
    device: torch.device,
    T: int,
    T_k: int,
    options: dict[str, object],
    dtype: torch.dtype,
) -> None:
    compare(random_inputs(T, T_k, gates="mixed resets", dtype=dtype), device, **options)


@pytest.mark.parametrize("shape", [(64, 64), (50, 90), (64, 128), (100, 100)], ids=str)
def test_half_precision_is_as_exact_as_the_official_kernel(
    device: torch.device, shape: tuple[int, int]
) -> None:
    # The official kernel's largest errors in the interpreter: fp16, D = 16, standard deviation
    # 0.5 and gate logits uniform in [0, 5]. A largest error varies by half: it is a mean of three.
    limits = {"out": 5e-4, "lse": 1e-3, "q": 5e-4, "k": 7e-4, "v": 2e-3, "log_f": 1e-3}
    worst = torch.zeros(len(limits))
    T, T_k = shape

    def attend(backend: str) -> Callable[..., tuple[Tensor, Tensor]]:
        return lambda *x: forgetting_attention(
            *x, softmax_scale=0.5, return_lse=True, backend=backend
        )

    for _ in range(3):
        q, k, v = (0.5 * torch.randn(1, t, 2, 16).half() for t in (T, T_k, T_k))
        inputs = [x.to(device) for x in (q, k, v, F.logsigmoid(5 * torch.rand(1, T_k, 2)))]
        got = gradients(attend("flash"), inputs, with_lse=False)
        want = gradients(attend("reference"), [x.double() for x in inputs], with_lse=False)
        pairs = zip(got, want, strict=True)
        worst += torch.stack([(x - y).detach().abs().max().cpu() for x, y in pairs]) / 3
    for name, error in zip(limits, worst.tolist(), strict=True):
        assert error <= limits[name], (name, error)


@pytest.mark.parametrize("D", [1, 7, 48, 96, 200, 256])
def test_any_head_size_is_padded_inside(
    random_inputs: Inputs, device: torch.device, D: int
) -> None:
    compare(random_inputs(40, B=1, D=D), device)


BORDERS = [
    ([0, 15], [0, 15]),
    ([0, 1, 1, 18, 82], [0, 1, 1, 18, 82]),  # lengths 1, 0, 17, 64
    ([0, 0, 30, 60, 130, 130], [0, 20, 50, 150, 190, 200]),  # fewer keys than rows in the fourth
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("options", [{}, {"log_pruning_tolerance": -15.0, "window_size": 24}])
@pytest.mark.parametrize("borders", BORDERS, ids=str)
def test_sequences_laid_end_to_end_are_each_on_their_own(
    random_inputs: Inputs,
    device: torch.device,
    borders: tuple[list[int], list[int]],
    options: dict[str, object],
    dtype: torch.dtype,
) -> None:
    cu = [torch.tensor(x, dtype=torch.int32, device=device) for x in borders]
    longest = [int(x.diff().max()) for x in cu]
    q, k, v, log_f = random_inputs(200, B=1, H=4, H_kv=2, gates="mixed resets", dtype=dtype)
    ends = [cu[0][-1], *[cu[1][-1]] * 3]
    inputs = [x[0, :end].to(device) for x, end in zip((q, k, v, log_f), ends, strict=True)]
    exact = {n: x for n, x in options.items() if n == "window_size"}

    def flash(*x: Tensor) -> tuple[Tensor, Tensor]:
        return forgetting_attention_varlen(
            *x, *cu, *longest, return_lse=True, backend="flash", **options
        )

    def reference(*x: Tensor) -> tuple[Tensor, Tensor]:
        return forgetting_attention_varlen(
            *x, *cu, *longest, return_lse=True, backend="reference", **exact
        )

    check(gradients(flash, inputs), gradients(reference, [x.double() for x in inputs]), dtype)


def test_no_gradient_of_a_gate_crosses_a_border(
    random_inputs: Inputs, device: torch.device
) -> None:
    cu = torch.tensor([0, 40, 100], dtype=torch.int32, device=device)
    q, k, v, log_f = (x[0].to(device) for x in random_inputs(100, B=1))
    log_f.requires_grad_()
    out = forgetting_attention_varlen(q, k, v, log_f, cu, cu, 60, 60, backend="flash")
    (first,) = torch.autograd.grad(out[40:].square().sum(), log_f)
    assert (first[:40].abs() < 1e-12).all()


def test_strided_and_expanded_inputs_are_read_where_they_are(
    random_inputs: Inputs, device: torch.device
) -> None:
    q, k, v, log_f = (x.to(device) for x in random_inputs(70, H=4, H_kv=2))
    fused = torch.cat([q.flatten(2), k.flatten(2), v.flatten(2)], dim=-1)
    parts = fused.split([64, 32, 32], dim=-1)
    strided = [x.unflatten(-1, (-1, 16)) for x in parts]
    strided.append(log_f.transpose(1, 2).contiguous().transpose(1, 2))
    want = forgetting_attention(q, k, v, log_f, backend="flash")
    assert torch.equal(forgetting_attention(*strided, backend="flash"), want)
    one = [x[:1].expand(3, -1, -1, -1) for x in (q, k, v)] + [log_f[:1].expand(3, -1, -1)]
    got = forgetting_attention(*one, backend="flash")
    assert torch.equal(got, want[:1].expand_as(got))
    every_other = torch.stack([q, q], dim=-1)[..., 0]
    got = forgetting_attention(every_other, k, v, log_f, backend="flash")
    assert torch.equal(got, want)


def test_gates_shared_by_a_group_have_the_gradient_of_the_group(
    random_inputs: Inputs, device: torch.device
) -> None:
    q, k, v, log_f = random_inputs(40, H=4, H_kv=2)
    compare([q, k, v, log_f[..., :2].contiguous()], device)


@pytest.mark.parametrize("chosen", range(1, 15))
def test_any_part_of_the_inputs_may_need_a_gradient(
    random_inputs: Inputs, device: torch.device, chosen: int
) -> None:
    inputs = [x.to(device) for x in random_inputs(20, B=1)]
    everything = [x.clone().requires_grad_() for x in inputs]
    want = torch.autograd.grad(
        forgetting_attention(*everything, backend="flash").square().sum(), everything
    )
    some = [x.clone().requires_grad_() if chosen >> i & 1 else x for i, x in enumerate(inputs)]
    forgetting_attention(*some, backend="flash").square().sum().backward()
    for x, gradient in zip(some, want, strict=True):
        if x.requires_grad:
            assert torch.equal(x.grad, gradient)


def test_lse_alone_has_gradients(random_inputs: Inputs, device: torch.device) -> None:
    inputs = [x.to(device).requires_grad_() for x in random_inputs(40)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    for backend, x in (("flash", inputs), ("reference", exact)):
        lse = forgetting_attention(*x, return_lse=True, backend=backend)[1]
        lse.square().sum().backward()
    for x, y in zip(inputs, exact, strict=True):
        wanted = torch.zeros_like(y) if y.grad is None else y.grad
        torch.testing.assert_close(x.grad.double(), wanted, atol=2e-5, rtol=1e-5)


def test_two_runs_are_bitwise_equal(random_inputs: Inputs, device: torch.device) -> None:
    inputs = [x.to(device) for x in random_inputs(70, B=1, H=2, H_kv=1)]

    def flash(*x: Tensor) -> tuple[Tensor, Tensor]:
        return forgetting_attention(*x, return_lse=True, backend="flash")

    for one, other in zip(gradients(flash, inputs), gradients(flash, inputs), strict=True):
        assert torch.equal(one, other)


def test_a_later_token_changes_no_earlier_row(random_inputs: Inputs, device: torch.device) -> None:
    inputs = [x.to(device) for x in random_inputs(100)]
    before = forgetting_attention(*inputs, backend="flash")
    for x in inputs[:3]:
        x[:, 70] += 1.0
    inputs[3][:, 70] -= 3.0
    after = forgetting_attention(*inputs, backend="flash")
    assert torch.equal(before[:, :70], after[:, :70])
    assert (before[:, 70] != after[:, 70]).any(-1).all()


@pytest.mark.parametrize("T", [0, 5])
def test_nothing_to_do_is_done(device: torch.device, T: int) -> None:
    B = 0 if T else 2
    shapes = [(B, T, 4, 16), (B, 5, 2, 16), (B, 5, 2, 16), (B, 5, 4)]
    inputs = [torch.zeros(shape, device=device, requires_grad=True) for shape in shapes]
    out, lse = forgetting_attention(*inputs, return_lse=True, backend="flash")
    assert out.shape == (B, T, 4, 16)
    assert lse.shape == (B, 4, T)
    (out.sum() + lse.sum()).backward()
    for x in inputs:
        assert torch.equal(x.grad, torch.zeros_like(x))


def test_steep_gates_early_leave_later_ones_exact(device: torch.device) -> None:
    # A float32 running sum would stand at -130,000 in the second half: its last digit is 0.008.
    q, k, v = (torch.randn(1, 130, 1, 16) for _ in range(3))
    log_f = torch.full((1, 130, 1), -2000.0)
    log_f[:, 65:] = -0.01
    compare([q, k, v, log_f], device)


def test_one_steep_gate_leaves_its_neighbours_exact(device: torch.device) -> None:
    q, k, v = (torch.randn(1, 100, 1, 16) for _ in range(3))
    log_f = torch.full((1, 100, 1), -0.01)
    log_f[:, 40] = -5000.0
    compare([q, k, v, log_f], device)


REAL = [
    (4096, None, {}),
    (4000, None, {"log_pruning_tolerance": -12.0}),
    (1023, 4096, {"log_pruning_tolerance": -12.0, "window_size": 1000}),
    (2048, None, {"seq_start": torch.tensor([7, 2048])}),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("D", [32, 64, 96, 128, 256])
@pytest.mark.parametrize(("T", "T_k", "options"), REAL, ids=str)
def test_real_sizes_are_those_of_the_definition(
    random_inputs: Inputs,
    device: torch.device,
    T: int,
    T_k: int | None,
    options: dict[str, object],
    D: int,
    dtype: torch.dtype,
) -> None:
    inputs = random_inputs(T, T_k, H=4, H_kv=2, D=D, gates="mixed resets", dtype=dtype)
    compare(inputs, device, **options)


@pytest.mark.gpu
def test_64k_tokens_are_those_of_the_blocked_backend_in_float64(device: torch.device) -> None:
    q, k, v = (torch.randn(1, 65536, 2, 64, device=device).bfloat16() for _ in range(3))
    log_f = F.logsigmoid(torch.randn(1, 65536, 2, device=device) + 4.0)
    got = forgetting_attention(q, k, v, log_f, backend="flash")
    inputs = [x.double() for x in (q, k, v, log_f)]
    want = forgetting_attention(*inputs, backend="blocked")
    check([got], [want], torch.bfloat16, "out")


@pytest.mark.gpu
def test_tensors_of_more_than_two_to_the_31_elements(device: torch.device) -> None:
    # 2^31 + elements: 1 x 270,000 x 64 x 128. Pruned, as only the last rows are looked at.
    T, H, D = 270_000, 64, 128
    q, k, v = (torch.randn(1, T, H, D, device=device, dtype=torch.bfloat16) for _ in range(3))
    log_f = F.logsigmoid(torch.randn(1, T, H, device=device))
    options = {"log_pruning_tolerance": -10.0, "backend": "flash"}
    got = forgetting_attention(q, k, v, log_f, **options)
    tail = [x[:, -4096:].contiguous() for x in (q, k, v, log_f)]
    want = forgetting_attention(*tail, **options)
    torch.testing.assert_close(got[:, -1024:], want[:, -1024:], atol=2e-2, rtol=2e-2)
