"""FoxConfig: presets, derived sizes and its errors."""

import pytest
import torch

from fox import FoxConfig, FoxForCausalLM

SMALL = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_heads": 2}


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("fox-llama-125m", 162.3),
        ("fox-pro-125m", 162.5),
        ("transformer-llama-125m", 162.1),
        ("transformer-pro-125m", 162.4),
        ("fox-llama-360m", 411.7),
        ("fox-pro-360m", 418.8),
        ("transformer-llama-360m", 411.3),
        ("transformer-pro-360m", 418.4),
        ("fox-llama-760m", 834.8),
        ("fox-pro-760m", 836.7),
        ("transformer-llama-760m", 833.9),
        ("transformer-pro-760m", 834.9),
    ],
)
def test_presets_have_the_parameter_counts_of_the_paper(name, millions):
    with torch.device("meta"):
        model = FoxForCausalLM(FoxConfig.preset(name))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions


def test_preset_takes_changes():
    config = FoxConfig.preset("fox-pro-125m", vocab_size=100, num_hidden_layers=2)
    assert (config.vocab_size, config.num_hidden_layers, config.hidden_size) == (100, 2, 768)


def test_mlp_width_is_rounded_up_to_256():
    assert FoxConfig(**SMALL).mlp_dim == 256
    assert FoxConfig.preset("fox-llama-360m").mlp_dim == 2816
    assert FoxConfig(**SMALL, intermediate_size=24).mlp_dim == 24


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 9}, "hidden_size must be a multiple of num_heads, but got 9 and 2"),
        ({"hidden_size": "8"}, "hidden_size must be of type int, but got '8'"),
        ({"num_kv_heads": 2.0}, "num_kv_heads must be of type int or None, but got 2.0"),
        ({"norm_eps": None}, "norm_eps must be of type float, but got None"),
        ({"eos_token_id": [1, 2]}, r"eos_token_id must be of type int or None, but got \[1, 2\]"),
        ({"num_heads": 0}, "num_heads must be at least 1, but got 0"),
        ({"num_kv_heads": 3}, "num_heads must be a multiple of num_kv_heads, but got 2 and 3"),
        ({"fgate_type": "soft"}, "fgate_type must be one of .* but got 'soft'"),
        ({"ogate_act": "relu"}, "ogate_act must be one of .* but got 'relu'"),
        ({"fgate_type": "fixed"}, "needs decay_time_min and decay_time_max"),
        ({"decay_time_min": 2.0}, "go together"),
        ({"decay_time_min": 4.0, "decay_time_max": 2.0}, "0 < decay_time_min <= decay_time_max"),
        ({"log_pruning_tolerance": 0.5}, "at most 0, but got 0.5"),
        ({"num_heads": 8, "use_rope": True}, "even head size, but got 1"),
    ],
)
def test_values_that_do_not_fit_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        FoxConfig(**(SMALL | fields))


def test_a_whole_number_is_a_float_too():
    assert FoxConfig(**SMALL, hidden_ratio=4, log_pruning_tolerance=-10).hidden_ratio == 4.0


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown preset 'fox-pro-7b'; there are fox-llama-125m"):
        FoxConfig.preset("fox-pro-7b")
