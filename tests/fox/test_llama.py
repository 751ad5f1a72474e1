"""Llama checkpoints of transformers: read as our Transformer, with the same logits."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fox import FoxConfig, FoxForCausalLM
from fox.checkpoints import load_checkpoint, read_folder
from fox.convert import main
from fox.formats import read_config

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LLAMA = {"model_type": "llama"} | SIZES
VARIANTS = {
    "plain": {},
    "grouped": {"num_key_value_heads": 2, "rms_norm_eps": 1e-3},
    "tied": {"tie_word_embeddings": True},
    "other-base": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
}


def save_llama(folder: Path, *, shard: str = "5GB", **options: object) -> torch.nn.Module:
    """A Llama whose every weight matters, in a folder as transformers writes it."""
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **options)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.add_(0.2 * torch.randn_like(weight)) if "norm" in name else weight.mul_(4)
    model.save_pretrained(folder, max_shard_size=shard)
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
def test_a_llama_gives_the_logits_that_transformers_gives(name, tmp_path):
    llama = save_llama(tmp_path, shard="60KB" if name == "grouped" else "5GB", **VARIANTS[name])
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (name == "grouped")
    model = FoxForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(97, (2, 60))
    assert llama(ids).logits.std() > 0.2
    assert (model(ids).logits - llama(ids).logits).abs().max() <= 2e-5
    cache = model.new_cache(2)
    parts = [model(part, cache=cache).logits for part in ids.split([1, 52, 7], dim=1)]
    assert (torch.cat(parts, dim=1) - llama(ids).logits).abs().max() <= 2e-5


def test_fields_of_a_llama_become_ours():
    told = {"num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096}
    told |= {"tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": 7}
    assert read_config(LLAMA | told | {"head_dim": 16, "pretraining_tp": 2}) == FoxConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_heads=4,
        num_kv_heads=2, norm_eps=1e-5, max_position_embeddings=4096, tie_word_embeddings=True,
        fgate_type="none", use_rope=True, rope_base=10000.0, eos_token_id=7,
    )  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": None},
        {"rope_theta": 5e5, "rope_scaling": {"type": "default"}},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
    ],
)
def test_the_base_of_rope_is_read_as_every_release_wrote_it(fields):
    assert read_config(LLAMA | fields).rope_base == 5e5


def test_what_transformers_leaves_out_has_its_default():
    theirs = transformers.LlamaConfig()
    ours = read_config({"model_type": "llama"})
    assert (ours.vocab_size, ours.hidden_size, ours.mlp_dim) == (
        theirs.vocab_size, theirs.hidden_size, theirs.intermediate_size,
    )  # fmt: skip
    assert (ours.num_hidden_layers, ours.num_heads) == (
        theirs.num_hidden_layers, theirs.num_attention_heads,
    )  # fmt: skip
    assert ours.rope_base == theirs.rope_parameters["rope_theta"]
    for name in ("max_position_embeddings", "initializer_range", "tie_word_embeddings"):
        assert getattr(ours, name) == getattr(theirs, name)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.norm_eps == theirs.rms_norm_eps


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_type = 'linear', factor = 2.0 is not supported, only 'default'",
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}},
            "rope_type = 'llama3' is not supported",
        ),
        (
            {"rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 0.5}},
            "rope_type = 'default', partial_rotary_factor = 0.5 is not supported",
        ),
        ({"attention_bias": True}, "attention_bias = True is not supported, only False, since our"),
        ({"mlp_bias": True}, "mlp_bias = True is not supported, only False"),
        ({"attention_dropout": 0.1}, "attention_dropout = 0.1 .* no dropout; .* set it to 0"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported, only 'silu'"),
        ({"head_dim": 32}, "head_dim = 32 is not .* hidden_size / num_attention_heads = 64 / 4"),
        ({"eos_token_id": [1, 2]}, r"eos_token_id must be of type int or None, but got \[1, 2\]"),
        ({"quantization_config": {}}, r"unknown fields in config\.json: quantization_config"),
    ],
)
def test_what_our_models_lack_is_refused_with_the_reason(fields, message):
    with pytest.raises(ValueError, match=message):
        read_config(LLAMA | fields)


def test_a_llama_is_converted_with_a_line_per_tensor(tmp_path, capsys):
    llama = save_llama(tmp_path / "llama")
    weights = load_file(tmp_path / "llama" / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)  # as old files have it
    save_file(weights, tmp_path / "llama" / "model.safetensors")
    main([str(tmp_path / "llama"), str(tmp_path / "official"), "--format", "official"])
    lines = capsys.readouterr().out.splitlines()
    attention = "model.layers.0.self_attn"
    assert f"{attention}.rotary_emb.inv_freq: left out, it follows from the config" in lines
    assert f"{attention}.q_proj.weight -> model.layers.0.attn.q_proj.weight: " in "\n".join(lines)
    assert "llama -> transformer-project_fox" in lines[-1]
    ids = torch.randint(97, (1, 30))
    logits = read_folder(tmp_path / "official").eval()(ids).logits
    assert (logits - llama(ids).logits).abs().max() <= 2e-5


def test_weights_that_are_not_the_llamas_of_the_config_name_the_option(tmp_path):
    save_llama(tmp_path, num_key_value_heads=2)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"num_key_value_heads": 4}))
    with pytest.raises(ValueError, match=r"Likely cause: num_kv_heads is 2 in the weights, but 4"):
        load_checkpoint(tmp_path)
