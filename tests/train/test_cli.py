"""fox-train: runs that resume to the last bit, and one line for every mistake."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fox import FoxForCausalLM
from fox.checkpoints import load_checkpoint
from fox.corpus import is_held_out, read_documents
from fox.train.cli import FoxCLI, main, usual_precision
from fox.train.data import TextData
from fox.train.lm import FoxLM
from fox.train.optim import warmup_cosine

# LightningCLI calls what jsonargparse has renamed.
pytestmark = [
    pytest.mark.filterwarnings(rf"ignore:\s*{start}")
    for start in ("By default only one Jsonarg", "``instantiate_classes``", "skip_none parameter")
]
FIT = ("fit", "--config", "run.yaml")
LAST = Path("run/checkpoints/last.ckpt")
TIMES = ("tokens_per_second",)


def fit(*args: str) -> None:
    main([*FIT, *args])


def metrics(folder="run"):
    """metrics.csv without the columns that measure time."""
    with Path(folder, "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: row[name] for name in sorted(row) if name not in TIMES} for row in rows]


def validation(folder="run"):
    return json.loads(Path(folder, "validation.json").read_text())


def error_of(capsys, *args: str) -> str:
    """The one line that a mistake prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main(args)
    assert exit_info.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1
    assert lines[0].startswith("fox-train: error: ")
    return lines[0]


def at_step(monkeypatch, step, action):
    """Runs the action in the middle of a training step."""
    training_step = FoxLM.training_step

    def interrupted(self, batch, batch_idx):
        if self.global_step == step:
            action()
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(FoxLM, "training_step", interrupted)


REPORTED: dict[str, float] = {}


@pytest.fixture(autouse=True)
def reported(monkeypatch):
    """Keeps what the last validation logged."""
    log = FoxLM.log

    def keep(self, name, value, **kwargs):
        REPORTED[name] = float(value)
        log(self, name, value, **kwargs)

    monkeypatch.setattr(FoxLM, "log", keep)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, set_up):
    """The records of a run of 24 steps that nothing disturbs."""
    with pytest.MonkeyPatch.context() as patch:
        set_up(tmp_path_factory.mktemp("unbroken"), patch)
        fit()
        return metrics(), validation()


def test_a_run_that_is_killed_goes_on_with_bit_identical_losses(unbroken, experiment, monkeypatch):
    # 13 is in the middle of an epoch (7 batches), between two checkpoints and after a validation.
    with monkeypatch.context() as patch:
        at_step(patch, 13, lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fit()
    assert len(metrics()) > 10
    assert torch.load(LAST, weights_only=True)["global_step"] == 10
    fit()
    assert (metrics(), validation()) == unbroken


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_the_step_and_the_run_goes_on_exactly(
    unbroken, experiment, monkeypatch, capsys, number
):
    with monkeypatch.context() as patch:
        at_step(patch, 11, lambda: signal.raise_signal(number))  # a validation is due after it
        with pytest.raises(SystemExit) as exit_info:
            fit()
    assert exit_info.value.code == 130
    assert "stopped after step 12: the same command goes on" in capsys.readouterr().out
    assert torch.load(LAST, weights_only=True)["global_step"] == 12
    fit()
    assert (metrics(), validation()) == unbroken


@pytest.mark.parametrize("moment", ["prepare_data", "parse_arguments"])
def test_ctrl_c_before_the_first_step_has_the_status_of_ctrl_c(experiment, monkeypatch, moment):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(TextData if moment == "prepare_data" else FoxCLI, moment, interrupted)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as exit_info:
        fit()
    signal.signal(signal.SIGINT, handler)  # which Lightning ignores from then on
    assert exit_info.value.code == 130


def test_with_several_passes_for_a_step_a_resumed_run_is_exact_too(experiment, monkeypatch):
    passes = ("--model.micro_batch_tokens", "32", "--trainer.max_steps", "12")
    fit(*passes, "--trainer.default_root_dir", "unbroken")
    with monkeypatch.context() as patch:
        at_step(patch, 6, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(SystemExit):
            fit(*passes)
    fit(*passes)
    assert metrics() == metrics("unbroken")


def test_a_finished_run_can_be_made_longer(experiment):
    fit("--trainer.max_steps", "10")
    fit("--trainer.max_steps", "20", "--ckpt_path", "last")
    assert torch.load(LAST, weights_only=True)["global_step"] == 20
    steps = [int(row["step"]) for row in metrics() if row["train_loss"]]
    assert steps == list(range(20))


def test_a_run_that_is_made_longer_takes_its_new_rates_from_the_next_step_on(experiment):
    fit("--trainer.max_steps", "6")
    rates = ("--model.learning_rate", "0.1", "--model.weight_decay", "0.5")
    fit("--trainer.max_steps", "9", *rates, "--ckpt_path", "last")
    expected = [0.1 * warmup_cosine(64 * step, 256, 64 * 9, 0.0) for step in (6, 7, 8)]
    rates = [float(row["learning_rate"]) for row in metrics() if row["learning_rate"]]
    assert rates[6:] == pytest.approx(expected)
    groups = torch.load(LAST, weights_only=True)["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]


def test_training_learns_and_everything_of_the_run_is_in_its_folder(experiment):
    fit("--trainer.max_steps", "60", "--trainer.callbacks+=fox.train.records.NgramBaseline")
    history = validation()
    assert [row["step"] for row in history] == [0, 12, 24, 36, 48, 60]
    assert [row["tokens"] for row in history[:2]] == [0, 12 * 64]
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    baselines = json.loads(Path("run/ngram.json").read_text())
    assert baselines["uniform"]["loss"] > baselines["bigram"]["loss"]
    assert set(metrics()[0]) >= {"train_loss", "learning_rate", "gradient_norm", "tokens", "step"}
    assert Path("run/config.yaml").is_file()
    assert list(Path("run").glob("events.out.tfevents.*"))
    model, tokenizer = load_checkpoint("run/model")
    again, embedded = load_checkpoint(LAST)
    ids = torch.tensor([tokenizer.encode("def f0(x): return x").ids])
    assert torch.equal(model(ids).logits, again(ids).logits)
    assert tokenizer.to_str() == embedded.to_str()
    assert Path("run/model/tokenizer_config.json").is_file()  # for transformers
    assert isinstance(FoxForCausalLM.from_pretrained("run/model"), FoxForCausalLM)


def test_validation_is_the_exact_mean_over_tokens(experiment):
    fit("--trainer.max_steps", "12")
    model, tokenizer = load_checkpoint(LAST)
    documents = [
        torch.tensor([[*tokenizer.encode(document.text).ids, 0]])
        for document in read_documents("corpus/*.txt")
        if is_held_out(document.name)
    ]
    losses = [model(ids, labels=ids, reduction="none").loss[:, :-1] for ids in documents]
    expected = torch.cat(losses, dim=1).double().mean().item()
    one_row = sum(ids.shape[1] for ids in documents)  # so that no document is cut
    main(["validate", "--ckpt_path", str(LAST), "--data.seq_len", str(one_row)])
    assert abs(REPORTED["val_loss"] - expected) < 1e-6
    num_bytes = sum(len(tokenizer.decode(ids[0].tolist()).encode()) for ids in documents)
    bits_per_byte = expected / math.log(2) * one_row / num_bytes
    assert abs(REPORTED["val_bits_per_byte"] - bits_per_byte) < 1e-5


def test_validate_needs_nothing_but_the_checkpoint_and_leaves_the_run_as_it_is(experiment):
    fit()
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    loss = validation()[-1]["loss"]
    main(["validate", f"--ckpt_path={LAST}"])
    assert abs(REPORTED["val_loss"] - loss) < 1e-6
    after = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert after == before


def test_a_setting_beside_the_checkpoint_wins_or_fails(experiment, capsys):
    fit()
    again = (*FIT, "--ckpt_path", "last")
    error = error_of(capsys, *again, "--model.config.hidden_size", "32")
    assert "model.config.hidden_size = 16, but got 32" in error
    error = error_of(capsys, *again, "--data.batch_size", "8")
    assert "the batch_size that the checkpoint was trained with, 4, but got 8" in error
    error = error_of(capsys, *again, "--data.vocab_size", "270")
    assert "model.config.vocab_size = 280, but got 270" in error
    main(["validate", "--ckpt_path", str(LAST), "--data.seq_len", "8"])


def test_another_tokenizer_than_the_checkpoints_is_refused(experiment, capsys):
    fit()
    error = error_of(capsys, *FIT, "--ckpt_path", "last", "--data.files", "corpus/1*.txt")
    assert "expected the tokenizer that the checkpoint was trained with" in error
    assert "--data.tokenizer" in error


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--model.config.hiden_size", "64"), "did you mean --model.config.hidden_size?"),
        (("--trainer.max_step", "64"), "did you mean --trainer.max_steps?"),
        (("--data.seq_len", "abc"), "Parser key \"data.seq_len\": Expected a <class 'int'>"),
        (("--data.seq_len", "1"), "data.seq_len must be at least 2, but got 1"),
        (("--data.seed", "-1"), "data.seed must be at least 0, but got -1"),
        (("--data.files", "nothing/*.txt"), "files that match 'nothing/*.txt'"),
        (("--data.files", "empty.txt"), "the corpus is empty"),
        (("--data.batch_size", "5000"), "at least one batch, 5000 rows of 16 tokens"),
        (("--data.tokenizer", "no.json"), "there is no file no.json"),
        (("--model.config.num_heads", "3"), "FoxConfig.hidden_size must be a multiple"),
        (("--trainer.max_steps", "-1"), "trainer.max_steps, the length of the run"),
        (("--ckpt_path", "last"), "there is no run/checkpoints/last.ckpt"),
        (("--ckpt_path", "no.ckpt"), "there is no no.ckpt"),
        (("--config", "no.yaml"), "File does not exist"),
        (("--config", "preset:no"), "expected a preset among demo"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(experiment, capsys, args, message):
    Path("empty.txt").write_text("")
    assert message in error_of(capsys, *FIT, *args)
    assert not LAST.exists()


def test_the_front_page_is_short_and_names_the_long_one(capsys):
    main(["--help"])
    page = capsys.readouterr().out
    assert len(page.splitlines()) < 30
    assert "fox-train fit --help" in page


def test_every_preset_is_a_whole_experiment(experiment, capsys):
    folder = Path(sys.modules[FoxLM.__module__].__file__).parent / "configs"
    presets = sorted(path.stem for path in folder.glob("*.yaml"))
    assert "demo" in presets
    for preset in presets:
        with pytest.raises(SystemExit) as exit_info:
            main(["fit", "--config", f"preset:{preset}", "--print_config"])
        assert not exit_info.value.code
        assert "hidden_size" in capsys.readouterr().out


def test_the_console_script_stops_on_sigint_and_goes_on(unbroken, experiment):
    command = [str(Path(sys.executable).parent / "fox-train"), *FIT]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            if line.startswith("step 6/24"):
                process.send_signal(signal.SIGINT)
    assert process.returncode in (0, 130)  # 0 if it was through before the signal came
    step = torch.load(LAST, weights_only=True)["global_step"]
    assert 6 <= step <= 24
    fit()
    assert (metrics(), validation()) == unbroken


def test_two_processes_see_the_batches_and_the_losses_of_one(unbroken, experiment):
    devices = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    command = [str(Path(sys.executable).parent / "fox-train"), *FIT, *devices]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    for row, expected in zip(metrics(), unbroken[0], strict=True):
        for name, value in expected.items():
            assert bool(value) == bool(row[name])
            assert not value or abs(float(row[name]) - float(value)) < 1e-3
    last, expected = validation()[-1], unbroken[1][-1]
    assert abs(last["loss"] - expected["loss"]) < 1e-4


def test_the_share_of_the_peak_is_logged_in_16_bit_where_the_peak_is_known(experiment):
    fit(
        "--trainer.max_steps", "2", "--trainer.precision", "bf16-mixed", "--speed.peak_flops", "1e9"
    )
    model, _ = load_checkpoint(LAST)
    weights = sum(p.numel() for p in model.parameters()) - model.model.embeddings.weight.numel()
    flops_per_token = 6 * (weights + 2 * 16 * 16)  # two layers of width 16, rows of 16 tokens
    row = metrics()[-1]
    share = float(row["mfu"]) * 1e9 / flops_per_token / float(REPORTED["tokens_per_second"])
    assert abs(share - 1) < 1e-3


def test_where_the_peak_is_unknown_no_share_of_it_is_made_up(experiment):
    fit("--trainer.max_steps", "2")
    assert "mfu" not in metrics()[0]


def test_gpus_train_in_bfloat16_and_cpus_in_float32(monkeypatch):
    assert usual_precision("cpu") == "32-true"
    for available, precision in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr("torch.cuda.is_available", lambda available=available: available)
        assert usual_precision("auto") == precision
