"""What the gates say ahead: exact biases, and boundaries that drop no more than they promise."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fox.kernels import computed_share, forgetting_attention
from fox.kernels.flash import ops
from fox.kernels.flash.tuning import Plan, Tile
from fox.kernels.gates import running_log_gates

Inputs = Callable[..., list[Tensor]]
SMALL = Plan(Tile(16, 16, 4, 1), Tile(16, 16, 4, 1), Tile(16, 16, 4, 1))


@pytest.fixture
def ranges() -> object:
    """The module, imported only where triton runs."""
    return pytest.importorskip("fox.kernels.flash.ranges")


def batch_of(q: Tensor, k: Tensor, start: Tensor | None = None) -> object:
    return ops._batch(q, k, start, None, None, None, None)


@pytest.mark.parametrize(("T", "bias"), [(65_536, 0.0), (65_536, 4.0), (1_048_576, 0.0)])
def test_neighbours_decay_exactly_however_long_the_sequence(
    ranges: object, device: torch.device, T: int, bias: float
) -> None:
    log_f = F.logsigmoid(torch.randn(1, T, 1) + bias)
    running = running_log_gates(log_f)
    exact = np.cumsum(log_f[0, :, 0].numpy().astype(np.longdouble))
    keys = 1024
    q = torch.zeros(1, T, 1, 1)
    split = ranges.split_gates(running.to(device), keys, batch_of(q, q))
    high, low, tile_bias = (x[0, 0].cpu() for x in split)
    for distance in (1, 64, 1024):
        i = torch.arange(T - T // 10, T)
        j = i - distance
        want = (exact[i] - exact[j]).astype(np.float64)
        allowed = 1e-5 + 2.0**-22 * np.abs(want)
        direct = (high[i] - high[j]) + (low[i] - low[j])
        assert (np.abs(direct.double().numpy() - want) <= allowed).all()
        # As in a tile of keys in the past of its rows: a term per row, one per tile, one per key.
        c = j // keys * keys + keys - 1
        past = torch.from_numpy(np.asarray(c < i))
        row = (high[i] - high[c]) + (low[i] - low[c])
        tiled = (row + tile_bias[j] / math.log2(math.e))[past]
        assert (np.abs(tiled.double().numpy() - want[past]) <= allowed[past]).all()


def test_a_large_constant_in_the_running_gates_changes_nothing(
    random_inputs: Inputs, device: torch.device
) -> None:
    q, k, v, log_f = (x.to(device) for x in random_inputs(100, gates="mixed"))
    running = running_log_gates(log_f)
    outs = [
        ops.flash_forward(q, k, v, running + c, batch_of(q, k), 0.25, None, None, None)[0]
        for c in (0.0, -1e8)
    ]
    torch.testing.assert_close(outs[0], outs[1], atol=1e-6, rtol=1e-5)


def first_keys(
    q: Tensor,
    k: Tensor,
    log_f: Tensor,
    start: Tensor | None,
    unit: int,
    scale: float,
    window: int | None,
    tolerance: float | None,
    bound: Tensor | None,
) -> np.ndarray:
    """The boundary of each unit, written out: one loop per dimension."""
    (B, T, H, _), (T_k, H_kv) = q.shape, k.shape[1:3]
    running = running_log_gates(log_f, start).numpy()
    q, k = q.double(), k.double().repeat_interleave(H // H_kv, 2)
    norms = k.norm(dim=-1)  # (B, T_k, H)
    first = np.zeros((B, H, -(-T // unit)), dtype=int)
    for b, h, u in itertools.product(range(B), range(H), range(first.shape[2])):
        begin = 0 if start is None else int(start[b])
        at = T_k - T + u * unit
        anchor = max(at, begin)
        left = begin if window is None else max(begin, at - window + 1)
        gates = running[b, h]
        sums, floor = -gates, -8192.0
        if tolerance is not None:
            sums = np.full(T_k, -np.inf)
            sums[begin:] = np.logaddexp.accumulate(-gates[begin:])
            slack = -math.inf
            for i in range(max(at, begin), min(at + unit, T_k)):
                row = q[b, i - T_k + T, h]
                near = range(max(begin, at - unit, 0 if window is None else i - window + 1), i + 1)
                scores = [scale * float(row @ k[b, j, h]) + gates[i] - gates[j] for j in near]
                U = abs(scale) * 1.001 * float(row.norm() * norms[b, begin:, h].amax())
                U = U if bound is None else float(bound[b, h])
                slack = max(slack, U + gates[i] - gates[anchor] - np.logaddexp.reduce(scores))
            floor = max(floor, tolerance - slack)
        while left < min(anchor, T_k - 1) and gates[anchor] + sums[left] < floor:
            left += 1
        first[b, h, u] = left
    return first


@pytest.mark.parametrize("tolerance", [None, -5.0])
@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize(("T", "T_k"), [(1, 70), (100, 100), (50, 300)])
def test_boundaries_are_those_of_a_serial_walk(
    ranges: object,
    random_inputs: Inputs,
    device: torch.device,
    T: int,
    T_k: int,
    window: int | None,
    bounded: bool,
    tolerance: float | None,
) -> None:
    if bounded and tolerance is None:
        pytest.skip("a bound serves a tolerance only")
    q, k, _, log_f = random_inputs(T, T_k, H=4, H_kv=2, gates="steep resets")
    start = torch.tensor([0, T_k // 3])
    bound = torch.rand(2, 4).double() if bounded else None
    want = first_keys(q, k, log_f, start, 16, 0.5, window, tolerance, bound)
    q, k, log_f, start = (x.to(device) for x in (q, k, log_f, start))
    got = ranges.key_starts(
        q, k, running_log_gates(log_f, start), batch_of(q, k, start), 16, 0.5,
        window, tolerance, None if bound is None else bound.to(device),
    )  # fmt: skip
    np.testing.assert_array_equal(got[..., : want.shape[-1]].cpu().numpy(), want)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the interpreter's tile products: 2 a tile in the forward pass, 3 for dq, 4 for dk."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    if torch.cuda.is_available():
        pytest.skip("tiles are counted in the interpreter")
    count = [0]
    create_dot = interpreter.InterpreterBuilder.create_dot

    def counted(*args: object, **kwargs: object) -> object:
        count[0] += 1
        return create_dot(*args, **kwargs)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", counted)
    monkeypatch.setattr(ops, "choose_plan", lambda *_: SMALL)
    return count


@pytest.mark.parametrize(("T", "kept", "causal"), [(256, 58, 136), (128, 32, 100), (64, 16, 58)])
def test_all_three_kernels_look_up_gates_at_the_rows_position(
    products: list[int], T: int, kept: int, causal: int
) -> None:
    # Looking up row m at m instead of T_k - T + m leaves the results right and prunes too little.
    q, k = torch.zeros(1, T, 1, 16), torch.zeros(1, 256, 1, 16)
    log_f = torch.full((1, 256, 1), -0.5)
    for tolerance, tiles in ((-20.0, kept), (-1e4, causal)):
        products[0] = 0
        inputs = [x.clone().requires_grad_() for x in (q, k, k, log_f)]
        out = forgetting_attention(*inputs, log_pruning_tolerance=tolerance, backend="flash")
        units = T // 16  # one product each, to find their boundary
        assert products[0] == units + 2 * tiles
        out.sum().backward()
        assert products[0] == units + (2 + 3 + 4) * tiles


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("tolerance", [-3.0, -10.0])
@pytest.mark.parametrize("T", [130, 300])
def test_no_row_loses_more_weight_than_the_tolerance(
    ranges: object,
    random_inputs: Inputs,
    device: torch.device,
    T: int,
    tolerance: float,
    bounded: bool,
) -> None:
    q, k, _, log_f = random_inputs(T, 300, H=4, gates="mixed")
    q[:, T // 2 :] = 8 * k[:, :1]  # late queries aligned with the oldest key ...
    k[:, -T // 4 :] = -k[:, :1]  # ... and opposed to their own
    bound = None
    if bounded:
        bound = 0.25 * q.norm(dim=-1).amax(1).double() * k.norm(dim=-1).amax(1)
    running = running_log_gates(log_f)
    starts = ranges.key_starts(
        q.to(device), k.to(device), running.to(device), batch_of(q, k), 16, 0.25,
        None, tolerance, None if bound is None else bound.to(device),
    ).cpu()  # fmt: skip
    decay = running[:, :, 300 - T :, None] - running[:, :, None, :]
    scores = 0.25 * torch.einsum("bihd,bjhd->bhij", q.double(), k.double()) + decay
    scores = scores.masked_fill(torch.ones(T, 300).tril(300 - T) == 0, -math.inf)
    dropped = torch.arange(300) < starts.repeat_interleave(16, -1)[:, :, :T, None]
    lost = (scores.softmax(-1) * dropped).sum(-1)
    assert lost.max() <= math.exp(tolerance)
    assert dropped.any()


def test_pruned_outputs_stay_within_the_bound(random_inputs: Inputs, device: torch.device) -> None:
    inputs = [x.to(device) for x in random_inputs(200, H=4, gates="mixed")]
    exact = forgetting_attention(*inputs, backend="flash")
    pruned = forgetting_attention(*inputs, log_pruning_tolerance=-4.0, backend="flash")
    assert (pruned - exact).abs().max() <= 2 * math.exp(-4) * inputs[2].abs().max() + 1e-6
    assert (pruned != exact).any()


def test_with_nothing_to_prune_nothing_changes(random_inputs: Inputs, device: torch.device) -> None:
    inputs = [x.to(device) for x in random_inputs(100, gates="open")]
    one = forgetting_attention(*inputs, backend="flash")
    assert torch.equal(
        one, forgetting_attention(*inputs, log_pruning_tolerance=-10.0, backend="flash")
    )


def test_pruned_keys_are_never_read(random_inputs: Inputs, device: torch.device) -> None:
    q, k, v, log_f = random_inputs(64, 300, B=1, H=2, gates="open")
    log_f[:, 150:200] = -3.0
    k[:, :100], v[:, :100] = math.nan, math.nan
    inputs = [x.to(device).requires_grad_() for x in (q, k, v, log_f)]
    out = forgetting_attention(
        *inputs, log_pruning_tolerance=-10.0, logit_bound=9.0, backend="flash"
    )
    out.square().sum().backward()
    assert out.isfinite().all()
    for x in inputs:
        assert x.grad.isfinite().all()
    assert (inputs[1].grad[:, :64] == 0).all()


def test_a_nan_reaches_only_the_rows_that_see_it(
    random_inputs: Inputs, device: torch.device
) -> None:
    q, k, v, log_f = (x.to(device) for x in random_inputs(100, B=1, gates="open"))
    k[0, 79] = math.nan
    exact = forgetting_attention(q, k, v, log_f, backend="flash")
    pruned = forgetting_attention(q, k, v, log_f, log_pruning_tolerance=-10.0, backend="flash")
    torch.testing.assert_close(pruned[:, :79], exact[:, :79])
    assert pruned[:, 79:].isnan().all()


def test_hidden_keys_do_not_loosen_the_bound(random_inputs: Inputs, device: torch.device) -> None:
    q, k, _, log_f = (x.to(device) for x in random_inputs(200, B=1, gates="open"))
    log_f -= 0.3
    start = torch.tensor([[50, 0]], device=device)[:, 0]  # with a stride
    options = {"seq_start": start, "log_pruning_tolerance": -10.0, "backend": "flash"}
    share = computed_share(q, k, log_f, **options)
    k[:, :50] = 1e4
    assert computed_share(q, k, log_f, **options) == share < 1


def test_keys_behind_a_reset_are_never_read_even_without_pruning(
    random_inputs: Inputs, device: torch.device
) -> None:
    q, k, v, log_f = random_inputs(64, 300, B=1, H=2, gates="open")
    log_f[:, 200] = -math.inf
    k[:, :128], v[:, :128] = math.nan, math.nan
    out = forgetting_attention(*(x.to(device) for x in (q, k, v, log_f)), backend="flash")
    assert out.isfinite().all()


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("tolerance", [None, -4.0])
def test_the_share_is_what_the_kernel_computes(
    products: list[int], random_inputs: Inputs, tolerance: float | None, window: int | None
) -> None:
    q, k, v, log_f = random_inputs(130, 200, H=2, gates="mixed")
    start = torch.tensor([0, 90])
    options = {"log_pruning_tolerance": tolerance, "window_size": window, "seq_start": start}
    share = computed_share(q, k, log_f, backend="flash", **options)
    products[0] = 0
    forgetting_attention(q, k, v, log_f, backend="flash", **options)
    visible = 0
    for b, m, n, _ in itertools.product(range(2), range(9), range(13), range(2)):
        rows = range(70 + 16 * m, min(86 + 16 * m, 200))
        first = max(int(start[b]), rows[0] - window + 1 if window else 0)
        visible += 16 * n <= rows[-1] and 16 * n + 15 >= first
    boundaries = 0 if tolerance is None else 2 * 2 * 9
    assert share == pytest.approx((products[0] - boundaries) / 2 / visible, abs=1e-6)
    assert (share < 1) == (tolerance is not None)
