"""Mismatches: a config that is not the weights' names the tensors and the wrong options."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fox import FoxForCausalLM
from fox.checkpoints import load_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"


def error_of(folder: Path) -> str:
    with pytest.raises(ValueError, match="are not those of its config: ") as error:
        load_checkpoint(folder)
    return str(error.value)


def changed_config(name: str, tmp_path: Path, **fields: object) -> Path:
    folder = tmp_path / "checkpoint"
    shutil.copytree(GOLDEN / name, folder)
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("fields", "tensor", "cause"),
    [
        (
            {"vocab_size": 96},
            "lm_head.weight: expected (96, 64), got (97, 64)",
            "vocab_size is 97 in the weights, but 96 by the config (a padded vocabulary?)",
        ),
        (
            {"hidden_size": 128},
            "model.norm.weight: expected (128,), got (64,)",
            "hidden_size is 64 in the weights, but 128 by the config",
        ),
        (
            {"num_heads": 8},
            "model.layers.0.attn.fgate_proj.bias: expected (8,), got (4,) (2 layers alike)",
            "num_heads is 4 in the weights, but 8 by the config",
        ),
        (
            {"num_hidden_layers": 1},
            "unexpected: model.layers.1.attn.q_proj.weight",
            "num_hidden_layers is 2 in the weights, but 1 by the config",
        ),
        (
            {"num_hidden_layers": 3},
            "missing: model.layers.2.attn.q_proj.weight",
            "num_hidden_layers is 2 in the weights, but 3 by the config",
        ),
        (
            {"intermediate_size": 128},
            "model.layers.0.mlp.gate_proj.weight: expected (256, 64), got (512, 64)",
            "intermediate_size is 256 in the weights, but 128 by the config",
        ),
        (
            {"tie_word_embeddings": True},
            "unexpected: lm_head.weight",
            "tie_word_embeddings is False in the weights, but True by the config",
        ),
        (
            {"fgate_type": "bias_only"},
            "missing: model.layers.0.attn.fgate_bias",
            "fgate_type is 'full' in the weights, but 'bias_only or fixed' by the config",
        ),
        (
            {"use_k_shift": False},
            "missing: model.layers.0.attn.k_proj.weight",
            "use_k_shift is True in the weights, but False by the config",
        ),
        (
            {"use_v_shift": False},
            "unexpected: model.layers.0.attn.v_proj.shift_proj.weight",
            "use_v_shift is True in the weights, but False by the config",
        ),
        (
            {"qk_norm": False},
            "unexpected: model.layers.0.attn.q_norm.weight",
            "qk_norm is True in the weights, but False by the config",
        ),
        (
            {"qk_norm_share_param_across_head": True},
            "model.layers.0.attn.q_norm.weight: expected (16,), got (64,)",
            "qk_norm_share_param_across_head is False in the weights, but True by the config",
        ),
        (
            {"use_output_norm": False},
            "unexpected: model.layers.0.attn.output_norm.weight",
            "use_output_norm is True in the weights, but False by the config",
        ),
        (
            {"use_output_gate": False},
            "unexpected: model.layers.0.attn.ogate_proj.weight",
            "use_output_gate is True in the weights, but False by the config",
        ),
    ],
)
def test_the_option_that_differs_is_the_cause(fields, tensor, cause, tmp_path):
    error = error_of(changed_config("fox_pro", tmp_path, **fields))
    assert tensor in error
    assert cause in error.split("Likely cause: ")[1]


@pytest.mark.parametrize(
    ("fields", "tensor", "cause"),
    [
        (
            {"num_kv_heads": None},
            "model.layers.0.attn.k_proj.weight: expected (64, 64), got (32, 64)",
            "num_kv_heads is 2 in the weights, but 4 by the config",
        ),
        (
            {"qkv_bias": False},
            "unexpected: model.layers.0.attn.q_proj.bias",
            "qkv_bias is True in the weights, but False by the config",
        ),
    ],
)
def test_so_it_is_with_weights_of_fla(fields, tensor, cause, tmp_path):
    error = error_of(changed_config("fla_fox_gqa", tmp_path, **fields))
    assert tensor in error
    assert cause in error.split("Likely cause: ")[1]


def test_what_follows_from_another_cause_is_none_of_its_own(tmp_path):
    error = error_of(changed_config("fla_fox_gqa", tmp_path, num_heads=8))
    assert "model.layers.0.attn.k_proj.weight: expected (16, 64), got (32, 64)" in error
    assert error.endswith("Likely cause: num_heads is 4 in the weights, but 8 by the config")


def test_weights_in_the_layout_of_another_library_are_recognised(tmp_path):
    folder = changed_config("fla_fox", tmp_path)
    FoxForCausalLM.from_pretrained(GOLDEN / "fla_fox").save_pretrained(tmp_path / "ours")
    shutil.copy(tmp_path / "ours" / "config.json", folder)
    error = error_of(folder)
    assert "model.layers.0.mlp.gate_proj.weight: expected (192, 64), got (96, 64)" in error
    assert "unexpected: model.layers.0.mlp.up_proj.weight" in error
    assert "separate gate_proj and up_proj (fla's and Llama's format) is True in the" in error


def test_one_error_lists_every_tensor_and_every_cause(tmp_path):
    folder = changed_config("fox_pro", tmp_path, vocab_size=96, use_output_gate=False)
    error = error_of(folder)
    for name in ("model.embeddings.weight: expected", "lm_head.weight: expected"):
        assert error.count(name) == 1
    assert "unexpected: model.layers.0.attn.ogate_proj.weight (2 layers alike)" in error
    assert re.search("Likely cause: vocab_size is 97 .*; use_output_gate is True", error)


def test_a_file_that_lacks_a_tensor_is_called_incomplete(tmp_path):
    folder = changed_config("fox_pro", tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors")
    error = error_of(folder)
    assert "missing: model.norm.weight. Likely cause: the file is incomplete" in error


@pytest.mark.parametrize("names", [(), ("model.embeddings.weight", "layers.0.attn.q_proj.bias")])
def test_weights_of_no_language_model_are_a_mismatch_too(names, tmp_path):
    folder = changed_config("fox_pro", tmp_path)
    save_file({name: torch.zeros(3) for name in names}, folder / "model.safetensors")
    assert "missing: model.norm.weight" in error_of(folder)
