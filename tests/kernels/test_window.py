"""A window hides what it says and nothing else, on every path, and makes the work O(T W)."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fox.kernels import (
    computed_share,
    forgetting_attention,
    forgetting_attention_varlen,
    forgetting_attention_with_kvcache,
)
from fox.kernels.blocked import _spans, blocked_attention
from fox.kernels.gates import running_log_gates
from fox.kernels.reference import reference_attention
from fox.kernels.tiled import prepare
from fox.kernels.tiles import Span

Inputs = Callable[..., list[Tensor]]
Attend = Callable[..., tuple[Tensor, Tensor]]

# Largest error of out, lse and gradients against float64, absolute and relative; also the engine.
ENGINES = (
    (torch.float64, "matmul", 1e-11, 1e-11),
    (torch.float32, "matmul", 4e-5, 2e-5),
    (torch.float32, "aten", 4e-5, 2e-5),
)
CLOSE = {"atol": 2e-5, "rtol": 1e-5}


def outputs_and_gradients(attend: Attend, inputs: list[Tensor]) -> list[Tensor]:
    """out, lse and the gradients of a fixed functional of both."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out, lse = attend(*inputs)
    generator = torch.Generator().manual_seed(1)
    d_out = torch.randn(out.shape, generator=generator).to(out.dtype)
    d_lse = torch.randn(lse.shape, generator=generator).to(lse.dtype)
    visible = lse.detach() > -math.inf
    loss = (out * d_out).sum() + (lse.where(visible, 0.0) * d_lse).sum()
    return [out.detach(), lse.detach(), *torch.autograd.grad(loss, inputs)]


def assert_all_close(got: list[Tensor], want: list[Tensor], atol: float, rtol: float) -> None:
    for name, one, other in zip(("out", "lse", "dq", "dk", "dv", "dlog_f"), got, want, strict=True):
        torch.testing.assert_close(
            one.double(), other, atol=atol, rtol=rtol, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_blocked_is_reference(
    inputs: list[Tensor], window: int, start: Tensor | None = None, tolerance: float | None = None
) -> None:
    wide = [x.double() for x in inputs]
    want = outputs_and_gradients(lambda *x: reference_attention(*x, 0.3, start, window), wide)
    for dtype, engine, atol, rtol in ENGINES:
        got = outputs_and_gradients(
            lambda *x, engine=engine: blocked_attention(
                *x, 0.3, start, window, None, None, tolerance, None, engine
            ),
            [x.to(dtype) for x in inputs],
        )
        assert_all_close(got, want, atol, rtol)


def dense(
    q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, window: int, start: list[int]
) -> tuple[Tensor, Tensor]:
    """One score at a time: visible keys listed by hand, decay summed gate by gate."""
    B, T, H, _ = q.shape
    T_k = k.shape[1]
    outs, lses = [], []
    for b, h, m in itertools.product(range(B), range(H), range(T)):
        i = T_k - T + m
        keys = [j for j in range(T_k) if j <= i and j > i - window and j >= start[b]]
        if not keys:
            outs.append(q.new_zeros(q.shape[-1]))
            lses.append(q.new_full((), -math.inf))
            continue
        scores = torch.stack(
            [0.3 * q[b, m, h] @ k[b, j, h] + log_f[b, j + 1 : i + 1, h].sum() for j in keys]
        )
        outs.append(scores.softmax(0) @ v[b, keys, h])
        lses.append(scores.logsumexp(0))
    return torch.stack(outs).view(B, H, T, -1).transpose(1, 2), torch.stack(lses).view(B, H, T)


@pytest.mark.parametrize("window", [1, 2, 5, 9, 12])
@pytest.mark.parametrize("start", [[0, 0], [4, 9]])
@pytest.mark.parametrize("T", [9, 5])
def test_the_reference_sees_the_listed_keys(
    random_inputs: Inputs, T: int, start: list[int], window: int
) -> None:
    inputs = random_inputs(T, 9, D=3, dtype=torch.float64)
    want = outputs_and_gradients(lambda *x: dense(*x, window, start), inputs)
    got = outputs_and_gradients(
        lambda *x: reference_attention(*x, 0.3, torch.tensor(start), window), inputs
    )
    assert_all_close(got, want, 1e-12, 1e-12)


def test_a_row_is_the_attention_of_its_window_alone(random_inputs: Inputs) -> None:
    q, k, v, log_f = random_inputs(30, gates="mixed resets")
    for backend, window in itertools.product(("reference", "blocked"), (1, 7, 30)):
        out = forgetting_attention(q, k, v, log_f, window_size=window, backend=backend)
        for i in range(30):
            row, seen = slice(i, i + 1), slice(max(0, i - window + 1), i + 1)
            alone = forgetting_attention(q[:, row], k[:, seen], v[:, seen], log_f[:, seen])
            torch.testing.assert_close(out[:, row], alone, **CLOSE)
        if window == 1:
            torch.testing.assert_close(out, v, **CLOSE)


@pytest.mark.parametrize("window", [1, 2, 16, 64, 250, 1100])
@pytest.mark.parametrize("gates", ["mixed", "mixed resets", "open"])
@pytest.mark.parametrize(
    ("T", "T_k"), [(1, 1), (2, 2), (63, 63), (200, 200), (900, 900), (1, 300), (70, 301)]
)
def test_blocked_is_reference(
    random_inputs: Inputs, T: int, T_k: int, gates: str, window: int
) -> None:
    B = 1 if T == 900 else 2
    assert_blocked_is_reference(random_inputs(T, T_k, B=B, gates=gates, D=8), window)


@pytest.mark.parametrize("window", [1, 3, 40, 130])
@pytest.mark.parametrize("gates", ["steep", "steep resets", "shut"])
def test_blocked_is_reference_where_gates_cut_chunks(
    random_inputs: Inputs, gates: str, window: int
) -> None:
    assert_blocked_is_reference(random_inputs(150, 170, gates=gates), window)


@pytest.mark.parametrize("window", [1, 16, 60])
@pytest.mark.parametrize("gates", ["mixed", "mixed resets"])
@pytest.mark.parametrize("start", [[0, 17, 64], [120, 119, 1]])
def test_blocked_is_reference_with_left_padding(
    random_inputs: Inputs, start: list[int], gates: str, window: int
) -> None:
    inputs = random_inputs(100, 120, B=3, gates=gates)
    assert_blocked_is_reference(inputs, window, torch.tensor(start))


@pytest.mark.parametrize("window", [5, 64])
def test_blocked_is_reference_with_grouped_heads(random_inputs: Inputs, window: int) -> None:
    for H_kv in (1, 2):
        assert_blocked_is_reference(random_inputs(150, H=4, H_kv=H_kv), window)


@pytest.mark.parametrize("window", [16, 250])
@pytest.mark.parametrize("gates", ["mixed", "mixed resets", "open"])
def test_blocked_is_reference_with_a_faint_tolerance(
    random_inputs: Inputs, gates: str, window: int
) -> None:
    inputs = random_inputs(500, 600, B=1, H=3, gates=gates)
    assert_blocked_is_reference(inputs, window, tolerance=-40.0)


def test_blocked_writes_every_number_it_returns(random_inputs: Inputs) -> None:
    # Uninitialised memory is NaN-filled, so that a gap cannot pass for a zero.
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        for gates, T_k in itertools.product(("mixed", "mixed resets"), (70, 90)):
            assert_blocked_is_reference(random_inputs(70, T_k, gates=gates), 20)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("gates", ["mixed", "mixed resets"])
def test_a_window_of_all_keys_is_none(random_inputs: Inputs, gates: str) -> None:
    inputs = random_inputs(100, 150, gates=gates)
    for backend in ("reference", "blocked"):
        want = forgetting_attention(*inputs, backend=backend)
        for window in (150, 151, 2**63 - 1):
            got = forgetting_attention(*inputs, window_size=window, backend=backend)
            assert torch.equal(got, want)


@pytest.mark.parametrize("backend", ["reference", "blocked"])
@pytest.mark.parametrize("window", [1, 10, 50])
@pytest.mark.parametrize(
    ("rows", "keys"),
    [
        ([0, 1, 17, 64, 130, 0], [0, 1, 17, 64, 130, 0]),
        ([3, 40, 0, 1], [10, 40, 7, 300]),
        ([10, 5, 60], [3, 0, 55]),
    ],
)
def test_varlen_is_separate_calls(
    random_inputs: Inputs, rows: list[int], keys: list[int], window: int, backend: str
) -> None:
    q, k, v, log_f = (
        x[0].requires_grad_()
        for x in random_inputs(sum(rows), sum(keys), B=1, H=4, H_kv=2, gates="mixed resets")
    )
    cu_q, cu_k = (
        torch.tensor([0, *itertools.accumulate(x)], dtype=torch.int32) for x in (rows, keys)
    )
    out = forgetting_attention_varlen(
        q, k, v, log_f, cu_q, cu_k, max(rows), max(keys), window_size=window, backend=backend
    )
    parts = []
    for one_q, one_k, one_v, one_f in zip(
        q.split(rows), k.split(keys), v.split(keys), log_f.split(keys), strict=True
    ):
        blind = max(len(one_q) - len(one_k), 0)
        inputs = (x[None] for x in (one_q[blind:], one_k, one_v, one_f))
        alone = forgetting_attention(*inputs, window_size=window, backend="reference")
        parts += [torch.zeros_like(one_q[:blind]), alone[0]]
    want = torch.cat(parts)
    torch.testing.assert_close(out, want, **CLOSE)
    weights = torch.randn_like(out)
    got, wanted = (torch.autograd.grad((x * weights).sum(), (q, k, v, log_f)) for x in (out, want))
    torch.testing.assert_close(got, wanted, atol=4e-5, rtol=2e-5)


def decode(inputs: list[Tensor], borders: list[int], **options: object) -> Tensor:
    """Rows of a sequence by chunks, on a cache that is NaN where nothing was written."""
    q, k, v, log_f = inputs
    B, T, H_kv, D = k.shape
    k_cache, v_cache = (k.new_full((B, T + 3, H_kv, D), math.nan) for _ in range(2))
    lambda_cache = torch.full((B, T + 3, log_f.shape[2]), math.nan).double()
    outs = []
    for first, last in itertools.pairwise(borders):
        new = [x[:, first:last] for x in (k, v, log_f)]
        outs.append(
            forgetting_attention_with_kvcache(
                q[:, first:last], k_cache, v_cache, lambda_cache, *new, first, **options
            )
        )
    return torch.cat(outs, dim=1)


@pytest.mark.parametrize("backend", ["reference", "blocked"])
@pytest.mark.parametrize("window", [None, 1, 2, 16, 39, 80])
@pytest.mark.parametrize("gates", ["mixed", "mixed resets", "open"])
def test_decoding_is_the_full_forward(
    random_inputs: Inputs, gates: str, window: int | None, backend: str
) -> None:
    inputs = random_inputs(40, H=4, H_kv=2, gates=gates)
    for start in (None, torch.tensor([0, 13])):
        options = {"window_size": window, "seq_start": start, "backend": backend}
        full = forgetting_attention(*inputs, **options)
        for borders in ([0, 40], [0, 24, 25, 26, 27, 40], [0, 1, 18, 19, 37, 40]):
            torch.testing.assert_close(decode(inputs, borders, **options), full, **CLOSE)


@pytest.mark.parametrize("backend", ["reference", "blocked"])
@pytest.mark.parametrize("window", [1, 6, 17])
@pytest.mark.parametrize("T", [1, 5])
def test_rows_of_different_lengths_decode_together(
    random_inputs: Inputs, T: int, window: int, backend: str
) -> None:
    lengths, start = [T, 12, 30], torch.tensor([0, 2, 14])
    q, k, v, log_f = random_inputs(T, 30, B=3, H=4, H_kv=2, gates="mixed resets")
    running = running_log_gates(log_f, start).transpose(1, 2).contiguous()
    k_cache, v_cache = k.clone(), v.clone()
    for b, length in enumerate(lengths):
        seen = slice(max(0, length - T - window + 1), length)
        for cache, filled in ((k_cache, k), (v_cache, v)):
            cache[b] = math.nan  # reading what the window hides would show
            cache[b, seen] = filled[b, seen]
    got = forgetting_attention_with_kvcache(
        q, k_cache, v_cache, running, cache_seqlens=torch.tensor(lengths),
        window_size=window, seq_start=start, backend=backend,
    )  # fmt: skip
    for b, n in enumerate(lengths):
        one = slice(b, b + 1)
        want = forgetting_attention(
            q[one], k[one, :n], v[one, :n], log_f[one, :n],
            window_size=window, seq_start=start[one], backend="reference",
        )  # fmt: skip
        torch.testing.assert_close(got[one], want, **CLOSE)


def test_a_decoded_row_is_pruned_inside_its_window(random_inputs: Inputs) -> None:
    inputs = random_inputs(300, gates="steep")
    options = {"log_pruning_tolerance": -20.0, "logit_bound": 5.0}
    for window in (4, 250):
        full = forgetting_attention(*inputs, window_size=window)
        got = decode(inputs, [0, 299, 300], window_size=window, **options)
        torch.testing.assert_close(got, full, **CLOSE)


@pytest.mark.parametrize("engine", ["aten", "matmul"])
@pytest.mark.parametrize("window", [1, 16, 64, 250, 1000])
@pytest.mark.parametrize("B", [1, 8])
def test_work_is_the_length_times_the_window(
    random_inputs: Inputs, B: int, window: int, engine: str
) -> None:
    T = 8000
    q, k, _, log_f = random_inputs(T, B=B, H=1, D=1, gates="open")
    running = running_log_gates(log_f)
    spans = _spans(q, k, None, None, None, window)
    tiles = prepare(q, k, running, spans, 1.0, None, None, engine).tiles
    visible = B * (T * window - window * (window - 1) // 2)
    assert spans[0].scores == sum(tile.scores for tile in tiles) == visible
    # An engine may compute both halves of a tile that is only half seen.
    assert sum(t.members * t.chunks * t.rows * t.keys for t in tiles) <= 3 * B * T * window
    assert len(tiles) <= 40 * B


def test_the_share_counts_what_the_window_leaves_visible(random_inputs: Inputs) -> None:
    q, k, _, log_f = random_inputs(400, 500, gates="open")
    for window in (1, 100, 450, 700):
        assert computed_share(q, k, log_f, window_size=window) == 1
    log_f[:, 300] = -math.inf
    # Of rows 100 to 499 the reset hides from row 300 + i the keys before 300: 99 - i of 100.
    kept = 1 - sum(range(100)) / (400 * 100)
    assert computed_share(q, k, log_f, window_size=100) == pytest.approx(kept)


@pytest.mark.parametrize(("rows", "keys"), [(7, 7), (3, 9), (9, 4), (1, 1)])
def test_visible_scores_of_a_span_are_those_of_the_mask(rows: int, keys: int) -> None:
    for window in (None, *range(1, 12)):
        mask = torch.ones(rows, keys).tril(keys - rows)
        if window is not None:
            mask = mask.triu(keys - rows - window + 1)
        span = Span(slice(0, 2), slice(0, 3), 0, rows, 0, keys, window)
        assert span.scores == 6 * mask.sum()
