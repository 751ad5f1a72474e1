"""Formats: what the options of each library mean for our models, and which models each can hold."""

import json
from pathlib import Path

import pytest

from fox import FoxConfig
from fox.formats import choose_format, read_config, write_config

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_heads": 2}
FLA = {"model_type": "forgetting_transformer"} | SIZES
OFFICIAL = {"model_type": "forgetting_transformer-project_fox"} | SIZES
TRANSFORMER = {"model_type": "transformer-project_fox"} | SIZES


def test_our_config_names_unknown_and_missing_fields():
    with pytest.raises(ValueError, match=r"config\.json lacks num_heads$"):
        read_config({"model_type": "fox"} | {k: v for k, v in SIZES.items() if k != "num_heads"})
    with pytest.raises(ValueError, match=r"unknown fields in config\.json: num_head$"):
        read_config({"model_type": "fox", "num_head": 2} | SIZES)


def test_an_unknown_model_type_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'mamba' is unknown; expected one of 'fox', 'forgetting"):
        read_config({"model_type": "mamba"} | SIZES)


@pytest.mark.parametrize("fields", [FLA, OFFICIAL, TRANSFORMER])
def test_an_option_that_may_change_results_is_not_ignored(fields):
    with pytest.raises(ValueError, match=r"unknown fields in config\.json: rope_scaling$"):
        read_config(fields | {"rope_scaling": {"factor": 2.0}})


@pytest.mark.parametrize("fields", [{"model_type": "fox"} | SIZES, FLA, OFFICIAL, TRANSFORMER])
def test_keys_of_the_transformers_library_are_ignored(fields):
    generic = json.loads((GOLDEN / "fla_fox" / "config.json").read_text())
    generic = {k: generic[k] for k in ("architectures", "dtype", "transformers_version")}
    generic |= {"auto_map": {}, "use_cache": False, "torch_dtype": "bfloat16", "top_k": 50}
    assert read_config(fields | generic) == read_config(fields)


def test_what_a_library_leaves_out_has_its_default():
    for model_type in ("forgetting_transformer", OFFICIAL["model_type"], TRANSFORMER["model_type"]):
        config = read_config({"model_type": model_type})
        assert (config.vocab_size, config.hidden_size, config.num_heads) == (32000, 2048, 32)
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, None)


def test_the_official_transformer_class_has_rope_and_no_gates():
    config = read_config(TRANSFORMER)
    assert config.use_rope
    assert config.fgate_type == "none"


@pytest.mark.parametrize("fields", [FLA, OFFICIAL])
def test_no_hidden_ratio_means_4(fields):
    assert read_config(fields | {"hidden_ratio": None}) == read_config(fields)


def test_official_decay_times_count_only_with_their_switch():
    times = {"fgate_type": "bias_only", "decay_time_min": 2.0, "decay_time_max": 64.0}
    assert read_config(OFFICIAL | times).decay_time_min is None
    assert read_config(OFFICIAL | times | {"fgate_bias_init": True}).decay_time_min == 2.0


def test_fla_options_that_never_change_results_are_accepted():
    free = {
        "fuse_norm": False,
        "fuse_swiglu": False,
        "fuse_cross_entropy": False,
        "fuse_linear_cross_entropy": True,
        "use_l2warp": True,
        "use_cache": False,
    }
    assert read_config(FLA | free) == read_config(FLA)


def test_fla_options_become_ours():
    options = {"qkv_bias": True, "qk_norm": True, "use_output_gate": True, "num_kv_heads": 1}
    config = read_config(FLA | options | {"intermediate_size": 24, "tie_word_embeddings": True})
    assert config == FoxConfig(
        **SIZES, **options, intermediate_size=24, tie_word_embeddings=True, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (FLA | {"window_size": 128}, "window_size = 128 .* decode cache .* set it to null"),
        (FLA | {"hidden_act": "powlu"}, "hidden_act = 'powlu' is not supported, only 'swish'"),
        (FLA | {"attnres_block_size": 4}, "attnres_block_size = 4 is not supported, only None"),
        (FLA | {"elementwise_affine": False}, "elementwise_affine = False .* norm"),
        (OFFICIAL | {"window_size": 128}, "window_size = 128 is not supported, only None"),
        (OFFICIAL | {"attention_bias": True}, "attention_bias = True is not supported, only False"),
        (OFFICIAL | {"num_kv_heads": 1}, "num_kv_heads = 1 .* no grouped heads"),
        (TRANSFORMER | {"hidden_act": "sigmoid"}, "hidden_act = 'sigmoid' .* only 'swish'"),
        (TRANSFORMER | {"qk_norm": True}, "qk_norm = True is not supported, only False"),
    ],
)
def test_options_that_our_models_lack_are_refused_with_the_reason(fields, message):
    with pytest.raises(ValueError, match=message):
        read_config(fields)


NOT_IN_FLA = {
    "hidden_act": "sigmoid",
    "fgate_type": "bias_only",
    "use_rope": True,
    "rope_base": 1e4,
    "use_k_shift": True,
    "use_v_shift": True,
    "qk_norm_share_param_across_head": True,
    "use_output_norm": True,
    "ogate_act": "silu",
    "log_pruning_tolerance": -10.0,
}


def test_every_field_that_a_format_cannot_express_is_named():
    with pytest.raises(ValueError, match="the format 'fla' cannot express this model") as error:
        choose_format(FoxConfig(**SIZES, **NOT_IN_FLA), "fla")
    for name, value in NOT_IN_FLA.items():
        assert f"{name} must be " in str(error.value)
        assert f"but is {value!r}" in str(error.value)
    times = {"decay_time_min": 2.0, "decay_time_max": 4.0}
    with pytest.raises(ValueError, match=r"decay_time_min must be None, .* decay_time_max must"):
        choose_format(FoxConfig(**SIZES, **times), "fla")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_kv_heads": 1}, "num_kv_heads must be None, but is 1"),
        ({"qkv_bias": True}, "qkv_bias must be False, but is True"),
        ({"decay_time_min": 2.0, "decay_time_max": 4.0}, "no decay times with fgate_type 'full'"),
        (
            {"use_output_norm": True, "use_output_gate": True, "ogate_act": "silu"},
            "behind its output norm, ogate_act is 'sigmoid', not 'silu'",
        ),
    ],
)
def test_what_the_official_format_cannot_express_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        choose_format(FoxConfig(**SIZES, **fields), "official")


def test_an_unknown_format_lists_the_known_ones():
    with pytest.raises(ValueError, match="format must be one of fox, official, fla, but got 'hf'"):
        choose_format(FoxConfig(**SIZES), "hf")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"fgate_type": "none", "use_rope": True, "rope_base": 1e4},
        {"fgate_type": "none", "use_rope": True, "num_kv_heads": 1},  # the Transformer class has it
        {"fgate_type": "none", "use_output_gate": True, "ogate_act": "silu"},
        {"fgate_type": "fixed", "decay_time_min": 2.0, "decay_time_max": 64.0},
        {"log_pruning_tolerance": -10.0, "max_position_embeddings": 128, "pad_token_id": 3},
        {"use_k_shift": True, "qk_norm": True, "qk_norm_share_param_across_head": True},
    ],
)
def test_an_official_config_reads_back_the_same(fields):
    config = FoxConfig(**SIZES, **fields)
    assert read_config(write_config(config, choose_format(config, "official"))) == config


def test_a_transformer_without_pro_parts_is_of_the_official_transformer_class():
    config = FoxConfig(**SIZES, fgate_type="none", use_rope=True)
    assert choose_format(config, "official").model_type == TRANSFORMER["model_type"]
    pro = config.replace(use_output_gate=True)
    assert choose_format(pro, "official").model_type == OFFICIAL["model_type"]
