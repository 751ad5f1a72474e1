"""model.init_from: a run begins with a checkpoint's weights, and then needs it no more."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from fox.checkpoints import load_checkpoint
from fox.layers import ForgettingAttention
from fox.train.cli import main
from fox.warm_start import warm_start

# LightningCLI calls what jsonargparse has renamed.
pytestmark = [
    pytest.mark.filterwarnings(rf"ignore:\s*{start}")
    for start in ("By default only one Jsonarg", "``instantiate_classes``", "skip_none parameter")
]
TRANSFORMER = """
model:
  config: {hidden_size: 16, num_hidden_layers: 2, num_heads: 2, num_kv_heads: 1,
           intermediate_size: 32, fgate_type: none, use_rope: true, max_position_embeddings: 16}
  learning_rate: 0.01
  warmup_tokens: 256
data: {vocab_size: 280, seq_len: 16, batch_size: 4, files: 'corpus/*.txt'}
trainer: {default_root_dir: transformer, accelerator: cpu, max_steps: 40, val_check_interval: 20}
"""
TUNE = """
model: {learning_rate: 0.01, warmup_tokens: 256}
data: {seq_len: 16, batch_size: 4, files: 'corpus/*.txt'}
trainer: {default_root_dir: tuned, accelerator: cpu, max_steps: 30, val_check_interval: 10}
checkpoint: {every_n_steps: 10}
"""
FIT = ("fit", "--config", "tune.yaml", "--model.init_from")


def losses(folder: str) -> list[float]:
    return [row["loss"] for row in json.loads(Path(folder, "validation.json").read_text())]


def error_of(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main(args)
    assert exit_info.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    return line


@pytest.fixture(scope="module")
def trained(tmp_path_factory, set_up):
    """A folder with a trained Transformer, and a FoX with its weights."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        set_up(folder, patch)
        Path("transformer.yaml").write_text(TRANSFORMER)
        Path("tune.yaml").write_text(TUNE)
        main(["fit", "--config", "transformer.yaml"])
        warm_start("transformer/model", "fox", "keep", 1e6, 1e6)
    return folder


@pytest.fixture
def folder(trained, tmp_path, monkeypatch):
    """The current folder, with a copy of what was trained."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_warm_start_begins_at_the_loss_of_the_transformer_and_falls_below_it(folder):
    main([*FIT, "fox"])
    began, *_, ended = losses("tuned")
    assert abs(began - losses("transformer")[-1]) < 1e-4
    assert not Path("transformer/gates.csv").exists()  # it has none
    assert ended < began - 0.05
    gates = [
        (layer.fgate_proj.weight.abs().min(), (layer.fgate_proj.bias - 13.8155).abs().min())
        for layer in load_checkpoint("tuned/model")[0].modules()
        if isinstance(layer, ForgettingAttention)
    ]
    assert len(gates) == 2
    assert all(moved > 1e-5 for pair in gates for moved in pair)


def test_a_run_that_has_begun_goes_on_without_the_folder(folder):
    main([*FIT, "fox", "--trainer.max_steps", "10"])
    config = load_checkpoint("fox")[0].config
    shutil.rmtree("fox")
    main([*FIT, "fox", "--trainer.max_steps", "20", "--ckpt_path", "last"])
    began, middle, ended = losses("tuned")
    assert began > middle > ended
    assert load_checkpoint("tuned/model")[0].config == config
    main(["validate", "--ckpt_path", "tuned/checkpoints/last.ckpt"])


def test_a_checkpoint_file_and_a_config_that_agrees_will_do(folder):
    file, more = "transformer/checkpoints/last.ckpt", ("--model.config.log_pruning_tolerance", "-9")
    main([*FIT, file, "--trainer.max_steps", "1", "--model.config.hidden_size", "16", *more])
    assert abs(losses("tuned")[0] - losses("transformer")[-1]) < 1e-6


def test_the_path_may_stand_in_the_file_of_settings(folder):
    text = TUNE.replace("{learning", "{init_from: transformer/model, learning")
    Path("tune.yaml").write_text(text.replace("max_steps: 30", "max_steps: 1"))
    main(["fit", "--config=tune.yaml"])
    assert abs(losses("tuned")[0] - losses("transformer")[-1]) < 1e-6


def test_what_does_not_fit_the_checkpoint_is_said_in_one_line(folder, capsys):
    error = error_of(capsys, *FIT, "fox", "--model.config.num_heads", "4")
    assert "expected model.config.num_heads = 2 of fox, but got 4: leave model.config out" in error
    assert "no checkpoint at nowhere" in error_of(capsys, *FIT, "nowhere")
    error = error_of(capsys, *FIT, "fox", "--data.folder", "own", "--data.files", "corpus/1*.txt")
    assert "pass --data.tokenizer fox/tokenizer.json" in error
    error = error_of(capsys, *FIT, "fox", "--data.vocab_size", "300")
    assert "expected model.config.vocab_size = 280 of fox, but got 300" in error


def test_weights_of_16_bits_are_trained_in_32(folder):
    model, _ = load_checkpoint("fox")
    model.bfloat16().save_pretrained("half")
    shutil.copy("fox/tokenizer.json", "half")
    main([*FIT, "half", "--trainer.max_steps", "1"])
    assert load_checkpoint("tuned/model")[0].lm_head.weight.dtype == torch.float32
    assert abs(losses("tuned")[0] - losses("transformer")[-1]) < 0.01
