"""fox-convert: whole folders in each format, a line per tensor, and one line per mistake."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from fox import FoxForCausalLM, convert
from fox.checkpoints import load_checkpoint
from fox.convert import main
from fox.files import read_json

GOLDEN = Path(__file__).parents[1] / "golden"


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("fox-convert: ")
    return line


def test_the_report_has_every_tensor_with_what_was_done(tmp_path, capsys):
    main([str(GOLDEN / "fla_fox_gqa"), str(tmp_path / "ours")])
    lines = capsys.readouterr().out.splitlines()
    gate_and_up = " + ".join(f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up"))
    assert (
        f"{gate_and_up} -> model.layers.1.mlp.gate_proj.weight: (512, 64) float32, joined" in lines
    )
    attention = "model.layers.0.attn"
    assert f"{attention}.f_proj.bias -> {attention}.fgate_proj.bias: (4,) float32, copied" in lines
    assert "144,776 parameters, 579,104 bytes, forgetting_transformer -> fox" in lines[-1]
    written = load_file(tmp_path / "ours" / "model.safetensors")
    assert [line.split(" -> ")[1].split(": ")[0] for line in lines[:-1]] == list(
        FoxForCausalLM.from_pretrained(tmp_path / "ours").state_dict()
    )
    assert len(written) == len(lines) - 1


def test_there_and_back_every_tensor_is_as_it_was(tmp_path, capsys):
    main([str(GOLDEN / "fla_fox"), str(tmp_path / "official"), "--format", "official"])
    main([str(tmp_path / "official"), str(tmp_path / "fla"), "--format", "fla"])
    assert "mlp.up_proj.weight: (192, 64) float32, split" in capsys.readouterr().out
    theirs, back = (
        load_file(f / "model.safetensors") for f in (GOLDEN / "fla_fox", tmp_path / "fla")
    )
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)
    main([str(tmp_path / "fla"), str(tmp_path / "again"), "--format", "fla"])
    assert "up_proj.weight: (96, 64) float32, copied" in capsys.readouterr().out
    model_type = read_json(tmp_path / "official" / "config.json")["model_type"]
    assert model_type == "forgetting_transformer-project_fox"


def test_a_lightning_file_becomes_a_folder_with_its_tokenizer(build, tmp_path, capsys):
    model = build(load_checkpoint(GOLDEN / "fox_pro_tied")[0].config).bfloat16()
    tokenizer = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    checkpoint = {
        "hyper_parameters": {"config": dataclasses.asdict(model.config)},
        "state_dict": {f"net.{name}": value for name, value in model.state_dict().items()},
        "tokenizer": tokenizer.to_str(),
    }
    torch.save(checkpoint, tmp_path / "last.ckpt")
    main([str(tmp_path / "last.ckpt"), str(tmp_path / "model")])
    again, its_tokenizer = load_checkpoint(tmp_path / "model")
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert again.lm_head.weight.dtype == torch.bfloat16
    assert its_tokenizer.to_str() == tokenizer.to_str()
    out = capsys.readouterr().out
    assert "net.model.norm.weight -> model.norm.weight: (64,) bfloat16, copied" in out
    assert "net.lm_head.weight: left out, it is the tied embedding" in out
    assert "tokenizer.json: copied" in out
    del checkpoint["tokenizer"]
    torch.save(checkpoint, tmp_path / "last.ckpt")
    main([str(tmp_path / "last.ckpt"), str(tmp_path / "without")])
    assert load_checkpoint(tmp_path / "without")[1] is None


def test_the_files_of_the_tokenizer_come_along_unchanged(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(GOLDEN / "fla_fox", source)
    texts = {
        "tokenizer.json": Tokenizer(WordLevel({"a": 0}, unk_token="a")).to_str(),
        "tokenizer_config.json": "{ }\n",
        "special_tokens_map.json": "{}",
        "generation_config.json": '{"top_k": 5}',
        "chat_template.jinja": "{{ messages }}",
        "tokenizer.model": "pieces",
        "merges.txt": "#version: 0.2\r\na b\r\n",
    }
    for name, text in texts.items():
        (source / name).write_bytes(text.encode())
    main([str(source), str(tmp_path / "ours")])
    names = {file.name for file in (tmp_path / "ours").iterdir()}
    assert names == {"config.json", "model.safetensors", *texts}
    assert all(
        (tmp_path / "ours" / name).read_bytes() == text.encode() for name, text in texts.items()
    )


def test_an_empty_target_is_filled_and_any_other_is_refused(tmp_path, capsys):
    target = tmp_path / "target"
    target.mkdir()
    main([str(GOLDEN / "fox_llama"), str(target)])
    capsys.readouterr()
    before = sorted(target.iterdir())
    error = error_of([str(GOLDEN / "fox_pro"), str(target)], capsys)
    assert error == (f"fox-convert: {target} is not empty: name another target, or remove it first")
    (tmp_path / "file").touch()
    assert "is not empty" in error_of([str(GOLDEN / "fox_pro"), str(tmp_path / "file")], capsys)
    assert sorted(target.iterdir()) == before


def test_what_reads_back_changed_never_appears(tmp_path, monkeypatch, capsys):
    read_folder = convert.read_folder

    def torn(folder: Path) -> FoxForCausalLM:
        model = read_folder(folder)
        with torch.no_grad():
            model.model.norm.weight[3] *= -1
        return model

    monkeypatch.setattr(convert, "read_folder", torn)
    error = error_of([str(GOLDEN / "fox_pro"), str(tmp_path / "new" / "target")], capsys)
    assert error == "fox-convert: what was written reads back changed: model.norm.weight"
    assert list((tmp_path / "new").iterdir()) == []


def test_an_interrupt_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "verify", interrupt)
    with pytest.raises(SystemExit) as exit_:
        main([str(GOLDEN / "fox_pro"), str(tmp_path / "target")])
    assert exit_.value.code == 130
    assert list(tmp_path.iterdir()) == []


def test_another_config_or_dtype_or_sign_of_0_is_a_change(fox_pro, build):
    with pytest.raises(ValueError, match=r"reads back changed: config\.json$"):
        convert.verify(fox_pro, build(fox_pro.config.replace(norm_eps=1e-5)))
    one, nan = torch.ones(3), torch.full((3,), torch.nan)
    assert not convert.same_bits(one.half(), one.bfloat16())
    assert not convert.same_bits(torch.zeros(1), -torch.zeros(1))
    assert convert.same_bits(nan, nan.clone())


def test_mistakes_are_said_in_one_line(tmp_path, capsys):
    target = str(tmp_path / "target")
    assert "no checkpoint at nowhere" in error_of(["nowhere", target], capsys)
    fox_pro = str(GOLDEN / "fox_pro")
    assert "'fla' cannot express" in error_of([fox_pro, target, "--format", "fla"], capsys)
    assert "fox-convert --help" in error_of([fox_pro, target, "--format", "gguf"], capsys)
    assert "fox-convert --help" in error_of([fox_pro], capsys)
    assert list(tmp_path.iterdir()) == []
