"""Checkpoints: the official golden folders, round trips and clear errors."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from fox import FoxForCausalLM
from fox.checkpoints import load_checkpoint, read_config

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = sorted(folder.name for folder in GOLDEN.iterdir())


def test_all_golden_folders_are_here():
    assert len(FOLDERS) == 8


@torch.no_grad()
@pytest.mark.parametrize("name", FOLDERS)
def test_official_checkpoints_give_their_logits(name):
    model = FoxForCausalLM.from_pretrained(GOLDEN / name).eval()
    expected = load_file(GOLDEN / name / "expected.safetensors")
    ids, mask = expected["input_ids"], expected["left_padded_mask"]
    error = (model(ids).logits - expected["logits"]).abs()
    assert error.max() <= 2e-5
    padded = (model(ids, attention_mask=mask).logits - expected["left_padded_logits"]).abs()
    assert padded[mask.bool()].max() <= 2e-5


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[1] * 50, [1, 7, 42]])
@pytest.mark.parametrize("name", FOLDERS)
def test_official_checkpoints_decode_to_their_logits(name, sizes):
    model = FoxForCausalLM.from_pretrained(GOLDEN / name).eval()
    expected = load_file(GOLDEN / name / "expected.safetensors")
    cache = model.new_cache(2)
    parts = [model(ids, cache=cache).logits for ids in expected["input_ids"].split(sizes, dim=1)]
    assert (torch.cat(parts, dim=1) - expected["logits"]).abs().max() <= 2e-5


@torch.no_grad()
@pytest.mark.parametrize("name", FOLDERS)
def test_official_checkpoints_stay_near_their_logits_with_pruning(name, build):
    model = FoxForCausalLM.from_pretrained(GOLDEN / name).eval()
    pruned = FoxForCausalLM(model.config.replace(log_pruning_tolerance=-10.0)).eval()
    pruned.load_state_dict(model.state_dict())
    expected = load_file(GOLDEN / name / "expected.safetensors")
    assert (pruned(expected["input_ids"]).logits - expected["logits"]).abs().max() <= 2e-3


@pytest.mark.parametrize("name", FOLDERS)
def test_saving_keeps_names_and_values(name, tmp_path):
    model = FoxForCausalLM.from_pretrained(GOLDEN / name)
    model.save_pretrained(tmp_path)
    official, ours = (load_file(f / "model.safetensors") for f in (GOLDEN / name, tmp_path))
    assert official.keys() == ours.keys()
    assert all(torch.equal(official[key], ours[key]) for key in official)
    assert FoxForCausalLM.from_pretrained(tmp_path).config == model.config


def test_a_tied_matrix_stays_tied_through_a_round_trip(tmp_path):
    FoxForCausalLM.from_pretrained(GOLDEN / "fox_pro_tied").save_pretrained(tmp_path)
    model = FoxForCausalLM.from_pretrained(tmp_path)
    assert model.lm_head.weight is model.model.embeddings.weight
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_16_bit_model_comes_back_in_16_bits(fox_pro, tmp_path):
    fox_pro.bfloat16().save_pretrained(tmp_path)
    assert FoxForCausalLM.from_pretrained(tmp_path).lm_head.weight.dtype == torch.bfloat16


def test_a_folder_may_hold_its_tokenizer(fox_pro, tmp_path):
    fox_pro.save_pretrained(tmp_path)
    assert load_checkpoint(tmp_path)[1] is None
    Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    model, tokenizer = load_checkpoint(tmp_path)
    assert not model.training
    assert tokenizer.get_vocab_size() == 2


def test_a_lightning_file_gives_the_same_model(fox_pro, tmp_path):
    file = tmp_path / "last.ckpt"
    checkpoint = {
        "hyper_parameters": {"config": dataclasses.asdict(fox_pro.config)},
        "state_dict": {f"net.{name}": value for name, value in fox_pro.state_dict().items()},
        "tokenizer": Tokenizer(WordLevel({"a": 0}, unk_token="a")).to_str(),
    }
    torch.save(checkpoint, file)
    model, tokenizer = load_checkpoint(file)
    ids = torch.arange(10)[None]
    assert torch.equal(model(ids).logits, fox_pro(ids).logits)
    assert tokenizer.get_vocab_size() == 1


def changed_golden(tmp_path, **fields):
    folder = tmp_path / "checkpoint"
    shutil.copytree(GOLDEN / "fox_pro", folder)
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_what_is_no_checkpoint_is_said_in_one_line(fox_pro, tmp_path):
    with pytest.raises(ValueError, match=r"neither a folder nor a file"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        load_checkpoint(tmp_path)
    (tmp_path / "x.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="no checkpoint of fox-train"):
        load_checkpoint(tmp_path / "x.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "y.ckpt")
    with pytest.raises(ValueError, match="no checkpoint of fox-train"):
        load_checkpoint(tmp_path / "y.ckpt")


def test_a_torn_file_is_said_in_one_line(tmp_path):
    folder = changed_golden(tmp_path)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="cannot read the checkpoint"):
        load_checkpoint(folder)


def test_weights_of_another_model_are_named_with_both_shapes(tmp_path):
    folder = changed_golden(tmp_path, vocab_size=96)
    with pytest.raises(ValueError, match=r"lm_head.weight: expected \(96, 64\), got \(97, 64\)"):
        load_checkpoint(folder)
    folder = changed_golden(tmp_path / "2", use_output_gate=False)
    with pytest.raises(ValueError, match=r"unexpected: model.layers.0.attn.ogate_proj.weight"):
        load_checkpoint(folder)
    folder = changed_golden(tmp_path / "3")
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing: model.norm.weight"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama' is unknown"),
        ({"window_size": 128}, "window_size = 128 is not supported, only None"),
        ({"attention_bias": True}, "attention_bias = True is not supported, only False"),
    ],
)
def test_options_that_our_models_lack_are_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        load_checkpoint(changed_golden(tmp_path, **fields))


def test_our_config_names_unknown_and_missing_fields():
    sizes = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1}
    with pytest.raises(ValueError, match=r"lacks num_heads"):
        read_config({"model_type": "fox"} | sizes)
    with pytest.raises(ValueError, match=r"unknown fields in config.json: num_head$"):
        read_config({"model_type": "fox", "num_head": 2} | sizes)


def test_the_official_transformer_class_has_rope_and_no_gates():
    fields = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_heads": 2}
    config = read_config({"model_type": "transformer-project_fox"} | fields)
    assert config.use_rope
    assert config.fgate_type == "none"
