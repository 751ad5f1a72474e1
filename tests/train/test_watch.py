"""Watching a run: what is logged is the model's own, and nothing that watches stops a run."""

import csv
import json
import math
import sys
from pathlib import Path

import pytest
import torch

from fox.checkpoints import load_checkpoint
from fox.observe import observed_gates
from fox.train.callbacks import known_peak
from fox.train.cli import main
from fox.train.data import TextData
from fox.train.watch import sums_by_position

# LightningCLI calls what jsonargparse has renamed.
pytestmark = [
    pytest.mark.filterwarnings(rf"ignore:\s*{start}")
    for start in ("By default only one Jsonarg", "``instantiate_classes``", "skip_none parameter")
]


def fit(*args: str) -> None:
    main(["fit", "--config", "run.yaml", "--trainer.max_steps", "12", *args])


def rows(name):
    with Path("run", name).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("tied", ["true", "false"])
def test_the_gradient_norms_of_the_parts_add_up_to_the_whole(experiment, tied):
    fit("--model.config.tie_word_embeddings", tied, "--trainer.max_steps", "3")
    for row in rows("metrics.csv"):
        if row["gradient_norm"]:
            parts = [row[f"gradient_norm/{x}"] for x in ("embeddings", "layer0", "layer1", "head")]
            whole = math.hypot(*map(float, parts))
            assert abs(whole / float(row["gradient_norm"]) - 1) < 1e-5


def test_a_position_counts_the_tokens_of_the_document_that_a_prediction_sees():
    # Documents begin at 0 and 3; the last token has no prediction in this row.
    batch = {
        "labels": torch.tensor([[-100, 5, 6, -100, 7, 8]]),
        "document_starts": torch.tensor([[True, False, False, True, False, False]]),
    }
    losses = torch.tensor([[1.0, 2.0, 99.0, 4.0, 8.0, 99.0]])
    # Seen are 1 and 2 tokens in the first document, 1 and 2 in the second.
    expected = torch.tensor([[5.0, 2.0], [10.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    assert torch.equal(sums_by_position(losses, batch, 3), expected)


def test_the_losses_by_position_have_the_validation_loss_as_their_mean(experiment):
    fit()
    by_step: dict[int, list[dict[str, str]]] = {}
    for row in rows("loss_by_position.csv"):
        by_step.setdefault(int(row["step"]), []).append(row)
    history = json.loads(Path("run/validation.json").read_text())
    assert [row["step"] for row in history] == list(by_step) == [0, 12]
    for row in history:
        bins = by_step[row["step"]]
        assert [(x["from"], x["to"]) for x in bins] == [
            ("1", "2"),
            ("2", "4"),
            ("4", "8"),
            ("8", "16"),
        ]
        tokens = sum(int(x["tokens"]) for x in bins)
        mean = sum(float(x["loss"]) * int(x["tokens"]) for x in bins) / tokens
        assert abs(mean - row["loss"]) < 1e-6
    assert Path("run/loss_by_position.png").read_bytes().startswith(b"\x89PNG")


def test_half_lives_and_the_computed_share_are_those_of_the_first_row(experiment):
    fit(
        "--gates.every_n_steps", "4", "--model.config.log_pruning_tolerance=-10",
        "--data.seq_len", "64", "--model.learning_rate", "1e-9",  # the model stays as it is
    )  # fmt: skip
    table = rows("gates.csv")
    assert [int(row["step"]) for row in table] == [4] * 4 + [8] * 4 + [12] * 4
    assert [(row["layer"], row["head"]) for row in table[:4]] == [
        ("0", "0"), ("0", "1"), ("1", "0"), ("1", "1"),
    ]  # fmt: skip
    data = TextData(280, 64, 4, files="corpus/*.txt", folder="run/data")
    data.prepare_data()
    data.setup("fit")
    batch = data.train_dataloader().batch(11)
    model, _ = load_checkpoint("run/model")
    gates = observed_gates(model, batch["input_ids"][:1], batch["document_starts"][:1])
    expected = torch.cat([layer.half_life for layer in gates])
    half_lives = torch.tensor([float(row["half_life"]) for row in table[-4:]], dtype=torch.float64)
    torch.testing.assert_close(half_lives, expected, rtol=1e-4, atol=0)
    (logged,) = [row for row in rows("metrics.csv") if row["half_life_min"] and row["step"] == "11"]
    assert float(logged["half_life_min"]) == half_lives.min()
    assert float(logged["half_life_max"]) == half_lives.max()
    share = torch.stack([layer.computed_share for layer in gates]).mean()
    assert 0 < share < 1
    assert abs(float(logged["attention_computed"]) - share) < 1e-6
    assert Path("run/gates.png").read_bytes().startswith(b"\x89PNG")


def test_without_pruning_and_without_gates_nothing_of_them_is_logged(experiment):
    fit("--gates.every_n_steps", "6")
    assert "half_life_max" in rows("metrics.csv")[0]
    assert "attention_computed" not in rows("metrics.csv")[0]
    other = ("--trainer.default_root_dir", "other", "--model.config.fgate_type", "none")
    fit("--gates.every_n_steps", "6", *other)
    assert "half_life" not in Path("other/metrics.csv").read_text()
    assert not Path("other/gates.png").exists()


def test_a_run_goes_without_any_logger_and_without_matplotlib(experiment, monkeypatch, capsys):
    monkeypatch.setattr("fox.train.watch.find_spec", lambda name: None)
    fit("--trainer.logger", "false", "--gates.every_n_steps", "6")
    assert not Path("run/metrics.csv").exists()
    assert len(rows("gates.csv")) == 8
    told = capsys.readouterr().out
    assert "run/gates.csv has no picture: pip install 'fox-transformer[plots]'" in told
    assert Path("run/model/config.json").is_file()


def test_a_logger_of_the_users_gets_what_metrics_csv_does(experiment):
    fit("--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "theirs")
    (theirs,) = Path("theirs").rglob("metrics.csv")
    with theirs.open(newline="") as file:
        losses = [float(row["train_loss"]) for row in csv.DictReader(file) if row["train_loss"]]
    ours = [float(row["train_loss"]) for row in rows("metrics.csv") if row["train_loss"]]
    assert losses == ours
    assert len(ours) == 12


def test_wandb_is_asked_for_by_its_extra(experiment, monkeypatch, capsys):
    monkeypatch.setattr("fox.train.cli.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        fit("--trainer.logger", "WandbLogger")
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith("WandbLogger needs wandb: pip install 'fox-transformer[wandb]'")
    assert "wandb" not in sys.modules


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("Tesla T4", 65),
        ("Tesla V100-SXM2-16GB", 125),
        ("NVIDIA GeForce RTX 4090", 165),
    ],
)
def test_the_peak_of_a_device_is_known_by_its_name(name, tera):
    assert known_peak(name) == tera * 1e12


@pytest.mark.parametrize(
    "name", ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA T400", "NVIDIA H20", "NVIDIA A1000"]
)
def test_a_device_that_is_only_named_like_another_has_no_peak(name):
    assert known_peak(name) is None
