"""Claims about timing: what is fitted, projected and measured."""

import math

import pytest
import torch

from fox.agents.realtime.timing import (
    TrunkTimes,
    largest,
    line,
    one_thread,
    time_impala,
    time_trunk,
)
from fox.config import FoxConfig
from fox.policy import FoxPolicy

M = 1 / 60


def test_workers_are_inference_over_tick_and_catch_up_needs_ticks_longer_than_a_token():
    times = TrunkTimes(1, window=0.1, token=0.05, chunk=0.2, per_token=M - 0.01)
    assert times.workers(M) == pytest.approx({"window": 6, "wavefront": 3, "catchup": 20})
    assert TrunkTimes(1, 1.0, 1.0, 1.0, per_token=M).workers(M)["catchup"] == math.inf


def test_a_line_through_chunks_tells_token_and_rest_and_no_negative_rest():
    assert line([4, 16, 64, 256], [0.1 + 0.002 * n for n in (4, 16, 64, 256)]) == pytest.approx(
        (0.002, 0.1)
    )
    assert line([1, 2], [1.0, 3.0]) == (pytest.approx(2.0), 0.0)


def test_sizes_between_the_timed_ones_follow_a_power_and_none_is_made_up_beyond():
    sizes, workers = [1e6, 1e7, 1e8], [0.5, 8.0, 800.0]
    found, inside = largest(sizes, workers, 80)
    assert found == pytest.approx(10**7.5)
    assert inside
    assert largest(sizes, workers, 900) == (pytest.approx(1e8), False)
    assert largest(sizes, [2.0, 8.0, 800.0], 1) == (None, True)


def test_a_size_that_no_number_of_workers_carries_is_the_end():
    assert largest([1e6, 1e7], [1.0, math.inf], 512) == (pytest.approx(1e6), True)


def test_a_trunk_and_an_impala_are_timed_and_counted():
    config = FoxConfig.preset(
        "fox-pro-125m",
        vocab_size=1,
        hidden_size=32,
        num_hidden_layers=2,
        num_heads=2,
        intermediate_size=64,
    )
    times = time_trunk(config, window=16, context=64)
    assert 0 < times.token < times.chunk + 256 * times.per_token
    assert times.window > 0
    assert times.parameters == sum(p.numel() for p in FoxPolicy(config).parameters())
    assert time_impala(1, 1)[0] == 900_640


def test_timing_leaves_the_number_of_threads_as_it_was():
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
