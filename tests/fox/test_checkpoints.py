"""Checkpoints: golden folders of two libraries, round trips through each format, clear errors."""

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
from fox.checkpoints import load_checkpoint, own_weights, read_folder, write_folder

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = sorted(folder.name for folder in GOLDEN.iterdir())
# The other formats than ours that can express a folder's model.
FORMATS = {name: {"official"} for name in FOLDERS} | {
    "fla_fox": {"official", "fla"},
    "fla_fox_gqa": {"fla"},
    "fox_llama": {"official", "fla"},
    "fox_output_gate_only": {"official", "fla"},
}
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def test_all_golden_folders_are_here():
    assert len(FOLDERS) == 10


@torch.no_grad()
@pytest.mark.parametrize("name", FOLDERS)
def test_foreign_checkpoints_give_their_logits(name):
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
def test_foreign_checkpoints_decode_to_their_logits(name, sizes):
    model = FoxForCausalLM.from_pretrained(GOLDEN / name).eval()
    expected = load_file(GOLDEN / name / "expected.safetensors")
    cache = model.new_cache(2)
    parts = [model(ids, cache=cache).logits for ids in expected["input_ids"].split(sizes, dim=1)]
    assert (torch.cat(parts, dim=1) - expected["logits"]).abs().max() <= 2e-5


@torch.no_grad()
@pytest.mark.parametrize("name", FOLDERS)
def test_foreign_checkpoints_stay_near_their_logits_with_pruning(name):
    model = FoxForCausalLM.from_pretrained(GOLDEN / name).eval()
    pruned = FoxForCausalLM(model.config.replace(log_pruning_tolerance=-10.0)).eval()
    pruned.load_state_dict(model.state_dict())
    expected = load_file(GOLDEN / name / "expected.safetensors")
    assert (pruned(expected["input_ids"]).logits - expected["logits"]).abs().max() <= 2e-3


def same(one: FoxForCausalLM, other: FoxForCausalLM) -> bool:
    a, b = own_weights(one), own_weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@torch.no_grad()
@pytest.mark.parametrize("format", ["fox", "official", "fla"])
@pytest.mark.parametrize("name", FOLDERS)
def test_a_round_trip_through_a_format_changes_nothing(name, format, tmp_path):
    model = read_folder(GOLDEN / name).eval()
    if format not in FORMATS[name] | {"fox"}:
        with pytest.raises(ValueError, match=f"'{format}' cannot express this model"):
            write_folder(model, tmp_path, format)
        assert not any(tmp_path.iterdir())
        return
    write_folder(model, tmp_path, format)
    again = read_folder(tmp_path).eval()
    assert again.config == model.config
    assert same(again, model)
    ids = load_file(GOLDEN / name / "expected.safetensors")["input_ids"]
    assert torch.equal(again(ids).logits, model(ids).logits)


def golden_weights(name: str) -> dict[str, torch.Tensor]:
    files = (GOLDEN / name).glob("model*.safetensors")
    return {key: value for file in files for key, value in load_file(file).items()}


@pytest.mark.parametrize("name", FOLDERS)
def test_what_came_from_a_library_goes_back_to_it_unchanged(name, tmp_path):
    format = "fla" if name.startswith("fla") else "official"
    write_folder(read_folder(GOLDEN / name), tmp_path, format)
    theirs, ours = golden_weights(name), load_file(tmp_path / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    their, our = (json.loads((f / "config.json").read_text()) for f in (GOLDEN / name, tmp_path))
    if their["hidden_ratio"] is None:
        their["hidden_ratio"] = 4
    assert our["architectures"] == ["ForgettingTransformerForCausalLM"]
    shared = (our.keys() & their.keys()) - {"architectures"}  # the golden official ones have none
    assert {key: our[key] for key in shared} == {key: their[key] for key in shared}
    assert {"vocab_size", "num_heads", "hidden_act", "use_output_gate"} <= shared


def test_every_kind_of_model_reads_back_from_our_format(variant, tmp_path):
    write_folder(variant, tmp_path)
    again = read_folder(tmp_path)
    assert again.config == variant.config
    assert same(again, variant)


def test_a_tied_matrix_stays_tied_through_a_round_trip(tmp_path):
    FoxForCausalLM.from_pretrained(GOLDEN / "fox_pro_tied").save_pretrained(tmp_path)
    model = FoxForCausalLM.from_pretrained(tmp_path)
    assert model.lm_head.weight is model.model.embeddings.weight
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_file_may_hold_the_tied_matrix_twice_if_both_are_equal(tmp_path):
    folder = changed_golden(tmp_path, "fox_pro_tied")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embeddings.weight"].clone()
    save_file(weights, folder / "model.safetensors")
    assert same(read_folder(folder), read_folder(GOLDEN / "fox_pro_tied"))
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"unexpected: lm_head\.weight"):
        read_folder(folder)


def test_a_16_bit_model_comes_back_in_16_bits(fox_pro, tmp_path):
    fox_pro.bfloat16().save_pretrained(tmp_path)
    assert FoxForCausalLM.from_pretrained(tmp_path).lm_head.weight.dtype == torch.bfloat16


def test_weights_may_lie_in_shards(tmp_path):
    model = read_folder(GOLDEN / "fla_fox_gqa")
    folder = changed_golden(tmp_path, "fla_fox_gqa")
    for name in [*SHARDS, "model.safetensors.index.json"]:
        (folder / name).unlink()
    save_file(golden_weights("fla_fox_gqa"), folder / "model.safetensors")
    assert same(read_folder(folder), model)


def test_weights_may_be_pickled_tensors(tmp_path):
    folder = changed_golden(tmp_path, "fox_pro")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert same(read_folder(folder), read_folder(GOLDEN / "fox_pro"))
    torch.save({"model.norm.weight": Path()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is torn, or holds more than tensors"):
        read_folder(folder)


def test_a_folder_may_hold_its_tokenizer(fox_pro, tmp_path):
    fox_pro.save_pretrained(tmp_path)
    assert load_checkpoint(tmp_path)[1] is None
    Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    model, tokenizer = load_checkpoint(tmp_path)
    assert not model.training
    assert tokenizer.get_vocab_size() == 2


def test_a_lightning_file_gives_the_same_model(variant, tmp_path):
    file = tmp_path / "last.ckpt"
    checkpoint = {
        "hyper_parameters": {"config": dataclasses.asdict(variant.config)},
        "state_dict": {f"net.{name}": value for name, value in variant.state_dict().items()},
        "tokenizer": Tokenizer(WordLevel({"a": 0}, unk_token="a")).to_str(),
    }
    torch.save(checkpoint, file)
    model, tokenizer = load_checkpoint(file)
    ids = torch.arange(10)[None]
    assert torch.equal(model(ids).logits, variant(ids).logits)
    assert tokenizer.get_vocab_size() == 1


def changed_golden(tmp_path: Path, name: str = "fox_pro", **fields: object) -> Path:
    folder = tmp_path / "checkpoint"
    shutil.copytree(GOLDEN / name, folder)
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_what_is_no_checkpoint_is_said_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"neither a folder nor a file"):
        load_checkpoint(tmp_path / "nowhere")
    (tmp_path / "x.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="no checkpoint of fox-train"):
        load_checkpoint(tmp_path / "x.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "y.ckpt")
    with pytest.raises(ValueError, match="no checkpoint of fox-train"):
        load_checkpoint(tmp_path / "y.ckpt")


def test_a_folder_without_its_config_says_which_file_is_missing(tmp_path):
    folder = changed_golden(tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json is missing; .* put the config\.json there"):
        load_checkpoint(folder)


def test_a_folder_without_weights_says_which_files_are_looked_for(tmp_path):
    folder = changed_golden(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"expected model\.safetensors, .* none is there"):
        load_checkpoint(folder)


def test_a_missing_shard_is_named(tmp_path):
    folder = changed_golden(tmp_path, "fla_fox_gqa")
    (folder / SHARDS[1]).unlink()
    with pytest.raises(ValueError, match=f"cannot read the checkpoint .*{SHARDS[1]}"):
        load_checkpoint(folder)


def test_a_torn_file_is_said_in_one_line(tmp_path):
    folder = changed_golden(tmp_path)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="cannot read the checkpoint"):
        load_checkpoint(folder)
    (folder / "config.json").write_text('{"model_type": ')
    with pytest.raises(ValueError, match=r"expected JSON in .*config\.json"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", "[1]", r"expected a JSON object in .*config\.json, but it holds a list"),
        ("model.safetensors.index.json", "{}", r"index\.json names no shards: .* no weight_map"),
        ("tokenizer.json", '{"model":', r"expected JSON in .*tokenizer\.json"),
    ],
)
def test_a_file_of_another_kind_is_said_in_one_line(file, text, message, tmp_path):
    folder = changed_golden(tmp_path, "fla_fox_gqa")
    (folder / file).write_text(text)
    with pytest.raises(ValueError, match=f"cannot read the checkpoint .*{message}"):
        load_checkpoint(folder)


def test_the_folder_of_a_config_that_cannot_be_read_is_named(tmp_path):
    folder = changed_golden(tmp_path, model_type="mamba")
    with pytest.raises(ValueError, match=f"checkpoint {folder}: model_type 'mamba' is unknown"):
        load_checkpoint(folder)
