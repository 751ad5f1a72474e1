"""Decoding on a cache in Triton against the definition in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fox.kernels import forgetting_attention
from fox.kernels.flash import decode
from fox.kernels.flash.decode import append_to_cache, decode_attention
from fox.kernels.gates import running_log_gates

Inputs = Callable[..., list[Tensor]]
Cache = list[Tensor]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
MOST_KEYS = 64  # of a tile, whatever the sizes


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a kernel forgot to write shows as NaN."""
    create = torch.empty

    def created(*args: object, **kwargs: object) -> Tensor:
        x = create(*args, **kwargs)
        return x.fill_(math.nan) if x.is_floating_point() else x

    monkeypatch.setattr(torch, "empty", created)


def cache_like(k: Tensor, log_f: Tensor, slots: int, dtype: torch.dtype | None = None) -> Cache:
    """NaN where nothing was written, so that reading it shows."""
    B, _, H_kv, D = k.shape
    k_cache, v_cache = (
        torch.full((B, slots, H_kv, D), math.nan, dtype=dtype or k.dtype, device=k.device)
        for _ in range(2)
    )
    running = torch.full((B, slots, log_f.shape[2]), math.nan, dtype=torch.float64, device=k.device)
    return [k_cache, v_cache, running]


def filled_cache(
    inputs: list[Tensor],
    lengths: Tensor,
    slots: int,
    seq_start: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Cache:
    """The first lengths[b] tokens of each row, NaN behind them."""
    _, k, v, log_f = inputs
    cache = cache_like(k, log_f, slots, dtype)
    append_to_cache(*cache, k, v, log_f, torch.zeros_like(lengths), seq_start)
    behind = torch.arange(slots, device=k.device) >= lengths[:, None]
    for x in cache:
        x[behind] = math.nan
    return cache


def definition(
    inputs: list[Tensor],
    lengths: Tensor,
    scale: float,
    seq_start: Tensor | None = None,
    window_size: int | None = None,
) -> Tensor:
    """Each row of the batch by itself, in float64: (B, T, H, D)."""
    q, k, v, log_f = (x.double() for x in inputs)
    outs = []
    for b, n in enumerate(lengths.tolist()):
        start = None if seq_start is None else seq_start[b : b + 1]
        part = (q[b : b + 1], k[b : b + 1, :n], v[b : b + 1, :n], log_f[b : b + 1, :n])
        options = {"softmax_scale": scale, "seq_start": start, "window_size": window_size}
        outs.append(forgetting_attention(*part, **options, backend="reference"))
    return torch.cat(outs)


def rows_at_the_end(draw: Inputs, T: int, lengths: list[int], **options: object) -> list[Tensor]:
    """q (B, T, H, D), and keys for the longest row of the batch."""
    return draw(T, max(lengths), B=len(lengths), **options)


def check(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    tolerance = TOLERANCE[got.dtype]
    torch.testing.assert_close(got.double(), want.double(), atol=tolerance, rtol=tolerance)


def compare(
    inputs: list[Tensor],
    lengths: list[int],
    device: torch.device,
    *,
    slots: int | None = None,
    splits: tuple[int | None, ...] = (None,),
    seq_start: list[int] | None = None,
    window_size: int | None = None,
    cache_dtype: torch.dtype | None = None,
    **pruning: object,
) -> None:
    inputs = [x.to(device) for x in inputs]
    at = torch.tensor(lengths, dtype=torch.int32, device=device)
    start = None if seq_start is None else torch.tensor(seq_start, device=device)
    cache = filled_cache(inputs, at, slots or max(lengths) + 3, start, cache_dtype)
    rounded = [x if cache_dtype is None else x.to(cache_dtype) for x in inputs[1:3]]
    stored = [inputs[0], *rounded, inputs[3]]
    want = definition(stored, at, 0.3, start, window_size)
    pruning = {n: x.to(device) if isinstance(x, Tensor) else x for n, x in pruning.items()}
    options = {"seq_start": start, "window_size": window_size, **pruning}
    for num_splits in splits:
        got = decode_attention(inputs[0], *cache, at, 0.3, **options, num_splits=num_splits)
        check(got, want)


@pytest.mark.parametrize(
    ("T", "H", "H_kv", "D", "gates", "dtype"),
    [
        (1, 2, 2, 64, "mixed", torch.float32),
        (1, 4, 1, 128, "mixed resets", torch.float16),
        (1, 4, 2, 60, "open", torch.float32),
        (3, 4, 2, 64, "steep resets", torch.float16),
        (3, 2, 2, 16, "shut", torch.float32),
        (16, 4, 1, 60, "mixed resets", torch.float32),
        (16, 3, 1, 128, "steep", torch.float16),
    ],
)
def test_the_last_rows_of_a_cache_are_those_of_the_definition(
    random_inputs: Inputs,
    device: torch.device,
    T: int,
    H: int,
    H_kv: int,
    D: int,
    gates: str,
    dtype: torch.dtype,
) -> None:
    lengths = [max(n, T) for n in (1, 64, 65, 200)]
    sizes = {"H": H, "H_kv": H_kv, "D": D, "gates": gates, "dtype": dtype}
    compare(rows_at_the_end(random_inputs, T, lengths, **sizes), lengths, device)


@pytest.mark.parametrize("T", [1, 3])
def test_any_number_of_splits_gives_the_same(
    random_inputs: Inputs, device: torch.device, T: int
) -> None:
    lengths = [3, 63, 200]
    inputs = rows_at_the_end(random_inputs, T, lengths, H=4, H_kv=2, D=64, gates="mixed resets")
    compare(inputs, lengths, device, splits=(1, 2, 7), seq_start=[3, 0, 10])


@pytest.mark.parametrize("T", [1, 5])
def test_groups_that_are_no_power_of_two_or_larger_than_a_tile_work(
    random_inputs: Inputs, device: torch.device, T: int
) -> None:
    for H, H_kv in ((6, 2), (35, 1)):
        inputs = rows_at_the_end(random_inputs, T, [70], H=H, H_kv=H_kv)
        compare(inputs, [70], device, splits=(2,))


def test_slots_before_the_start_are_invisible(random_inputs: Inputs, device: torch.device) -> None:
    lengths = [40, 100, 100, 100]
    for T in (1, 5):
        inputs = rows_at_the_end(random_inputs, T, lengths, H=2, H_kv=1, gates="mixed resets")
        compare(inputs, lengths, device, splits=(1, 3), seq_start=[40, 0, 60, 98])


def test_rows_that_see_nothing_are_zero(random_inputs: Inputs, device: torch.device) -> None:
    inputs = [x.to(device) for x in random_inputs(3, 20)]
    lengths = torch.tensor([20, 0], device=device)
    cache = filled_cache(inputs, lengths, 20)
    start = torch.tensor([20, 0], device=device)
    for splits in (1, 2):
        got = decode_attention(inputs[0], *cache, lengths, 1.0, seq_start=start, num_splits=splits)
        assert (got == 0).all()


@pytest.mark.parametrize("window_size", [1, 16, 70])
def test_a_window_hides_what_lies_further_back(
    random_inputs: Inputs, device: torch.device, window_size: int
) -> None:
    lengths = [30, 200]
    for T in (1, 5):
        inputs = rows_at_the_end(random_inputs, T, lengths, H=4, H_kv=2, D=64)
        options = {"window_size": window_size, "seq_start": [3, 20]}
        compare(inputs, lengths, device, splits=(1, 3), **options)


def test_slots_outside_the_window_are_not_read(random_inputs: Inputs, device: torch.device) -> None:
    inputs = [x.to(device) for x in random_inputs(2, 200, gates="open")]
    lengths = torch.tensor([200, 200], device=device)
    cache = filled_cache(inputs, lengths, 200)
    for x in cache:
        x[:, : 200 - 31] = math.nan
    got = decode_attention(inputs[0], *cache, lengths, 0.3, window_size=30)
    check(got, definition(inputs, lengths, 0.3, window_size=30))


def test_gates_of_any_size_leave_no_trace_in_later_ones(
    random_inputs: Inputs, device: torch.device
) -> None:
    q, k, v, log_f = random_inputs(3, 200)
    log_f[:, :100] = -2000.0
    log_f[:, 100:] = -0.01
    log_f[1, -2] = -9000.0  # almost a reset, between the rows
    compare([q, k, v, log_f], [200, 200], device, splits=(1, 2))


def test_no_logit_is_large_enough_to_see_through_a_reset(
    random_inputs: Inputs, device: torch.device
) -> None:
    q, k, v, log_f = random_inputs(3, 40, gates="mixed")
    q[..., 0], k[:, :30, :, 0] = 300.0, 300.0  # logits of 27000, more than the jump of a reset
    log_f[:, 30] = -math.inf
    compare([q, k, v, log_f], [40, 40], device, splits=(1, 2))


@pytest.mark.parametrize("T", [1, 3])
def test_a_cache_of_another_dtype_is_multiplied_in_float32(
    random_inputs: Inputs, device: torch.device, T: int
) -> None:
    inputs = rows_at_the_end(random_inputs, T, [9, 70], H=4, H_kv=2, D=64)
    compare(inputs, [9, 70], device, cache_dtype=torch.float16, splits=(1, 2))
    narrow = [x.half() for x in inputs[:3]]
    compare([*narrow, inputs[3]], [9, 70], device, cache_dtype=torch.float32)


@pytest.mark.parametrize("D", [60, 64])
def test_caches_may_be_views_of_a_larger_buffer(
    random_inputs: Inputs, device: torch.device, D: int
) -> None:
    inputs = [x.to(device) for x in random_inputs(3, 90, B=3, H=4, H_kv=2, D=D)]
    lengths = torch.tensor([90, 5, 64], device=device)
    plain = filled_cache(inputs, lengths, 96)
    slots_first = torch.full((96, 3, 2, D + 4), math.nan, device=device)
    heads_first = torch.full((3, 3, 100, D), math.nan, device=device)
    gates_last = torch.full((3, 5, 96), math.nan, dtype=torch.float64, device=device)
    views = [
        slots_first[..., 4:].transpose(0, 1),
        heads_first[:, 1:, :96].transpose(1, 2),
        gates_last[:, 1:].transpose(1, 2),
    ]
    q, *new = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs)
    append_to_cache(*views, *new, torch.zeros_like(lengths), None)
    for view, x in zip(views, plain, strict=True):
        view[torch.arange(96, device=device) >= lengths[:, None]] = math.nan
        assert torch.equal(view.nan_to_num(7.0), x.nan_to_num(7.0))
    got = decode_attention(q, *views, lengths, 0.3, num_splits=2)
    check(got, definition(inputs, lengths, 0.3))


def test_a_constant_added_to_the_running_gates_changes_nothing(
    random_inputs: Inputs, device: torch.device
) -> None:
    inputs = [x.to(device) for x in random_inputs(2, 130, H=4, H_kv=2, gates="mixed resets")]
    lengths = torch.tensor([130, 70], device=device)
    cache = filled_cache(inputs, lengths, 130)
    got = decode_attention(inputs[0], *cache, lengths, 0.3)
    cache[2] += 1e7
    shifted = decode_attention(inputs[0], *cache, lengths, 0.3)
    torch.testing.assert_close(shifted, got, atol=1e-6, rtol=0)


@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("reset", [False, True])
def test_dead_slots_are_not_read(
    random_inputs: Inputs, device: torch.device, T: int, reset: bool
) -> None:
    S = 400
    gates = "open" if reset else "steep"
    inputs = [x.to(device) for x in random_inputs(T, S, H=4, H_kv=2, gates=gates)]
    q, _, _, log_f = inputs
    lengths = torch.tensor([S, S - 20], device=device)
    pruning: dict[str, object] = {}
    first_row = (lengths - T).tolist()
    if reset:
        log_f[:, 300] = -math.inf
        live = [300, 300]
    else:
        bound = torch.full((2, 4), 5.0, dtype=torch.float64, device=device)
        pruning = {"log_pruning_tolerance": -20.0, "logit_bound": bound}
        running = log_f.double().cumsum(1)
        floor = -20.0 - 10.0 - math.log(S)
        live = []
        for b, row in enumerate(first_row):
            seen = running[b, row] - running[b] >= floor
            live.append(int(seen.any(-1).nonzero()[0]))
    cache = filled_cache(inputs, lengths, S)
    for b, first in enumerate(live):
        assert 100 < first < first_row[b]
        for x in cache[:2]:
            x[b, : first - MOST_KEYS + 1] = math.nan
    want = definition(inputs, lengths, 0.3)
    for splits in (1, 3):
        check(decode_attention(q, *cache, lengths, 0.3, **pruning, num_splits=splits), want)


def test_the_first_live_slot_is_found_among_a_million(device: torch.device) -> None:
    S, D = 2**20, 16
    generator = torch.Generator().manual_seed(0)
    recent = torch.randn(3, 1, 100, 1, D, generator=generator).to(device)
    for first in (0, 64, 8191, 8192, 500_001, S - 100):
        end = first + 100
        q, k, v = recent[0, :, -1:], recent[1], recent[2]
        cache = [torch.full((1, S, 1, D), math.nan, device=device) for _ in range(2)]
        cache[0][:, first:end], cache[1][:, first:end] = k, v
        running = torch.zeros(1, S, 1, dtype=torch.float64, device=device)
        running[:, first:] = -(2.0**14)
        lengths = torch.tensor([end], device=device)
        if first:  # slots less than a tile before the first live one may be read
            for x in cache:
                x[:, max(0, first - MOST_KEYS + 1) : first] = 1e3
        got = decode_attention(q, *cache, running, lengths, 0.3)
        open_gates = torch.zeros(1, 100, 1, device=device)
        want = definition([q, k, v, open_gates], lengths.clamp(max=100), 0.3)
        check(got, want)


@pytest.mark.parametrize("T", [1, 3])
def test_pruning_drops_its_tolerance_and_not_more(device: torch.device, T: int) -> None:
    """Old keys aligned with the query, its own opposed, and all decay at the threshold."""
    S, U, tolerance = 200, 3.0, -2.0
    floor = tolerance - 2 * U - math.log(S)
    old = torch.arange(S, device=device) < S - T
    q = torch.zeros(1, T, 1, 16, device=device)
    k, v = torch.zeros(2, 1, S, 1, 16, device=device)
    q[..., 0] = U
    k[..., 0] = torch.where(old, 1.0, -1.0)[:, None]
    v[0, old, :, 0] = v[0, ~old, :, 1] = 1.0  # out is what the old keys weigh, and the others
    lengths = torch.tensor([S], device=device)
    bound = torch.full((1, 1), U, dtype=torch.float64, device=device)
    pruning = {"log_pruning_tolerance": tolerance, "logit_bound": bound}
    for beyond in (True, False):
        log_f = torch.zeros(1, S, 1, dtype=torch.float64, device=device)
        log_f[0, S - T] = floor - 0.01 if beyond else floor + 0.01
        inputs = [q, k, v, log_f]
        cache = filled_cache(inputs, lengths, S)
        want = definition(inputs, lengths, 1.0)
        assert 0.8 * math.exp(tolerance) < want[0, 0, 0, 0] < math.exp(tolerance)
        got = decode_attention(q, *cache, lengths, 1.0, **pruning)
        if beyond:
            assert (got[0, :, 0, 0] == 0).all()
        else:
            check(got, want)


@pytest.mark.parametrize("tolerance", [-1.0, -6.0])
def test_the_weight_of_pruned_keys_stays_below_the_tolerance(
    random_inputs: Inputs, device: torch.device, tolerance: float
) -> None:
    S, T = 128, 3
    inputs = [x.to(device) for x in random_inputs(T, S, H=4, H_kv=2, D=S, gates="mixed")]
    q, k, v, log_f = inputs
    q *= 3.0
    log_f *= torch.tensor([1.0, 2.0, 4.0, 8.0], device=device)
    v[:] = torch.eye(S, device=device)[None, :, None]  # out is the weights themselves
    scale = 0.3
    scores = torch.einsum("bthd,bshd->bhts", q, k.repeat_interleave(2, dim=2)) * scale
    bound = scores.abs().amax((2, 3)).double()
    lengths = torch.tensor([S, 100], device=device)
    want = definition(inputs, lengths, scale)
    cache = filled_cache(inputs, lengths, S)
    options = {"log_pruning_tolerance": tolerance, "logit_bound": bound}
    got = decode_attention(q, *cache, lengths, scale, **options, num_splits=2)
    dropped = torch.where(got == 0, want, 0.0)
    assert (dropped > 1e-30).any()
    assert dropped.sum(-1).max() < math.exp(tolerance)
    full = decode_attention(q, *cache, lengths, scale)
    check(full, want)


def test_every_split_takes_a_share_of_the_live_slots(
    monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    S, D = 2048, 64
    q = torch.randn(1, 1, 1, D).to(device)
    k, v = torch.randn(2, 1, S, 1, D).to(device)
    log_f = torch.zeros(1, S, 1, device=device)
    log_f[:, -4 * MOST_KEYS] = -math.inf
    lengths = torch.tensor([S], device=device)
    cache = filled_cache([q, k, v, log_f], lengths, S)
    merge, seen = decode._merge, []

    class Spy:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]:
            def launch(parts: Tensor, lse: Tensor, *rest: object, **sizes: object) -> object:
                seen.append(lse)
                return merge[grid](parts, lse, *rest, **sizes)

            return launch

    monkeypatch.setattr(decode, "_merge", Spy())
    decode_attention(q, *cache, lengths, 0.3, num_splits=4)
    assert (seen[0] > -1e30).all()
    decode_attention(q, *cache, lengths, 0.3, num_splits=6)
    assert (seen[1] > -1e30).sum() in (4, 5)  # tiles: the first may begin before the reset


def test_splits_fill_the_gpu_and_are_worth_their_while() -> None:
    assert decode._splits(programs=8, key_tiles=2, processors=132) == 1
    assert decode._splits(programs=8, key_tiles=512, processors=132) == 66
    assert decode._splits(programs=8, key_tiles=64, processors=132) == 16
    assert decode._splits(programs=1000, key_tiles=512, processors=132) == 1
    for programs in range(1, 400):
        total = programs * decode._splits(programs, key_tiles=10**6, processors=132)
        assert 2 * 132 < total <= 4 * 132


@pytest.mark.parametrize("T", [1, 17, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_appended_gates_continue_the_running_sum(
    random_inputs: Inputs, device: torch.device, T: int, dtype: torch.dtype
) -> None:
    B, H = 3, 10
    _, k, v, log_f = (x.to(device) for x in random_inputs(T, B=B, H=H, H_kv=5))
    log_f[0, T // 2] = -math.inf
    log_f[1, T // 3 :: 5, 3] = -1e5
    log_f = log_f.to(dtype)
    filled = torch.tensor([0, 7, 20], dtype=torch.int32, device=device)
    start = torch.tensor([2, 3, 25], device=device)
    for seq_start in (None, start):
        cache = cache_like(k, log_f, T + 20, torch.float16)
        total = torch.randn(B, H, dtype=torch.float64).to(device) * 1e3
        total[0] = 0.0
        for b in (1, 2):
            cache[2][b, filled[b] - 1] = total[b]
        append_to_cache(*cache, k, v, log_f, filled, seq_start)
        offset = None if seq_start is None else seq_start - filled
        want = running_log_gates(log_f, offset, total).transpose(1, 2)
        for b, n in enumerate(filled.tolist()):
            new = slice(n, n + T)
            torch.testing.assert_close(cache[2][b, new], want[b], atol=0, rtol=1e-14)
            assert torch.equal(cache[0][b, new], k[b].half())
            assert torch.equal(cache[1][b, new], v[b].half())
            assert cache[0][b, :n].isnan().all()
            assert cache[1][b, n + T :].isnan().all()
            assert cache[2][b, n + T :].isnan().all()


def test_tokens_that_do_not_fit_are_not_written(
    random_inputs: Inputs, device: torch.device
) -> None:
    _, k, v, log_f = (x.to(device) for x in random_inputs(5))
    cache = cache_like(k, log_f, 7)
    cache[2][:, 4] = 0.0
    append_to_cache(*cache, k, v, log_f, torch.tensor([5, 1], device=device), None)
    assert torch.equal(cache[0][0, 5:], k[0, :2])
    for x in cache:
        assert x[1, 0].isnan().all()
        assert x[1, 6:].isnan().all()


def test_a_gate_that_is_no_number_shows(random_inputs: Inputs, device: torch.device) -> None:
    inputs = [x.to(device) for x in random_inputs(1, 5)]
    inputs[3][0, 2, 0] = math.nan
    lengths = torch.tensor([5, 5], device=device)
    cache = cache_like(inputs[1], inputs[3], 5)
    append_to_cache(*cache, *inputs[1:], torch.zeros_like(lengths), None)
    assert cache[2][0, 2:, 0].isnan().all()
    assert not cache[2][0, :, 1].isnan().any()


@pytest.mark.parametrize("splits", [1, 2])
def test_token_by_token_is_the_full_forward(
    random_inputs: Inputs, device: torch.device, splits: int
) -> None:
    N = 24
    q, k, v, log_f = (x.to(device) for x in random_inputs(N, H=4, H_kv=2, gates="mixed resets"))
    cache = cache_like(k, log_f, N)
    filled = torch.zeros(2, dtype=torch.int32, device=device)
    for t in range(N):
        append_to_cache(*cache, *(x[:, t : t + 1] for x in (k, v, log_f)), filled, None)
        filled += 1
        q_t = q[:, t : t + 1]
        got = decode_attention(q_t, *cache, filled, 0.3, num_splits=splits)
        check(got, definition([q_t, k, v, log_f], filled, 0.3))


def test_a_cache_may_hold_more_than_2_to_the_31_elements(
    random_inputs: Inputs, device: torch.device
) -> None:
    N, step = 70, 2**25  # elements from slot to slot; what lies between takes no memory on a CPU
    inputs = random_inputs(1, N, B=1, H=4, H_kv=2, dtype=torch.float16)
    inputs = [x.to(device) for x in inputs]
    shape, strides = (1, N, 2, 32), (N * step, step, step // 2, 1)
    both = torch.empty_strided(shape, strides, dtype=torch.float16, device=device)
    k_cache, v_cache = both[..., :16], both[..., 16:]
    running = torch.empty(1, N, 4, dtype=torch.float64, device=device)
    lengths = torch.tensor([N], device=device)
    append_to_cache(k_cache, v_cache, running, *inputs[1:], torch.zeros_like(lengths), None)
    for splits in (1, 2):
        got = decode_attention(
            inputs[0], k_cache, v_cache, running, lengths, 0.3, num_splits=splits
        )
        check(got, definition(inputs, lengths, 0.3))


SIZES = {"B": 4, "H": 32, "H_kv": 8, "D": 128}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("T", [1, 4, 16])
def test_long_caches_on_a_gpu(
    random_inputs: Inputs, device: torch.device, T: int, dtype: torch.dtype
) -> None:
    lengths = [32768, 31000, 4097, 64]
    inputs = random_inputs(T, 32768, **SIZES, gates="mixed resets", dtype=dtype)
    compare(inputs, lengths, device, slots=32768, splits=(None, 1, 7))
    inputs = random_inputs(T, 32768, **SIZES, dtype=dtype)
    options = {"seq_start": [100, 0, 4000, 64 - T], "window_size": 3000}
    compare(inputs, lengths, device, slots=32768, **options)
    bound = torch.full((4, 32), 8.0, dtype=torch.float64)
    pruning = {"log_pruning_tolerance": -20.0, "logit_bound": bound}
    compare(inputs, lengths, device, slots=32768, **pruning)


@pytest.mark.gpu
@pytest.mark.parametrize("D", [16, 60, 64, 96, 128, 256])
@pytest.mark.parametrize(
    ("dtype", "cache_dtype"),
    [
        (torch.bfloat16, None),
        (torch.float16, None),
        (torch.float32, None),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float16),
        (torch.bfloat16, torch.float32),
    ],
)
def test_every_head_size_and_dtype_on_a_gpu(
    random_inputs: Inputs,
    device: torch.device,
    D: int,
    dtype: torch.dtype,
    cache_dtype: torch.dtype | None,
) -> None:
    lengths = [1000, 64, 16]
    for T, H, H_kv in ((1, 8, 8), (3, 12, 4), (16, 8, 2), (2, 40, 1)):
        inputs = rows_at_the_end(random_inputs, T, lengths, H=H, H_kv=H_kv, D=D, dtype=dtype)
        compare(inputs, lengths, device, cache_dtype=cache_dtype, splits=(1, 3))


@pytest.mark.gpu
def test_dead_slots_are_not_read_on_a_gpu(random_inputs: Inputs, device: torch.device) -> None:
    S = 32768
    inputs = random_inputs(1, S, **SIZES, gates="steep", dtype=torch.bfloat16)
    inputs = [x.to(device) for x in inputs]
    lengths = torch.full((4,), S, device=device)
    cache = filled_cache(inputs, lengths, S)
    want = definition(inputs, lengths, 0.3)
    bound = torch.full((4, 32), 8.0, dtype=torch.float64, device=device)
    for x in cache[:2]:
        x[:, : S - 1000] = math.nan
    options = {"log_pruning_tolerance": -20.0, "logit_bound": bound}
    check(decode_attention(inputs[0], *cache, lengths, 0.3, **options), want)


@pytest.mark.gpu
def test_a_captured_step_follows_the_lengths_on_the_device(
    random_inputs: Inputs, device: torch.device
) -> None:
    N = 600
    inputs = [x.to(device) for x in random_inputs(N, **SIZES, dtype=torch.bfloat16)]
    _, k, v, log_f = inputs
    cache = cache_like(k, log_f, N)
    step = [x[:, :1].clone() for x in inputs]
    filled = torch.zeros(4, dtype=torch.int32, device=device)

    def decode_step() -> Tensor:
        append_to_cache(*cache, *step[1:], filled, None)
        filled.add_(1)
        return decode_attention(step[0], *cache, filled, 0.3)

    decode_step()  # compiles
    filled.zero_()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = decode_step()
    filled.zero_()
    for t in range(N):
        for x, y in zip(step, inputs, strict=True):
            x.copy_(y[:, t : t + 1])
        graph.replay()
        if t % 100 in (0, 63, 64):
            check(out, definition([step[0], k, v, log_f], filled, 0.3))


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu(random_inputs: Inputs, device: torch.device) -> None:
    inputs = [x.to(device) for x in random_inputs(1, 300, **SIZES, dtype=torch.bfloat16)]
    cache = cache_like(inputs[1], inputs[3], 300)
    lengths = torch.full((4,), 300, device=device)
    filled = torch.zeros_like(lengths)
    bound = torch.ones(4, 32, dtype=torch.float64, device=device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        append_to_cache(*cache, *inputs[1:], filled, filled)
        options = {"log_pruning_tolerance": -20.0, "logit_bound": bound}
        decode_attention(inputs[0], *cache, lengths, 0.3, seq_start=filled, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
