"""Each message of the public functions: what was expected, what came, the cure."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fox.kernels import (
    forgetting_attention,
    forgetting_attention_varlen,
    forgetting_attention_with_kvcache,
)

Inputs = Callable[..., list[Tensor]]


@pytest.fixture
def inputs(random_inputs: Inputs) -> dict[str, Tensor]:
    names = ("q", "k", "v", "log_f")
    return dict(zip(names, random_inputs(7, H=4, H_kv=2), strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": torch.ones(7, 4, 16)}, r"q must have 4 dimensions, as \(B, T, H, D\), but got"),
        ({"k": torch.ones(2, 7, 2, 16).double()}, r"share one dtype.* got torch.float32, torch.fl"),
        ({"q": torch.ones(2, 7, 4, 16, dtype=torch.int32)}, r"share one dtype of float32"),
        ({"k": torch.ones(2, 7, 2, 16, device="meta")}, r"k must be on cpu like q, but got meta"),
        ({"v": torch.ones(2, 7, 2, 8)}, r"k and v must have the same shape.*\(2, 7, 2, 8\)"),
        ({"k": torch.ones(2, 7, 2, 8), "v": torch.ones(2, 7, 2, 8)}, r"head size of q, D = 16"),
        ({"k": torch.ones(2, 7, 3, 16), "v": torch.ones(2, 7, 3, 16)}, r"H = 4 .* multiple"),
        ({"q": torch.ones(3, 7, 4, 16)}, r"k must have the batch size of q, B = 3, but got 2"),
        ({"q": torch.ones(2, 8, 4, 16)}, r"T = 8 > T_k = 7. Rows align to the end"),
        ({"log_f": torch.zeros(2, 4, 7)}, r"\(B, T_k, H\) = \(2, 7, 4\).*before time\? Pass"),
        ({"log_f": torch.zeros(2, 7, 3)}, r"to match q and k, but got \(2, 7, 3\)\.$"),
        ({"log_f": torch.zeros(2, 7, 4, dtype=torch.int64)}, r"log_f must hold floats, but got"),
        ({"log_f": torch.zeros(2, 7, 4, device="meta")}, r"log_f must be on cpu like q, but got m"),
        ({"seq_start": torch.tensor([0])}, r"seq_start must be an int32 or int64 tensor of shape"),
        ({"seq_start": torch.tensor([0.0, 1.0])}, r"but got torch.float32 of shape \(2,\)"),
        ({"seq_start": torch.tensor([0, 8])}, r"seq_start must lie in \[0, 7\], but got \[0, 8\]"),
        ({"seq_start": torch.tensor([0, 1], device="meta")}, r"seq_start must be on cpu"),
        ({"log_pruning_tolerance": 0.1}, r"natural log of a weight, at most 0, but got 0.1"),
        ({"log_pruning_tolerance": math.nan}, r"natural log of a weight, at most 0, but got nan"),
        ({"logit_bound": 3.0}, r"serves pruning only: pass log_pruning_tolerance"),
        ({"logit_bound": -1.0, "log_pruning_tolerance": -9.0}, r"at least 0, but got -1.0"),
        ({"logit_bound": math.nan, "log_pruning_tolerance": -9.0}, r"at least 0, but got nan"),
        ({"logit_bound": torch.ones(3), "log_pruning_tolerance": -9.0}, r"\(B, H\) = \(2, 4\)"),
        ({"window_size": 0}, r"an int of at least 1, but got 0\. Pass None for no window"),
        ({"window_size": -1}, r"but got -1\. Pass None for no window"),
        ({"window_size": -7}, r"but got -7\.$"),
        ({"window_size": math.inf}, r"but got inf\. Pass None for no window"),
        ({"window_size": 4.0}, r"an int of at least 1, but got 4.0\.$"),
        ({"window_size": True}, r"an int of at least 1, but got True\.$"),
        ({"window_size": (15, 0)}, r"flash-attn's .*=\(15, 0\) is window_size=16 here"),
        ({"window_size": (-1, 0)}, r"flash-attn's .*=\(-1, 0\) is window_size=None here"),
        ({"backend": "flash"}, r'"flash" runs on GPUs.*on cpu; backend "blocked" runs on every'),
        ({"backend": "fast"}, r"one of .*'blocked', 'flash'\) or None, but got 'fast'"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named(
    inputs: dict[str, Tensor], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        forgetting_attention(**{**inputs, **changes})


def test_an_unknown_argument_is_refused(inputs: dict[str, Tensor]) -> None:
    with pytest.raises(TypeError, match="adaptive_threshold"):
        forgetting_attention(**inputs, adaptive_threshold=-10.0)


@pytest.mark.parametrize(
    ("cu_seqlens", "longest", "message"),
    [
        ([0, 3, 9], 7, r"cu_seqlens_q must lie in \[0, 7\]"),
        ([1, 3, 7], 7, r"cu_seqlens_q must rise from 0 to total_q = 7, but got \[1, 3, 7\]"),
        ([0, 5, 3, 7], 7, r"cu_seqlens_q must rise from 0 to total_q = 7"),
        ([0, 3, 7], 3, r"max_seqlen_q must be at least the longest sequence, 4, but got 3"),
    ],
)
def test_wrong_sequence_borders_are_named(
    random_inputs: Inputs, cu_seqlens: list[int], longest: int, message: str
) -> None:
    q, k, v, log_f = (x[0] for x in random_inputs(7))
    borders = torch.tensor(cu_seqlens)
    with pytest.raises(ValueError, match=message):
        forgetting_attention_varlen(q, k, v, log_f, borders, borders, longest, 7)


def test_a_wrong_window_of_packed_sequences_is_named(random_inputs: Inputs) -> None:
    inputs = [x[0] for x in random_inputs(7)]
    borders = torch.tensor([0, 3, 7])
    with pytest.raises(ValueError, match="window_size must be None or the number of keys"):
        forgetting_attention_varlen(*inputs, borders, borders, 4, 4, window_size=0)


def test_borders_of_queries_and_keys_count_the_same_sequences(random_inputs: Inputs) -> None:
    q, k, v, log_f = (x[0] for x in random_inputs(7))
    with pytest.raises(ValueError, match=r"cu_seqlens_k must be .* of shape \(3,\).* shape \(2,\)"):
        forgetting_attention_varlen(
            q, k, v, log_f, torch.tensor([0, 3, 7]), torch.tensor([0, 7]), 7, 7
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lambda_cache": torch.zeros(2, 9, 4)}, r"lambda_cache must be float64, but got"),
        ({"lambda_cache": torch.zeros(2, 9, 2).double()}, r"\(B, S, H\) = \(2, 9, 4\), but got"),
        ({"v_cache": torch.zeros(2, 8, 2, 16)}, r"k_cache and v_cache must have the same shape"),
        ({"v": None}, r"appended together, but got only \['k', 'log_f'\]"),
        ({"cache_seqlens": None}, r"cache_seqlens must say how many slots are filled"),
        ({"cache_seqlens": 3}, r"S = 9 slots, but 3 filled and 7 new tokens need 10"),
        ({"cache_seqlens": torch.tensor([0, 3])}, r"S = 9 slots, but 3 filled and 7 new"),
        ({"cache_seqlens": torch.tensor([0, 10])}, r"cache_seqlens must lie in \[0, 9\]"),
        ({"k": torch.zeros(2, 7, 1, 16)}, r"k and v must have shape \(B, T_new, H_kv, D\)"),
        ({"log_f": torch.zeros(2, 4, 7)}, r"log_f must have shape .* Pass log_f.transpose"),
        ({"q": torch.zeros(2, 8, 4, 16)}, r"T = 8 > 7"),
        ({"seq_start": torch.tensor([0, 10])}, r"seq_start must lie in \[0, 9\]"),
        ({"log_pruning_tolerance": 1.0}, r"log_pruning_tolerance must be"),
        ({"window_size": 0}, r"window_size must be None or the number of keys"),
        ({"backend": "fast"}, r"one of .*'blocked', 'flash'\) or None, but got 'fast'"),
    ],
)  # fmt: skip
def test_a_wrong_cache_is_named(
    inputs: dict[str, Tensor], changes: dict[str, object], message: str
) -> None:
    cache = {
        "k_cache": torch.zeros(2, 9, 2, 16),
        "v_cache": torch.zeros(2, 9, 2, 16),
        "lambda_cache": torch.zeros(2, 9, 4).double(),
        "cache_seqlens": 0,
    }
    with pytest.raises(ValueError, match=message):
        forgetting_attention_with_kvcache(**{**inputs, **cache, **changes})


def test_a_refused_cache_is_left_as_it_was(inputs: dict[str, Tensor]) -> None:
    cache = [torch.zeros(2, 9, 2, 16), torch.zeros(2, 9, 2, 16), torch.zeros(2, 9, 4).double()]
    q, k, v, log_f = inputs.values()
    with pytest.raises(ValueError, match="log_pruning_tolerance must be"):
        forgetting_attention_with_kvcache(q, *cache, k, v, log_f, 0, log_pruning_tolerance=1.0)
    assert all((x == 0).all() for x in cache)
