"""Resuming: kill -9 at any moment, the same command again, and the run is that of no kill."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fox.files import whole_file
from fox.train.cli import main
from fox.train.records import RunRecord, StepTable
from fox.train.resume import claimed, difference, is_whole, last_checkpoint, newest_checkpoint

# LightningCLI calls what jsonargparse has renamed.
pytestmark = [
    pytest.mark.filterwarnings(rf"ignore:\s*{start}")
    for start in ("By default only one Jsonarg", "``instantiate_classes``", "skip_none parameter")
]
FIT = ["fit", "--config", "run.yaml"]
LONG = ["--trainer.max_steps", "100", "--trainer.val_check_interval", "7"]
LONG += ["--checkpoint.every_n_steps", "3", "--gates.every_n_steps", "4"]
LAST = last_checkpoint("run")
PREVIOUS = LAST.with_name("previous.ckpt")
TIMED = {"tokens_per_second"}


def fit(*args: str) -> None:
    main([*FIT, *args])


def refused(capsys, *args: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main([*FIT, *args])
    assert exit_info.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def record(folder=Path("run")):
    """All that a run leaves behind but times: bytes and rows by file, and TensorBoard's curves."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".ckpt", ".png")
    }
    board = EventAccumulator(str(folder)).Reload()
    curves = {
        name: [(event.step, event.value) for event in board.Scalars(name)]
        for name in board.Tags()["scalars"]
        if name not in TIMED
    }
    rows = StepTable(folder / "metrics.csv").rows()
    metrics = [{name: row[name] for name in row if name not in TIMED} for row in rows]
    kept = {
        name: value
        for name, value in files.items()
        if name != "metrics.csv" and "tfevents" not in name and not name.startswith("data/")
    }
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    weights = {name: value.tolist() for name, value in checkpoint["state_dict"].items()}
    return kept, metrics, curves, weights, sorted(path.name for path in folder.rglob("*.ckpt"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, set_up):
    """The records of runs that nothing disturbs: the usual one, and a longer one."""
    records = []
    for args in ([], LONG):
        with pytest.MonkeyPatch.context() as patch:
            set_up(tmp_path_factory.mktemp("unbroken"), patch)
            fit(*args)
            records.append(record())
    return records


def killed(command, at: str, seconds: float) -> bool:
    """Runs until a line begins so, and kills it so long after; False if it ended before."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            if line.startswith(at):
                time.sleep(seconds)
                process.send_signal(signal.SIGKILL)
                break
    return process.returncode == -signal.SIGKILL


def test_a_run_that_is_killed_at_random_moments_ends_as_one_that_is_not(unbroken, experiment):
    command = [str(Path(sys.executable).parent / "fox-train"), *FIT, *LONG]
    seed = time.time_ns()
    rng = random.Random(seed)
    # While the text is encoded, the first validation runs or the first steps; then in the steps.
    moments = [("", rng.uniform(0, 1))]
    steps = sorted(rng.randrange(1, 100) for _ in range(3))
    moments += [(f"step {step}/", rng.uniform(0, 0.1)) for step in steps]
    kills = [killed(command, *moment) for moment in moments]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert record() == unbroken[1], f"moments of seed {seed}: {moments}, {kills}"


def test_a_kill_between_a_checkpoint_and_the_validation_of_its_step_loses_nothing(
    unbroken, experiment, monkeypatch
):
    every = ("--checkpoint.every_n_steps", "12")
    fit(*every, "--trainer.default_root_dir", "other")
    on_validation_end = RunRecord.on_validation_end

    def crash(self, trainer, pl_module):
        if trainer.global_step == 12:
            1 / 0  # noqa: B018
        on_validation_end(self, trainer, pl_module)

    with monkeypatch.context() as patch:
        patch.setattr(RunRecord, "on_validation_end", crash)
        with pytest.raises(ZeroDivisionError):
            fit(*every)
    assert LAST.with_name("next.ckpt").is_file()
    assert not LAST.exists()
    fit(*every)
    for file in ("validation.json", "loss_by_position.csv"):
        assert Path("run", file).read_bytes() == Path("other", file).read_bytes()
    assert not LAST.with_name("next.ckpt").exists()


@pytest.mark.parametrize("damage", ["truncated", "overwritten"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    unbroken, experiment, capsys, damage
):
    fit()
    data = bytearray(LAST.read_bytes())
    data[len(data) // 2] ^= 1
    LAST.write_bytes(data[: len(data) // 2] if damage == "truncated" else data)
    capsys.readouterr()
    fit()
    told = capsys.readouterr().out
    assert f"{LAST} is damaged: it is passed over" in told
    assert "going on after step 20 of 24 in run" in told
    assert record() == unbroken[0]


def test_where_no_checkpoint_is_whole_the_run_does_not_start_again_by_itself(experiment, capsys):
    LAST.parent.mkdir(parents=True)
    for path in (LAST, PREVIOUS):
        path.write_bytes(b"PK")
    assert "each is damaged: remove run to start again" in refused(capsys)
    assert f"expected a whole checkpoint, but {LAST} is damaged" in error_of_validate(capsys)


def error_of_validate(capsys) -> str:
    with pytest.raises(SystemExit):
        main(["validate", "--ckpt_path", str(LAST)])
    return capsys.readouterr().err


def test_any_changed_byte_of_the_contents_is_noticed(tmp_path):
    torch.save({"a": torch.arange(50.0), "b": {"c": 1}}, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    assert is_whole(tmp_path / "whole")
    for length in range(0, len(whole), 7):
        (tmp_path / "torn").write_bytes(whole[:length])
        assert not is_whole(tmp_path / "torn")
    start = whole.index(torch.arange(50.0).numpy().tobytes())
    for place in range(start, start + 200):
        torn = bytearray(whole)
        torn[place] ^= 1
        (tmp_path / "torn").write_bytes(torn)
        assert not is_whole(tmp_path / "torn")


def test_other_settings_are_refused_by_name_unless_a_change_is_asked_for(experiment, capsys):
    fit()
    for option, new, told in (
        ("model.config.hidden_size", "32", "model.config.hidden_size = 16, but got 32"),
        ("model.learning_rate", "0.02", "model.learning_rate = 0.01, but got 0.02"),
        ("trainer.max_steps", "30", "trainer.max_steps = 24, but got 30"),
        ("seed_everything", "1", "seed_everything = 0, but got 1"),
        ("data.files", "corpus/1*.txt", "data.files = corpus/*.txt, but got corpus/1*.txt"),
        ("ckpt_path", "other.ckpt", "ckpt_path = None, but got other.ckpt"),
    ):
        error = refused(capsys, f"--{option}", new)
        assert f"run holds a run with {told}: choose another --trainer.default_root_dir" in error
    fit("--trainer.max_steps", "30", "--ckpt_path", "last")
    assert torch.load(LAST, weights_only=True)["global_step"] == 30
    capsys.readouterr()
    fit("--trainer.max_steps", "30", "--trainer.devices", "1", "--model.micro_batch_tokens", "16",
        "--data.num_workers", "1")  # fmt: skip
    assert "the run in run is finished" in capsys.readouterr().out


def test_settings_that_a_run_could_not_know_count_with_their_defaults():
    ours = {"data": {"order": "packed", "seed": 0}}
    assert difference({"data": {"seed": 0}}, ours, {"data": {"order": "packed"}}) is None
    told = difference({"data": {"seed": 0}}, ours, {"data": {"order": "other"}})
    assert told == "data.order = other, but got packed"


def test_a_finished_run_says_so_and_has_its_export_again(unbroken, experiment, capsys):
    fit()
    for path in Path("run/model").iterdir():
        path.unlink()  # a kill came between the last checkpoint and the export
    capsys.readouterr()
    fit()
    assert "the run in run is finished" in capsys.readouterr().out
    assert record() == unbroken[0]


def test_two_runs_in_one_folder_are_refused(experiment, capsys):
    with claimed(Path("run")):
        assert "another process is training in run: stop it first" in refused(capsys)


def test_what_killed_processes_left_half_written_is_removed_and_what_is_being_written_stays(
    tmp_path,
):
    process = subprocess.Popen(["true"])
    process.wait()
    (tmp_path / "model").mkdir()
    dead = tmp_path / "model" / f".{process.pid}-config.json"
    dead.touch()
    with whole_file(tmp_path / "mine.txt") as mine:
        mine.write_text("mine")
        with claimed(tmp_path):
            assert not dead.exists()
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_torn_line_is_no_row_and_rows_of_later_steps_are_forgotten(tmp_path):
    table = StepTable(tmp_path / "table.csv")
    table.add([{"step": step, "loss": step / 2} for step in range(3)])
    table.add([{"step": 2, "half_life": 7}])  # a new column
    with table.path.open("a") as file:
        file.write("1")  # of 13, say
    again = StepTable(table.path)
    assert [row["step"] for row in again.rows()] == ["0", "1", "2", "2"]
    again.cut(2)
    again.add([{"step": 2, "loss": 5, "half_life": 8}])
    assert table.path.read_text() == "step,loss,half_life\n0,0.0,\n1,0.5,\n2,5,8\n"


def test_the_settings_of_a_checkpoint_are_those_of_config_yaml(experiment):
    fit("--trainer.max_steps", "1", "--trainer.val_check_interval", "1")
    settings = torch.load(newest_checkpoint("run"), weights_only=True)["settings"]
    assert settings["trainer"]["max_steps"] == 1
    assert settings["model"]["config"]["hidden_size"] == 16
    assert json.loads(json.dumps(settings)) == settings
