"""Decoding on a cache equals the full forward."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fox.kernels import forgetting_attention, forgetting_attention_with_kvcache

Inputs = Callable[..., list[Tensor]]
CLOSE = {"atol": 2e-5, "rtol": 1e-5}


def empty_cache(k: Tensor, log_f: Tensor, slots: int) -> list[Tensor]:
    """NaN where nothing was written, so that reading it shows."""
    B, _, H_kv, D = k.shape
    k_cache, v_cache = (k.new_full((B, slots, H_kv, D), math.nan) for _ in range(2))
    return [k_cache, v_cache, torch.full((B, slots, log_f.shape[2]), math.nan).double()]


def decode(inputs: list[Tensor], borders: list[int], **options: object) -> Tensor:
    q, k, v, log_f = inputs
    cache = empty_cache(k, log_f, borders[-1] + 3)
    outs = []
    for first, last in itertools.pairwise(borders):
        new = [x[:, first:last] for x in (k, v, log_f)]
        outs.append(
            forgetting_attention_with_kvcache(q[:, first:last], *cache, *new, first, **options)
        )
    return torch.cat(outs, dim=1)


@pytest.mark.parametrize("gates", ["mixed", "mixed resets", "steep"])
def test_every_split_of_a_prefill_is_the_full_forward(random_inputs: Inputs, gates: str) -> None:
    inputs = random_inputs(24, H=4, H_kv=2, gates=gates)
    full = forgetting_attention(*inputs)
    for split in range(1, 24):
        torch.testing.assert_close(decode(inputs, [0, split, 24]), full, **CLOSE)
    torch.testing.assert_close(decode(inputs, list(range(25))), full, **CLOSE)
    torch.testing.assert_close(decode(inputs, [0, 24]), full, **CLOSE)


@pytest.mark.parametrize("tolerance", [None, -25.0])
def test_long_chunks_and_single_steps_are_the_full_forward(
    random_inputs: Inputs, tolerance: float | None
) -> None:
    inputs = random_inputs(500, H=4, gates="mixed")
    full = forgetting_attention(*inputs)
    got = decode(inputs, [0, 300, 301, 302, 498, 499, 500], log_pruning_tolerance=tolerance)
    torch.testing.assert_close(got, full, **CLOSE)


@pytest.mark.parametrize("T", [1, 3, 5])
def test_rows_of_different_lengths_decode_together(random_inputs: Inputs, T: int) -> None:
    B, lengths = 3, [0, 7, 20]
    q, k, v, log_f = random_inputs(30, B=B, H=4, H_kv=2, gates="mixed resets")
    start = torch.tensor([0, 2, 9])
    cache = empty_cache(k, log_f, 30)
    for b, length in enumerate(lengths):
        if length:
            part = [x[b : b + 1, :length] for x in (q, k, v, log_f)]
            forgetting_attention_with_kvcache(
                part[0], *(c[b : b + 1] for c in cache), *part[1:], 0, seq_start=start[b : b + 1]
            )
    new = [torch.stack([x[b, n : n + T] for b, n in enumerate(lengths)]) for x in (q, k, v, log_f)]
    filled = torch.tensor(lengths, dtype=torch.int32)
    got = forgetting_attention_with_kvcache(new[0], *cache, *new[1:], filled, seq_start=start)
    for b, n in enumerate(lengths):
        part = [x[b : b + 1, : n + T] for x in (q, k, v, log_f)]
        want = forgetting_attention(*part, seq_start=start[b : b + 1])[:, -T:]
        torch.testing.assert_close(got[b : b + 1], want, **CLOSE)


def test_a_cache_is_read_without_appending(random_inputs: Inputs) -> None:
    inputs = random_inputs(9)
    q, k, v, log_f = inputs
    cache = empty_cache(k, log_f, 9)
    full = forgetting_attention_with_kvcache(q, *cache, k, v, log_f, 0)
    torch.testing.assert_close(forgetting_attention_with_kvcache(q[:, -2:], *cache), full[:, -2:])
    late = forgetting_attention_with_kvcache(q[:, 3:5], *cache, cache_seqlens=5)
    torch.testing.assert_close(late, full[:, 3:5], **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("T", [1, 4, 6])
def test_other_dtypes_decode_like_the_full_forward(
    random_inputs: Inputs, T: int, dtype: torch.dtype
) -> None:
    inputs = random_inputs(40, H=4, H_kv=2, dtype=dtype)
    full = forgetting_attention(*inputs)
    got = decode(inputs, [0, 40 - T, 40])
    assert got.dtype == dtype
    tolerance = 1e-11 if dtype == torch.float64 else 1e-2
    torch.testing.assert_close(got, full, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("backend", ["reference", "blocked"])
@pytest.mark.parametrize("T", [1, 3])
def test_a_row_without_visible_slots_is_zero(random_inputs: Inputs, T: int, backend: str) -> None:
    q, k, v, log_f = random_inputs(T)
    for hidden in (T, T + 2):
        start = torch.tensor([hidden, 0])
        cache = empty_cache(k, log_f, T + 2)
        out = forgetting_attention_with_kvcache(
            q, *cache, k, v, log_f, 0, seq_start=start, backend=backend
        )
        assert (out[0] == 0).all()
        assert (out[1] != 0).all()


@pytest.mark.parametrize("backend", ["reference", "blocked"])
def test_empty_batches_decode(random_inputs: Inputs, backend: str) -> None:
    q, k, v, log_f = random_inputs(1, B=0)
    options = {"log_pruning_tolerance": -9.0, "logit_bound": 1.0, "backend": backend}
    out = forgetting_attention_with_kvcache(
        q, *empty_cache(k, log_f, 4), k, v, log_f, 0, window_size=2, **options
    )
    assert out.shape == q.shape


def test_the_running_gate_is_read_not_summed_again(random_inputs: Inputs) -> None:
    q, k, v, log_f = random_inputs(12, B=1)
    cache = empty_cache(k, log_f, 12)
    early = [x[:, :11] for x in (k, v, log_f)]
    forgetting_attention_with_kvcache(q[:, :11], *cache, *early, 0)
    cache[2][:, :11] += 5.0  # adding a constant to all running gates changes nothing
    got = forgetting_attention_with_kvcache(
        q[:, 11:], *cache, k[:, 11:], v[:, 11:], log_f[:, 11:], 11
    )
    torch.testing.assert_close(got, forgetting_attention(q, k, v, log_f)[:, 11:], **CLOSE)


def test_decoding_under_autocast_keeps_gates_exact(random_inputs: Inputs) -> None:
    inputs = random_inputs(40)
    want = decode(inputs, [0, 39, 40])
    with torch.autocast("cpu", torch.bfloat16):
        got = decode(inputs, [0, 39, 40])
    torch.testing.assert_close(got.float(), want, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(("T", "start"), [(1, None), (1, [0, 20]), (4, None)])
def test_few_rows_read_live_slots_only(
    random_inputs: Inputs, T: int, start: list[int] | None
) -> None:
    inputs = random_inputs(400, gates="steep")
    q, k, v, log_f = inputs
    seq_start = None if start is None else torch.tensor(start)
    cache, held = empty_cache(k, log_f, 400), 400 - T
    early = [x[:, :held] for x in (k, v, log_f)]
    forgetting_attention_with_kvcache(q[:, :held], *cache, *early, 0, seq_start=seq_start)
    for x in cache[:2]:
        x[:, :300] = math.nan  # far below the floor: reading it would show
    late = [x[:, held:] for x in (k, v, log_f)]
    options = {"log_pruning_tolerance": -20.0, "logit_bound": 5.0, "seq_start": seq_start}
    got = forgetting_attention_with_kvcache(q[:, held:], *cache, *late, held, **options)
    want = forgetting_attention(*inputs, seq_start=seq_start)[:, held:]
    torch.testing.assert_close(got, want, **CLOSE)


def test_what_the_last_of_few_rows_has_forgotten_the_first_still_sees(
    random_inputs: Inputs,
) -> None:
    inputs = random_inputs(40)
    inputs[3][:, -1] = -math.inf
    options = {"log_pruning_tolerance": -20.0, "logit_bound": 20.0}
    got = decode(inputs, [0, 37, 40], **options)
    torch.testing.assert_close(got, forgetting_attention(*inputs), **CLOSE)


@pytest.mark.parametrize("filled", [-1, 21])
def test_a_length_outside_the_cache_is_named(random_inputs: Inputs, filled: int) -> None:
    q, k, v, log_f = random_inputs(2)
    with pytest.raises(ValueError, match=rf"cache_seqlens must lie in \[0, 20\], but got {filled}"):
        forgetting_attention_with_kvcache(q, *empty_cache(k, log_f, 20), k, v, log_f, filled)


def test_a_cache_of_another_batch_or_keys_of_another_kind_are_named(random_inputs: Inputs) -> None:
    q, k, v, log_f = random_inputs(2)
    with pytest.raises(ValueError, match="the cache must have the batch size of q, 1, but got 2"):
        forgetting_attention_with_kvcache(q[:1], *empty_cache(k, log_f, 20), cache_seqlens=2)
    with pytest.raises(ValueError, match=r"k must hold floats on cpu .* got torch.int32"):
        forgetting_attention_with_kvcache(q, *empty_cache(k, log_f, 20), k.int(), v, log_f, 0)
