"""One training run, however it is divided: over passes, processes, or both."""

import json
import math
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fox.checkpoints import load_checkpoint

SCRIPT = Path(__file__).with_name("parallel_runs.py")
RESUMED = ("ddp resumed", "fsdp2 resumed", "fsdp2 from one")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, set_up):
    """What the runs of parallel_runs.py found, by name; their checkpoints are in `folder`."""
    folder = tmp_path_factory.mktemp("parallel")
    with pytest.MonkeyPatch.context() as patch:
        set_up(folder, patch)
        patch.setenv("OMP_NUM_THREADS", "1")
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = str(free.getsockname()[1])
        processes = [
            subprocess.Popen(
                [sys.executable, str(SCRIPT), str(rank), port],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        errors = [process.communicate()[1] for process in processes]
    assert not any(process.returncode for process in processes), "\n".join(errors)
    return json.loads((folder / "runs.json").read_text()) | {"folder": folder}


def assert_equal(run, expected, tolerance=2e-6):
    """Losses, gradient norms, validations and weights."""
    for name in ("loss", "norm", "validation"):
        last = expected[name][-len(run[name]) :]  # a resumed run has the last steps
        torch.testing.assert_close(run[name], last, atol=tolerance, rtol=tolerance)
    assert set(run["weights"]) == set(expected["weights"])
    for name, value in run["weights"].items():
        weights, others = torch.tensor(value), torch.tensor(expected["weights"][name])
        torch.testing.assert_close(weights, others, atol=tolerance, rtol=tolerance, msg=name)


def test_the_standard_learns_and_clips(runs):
    assert all(math.isfinite(loss) for loss in runs["one"]["loss"])
    first, last = runs["one"]["validation"]
    assert last < first - 0.2
    assert min(runs["one"]["norm"]) > 0.5  # the limit


def test_a_step_in_unequal_passes_is_the_step_in_one(runs):
    assert_equal(runs["passes"], runs["one"])


def test_activation_checkpointing_changes_nothing(runs):
    assert_equal(runs["checkpointed"], runs["one"])


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "ddp passes", "fsdp2 passes"])
def test_two_processes_train_like_one(runs, name):
    assert_equal(runs[name], runs["one"])


def test_a_tied_matrix_and_fixed_gates_are_divided_rightly(runs):
    assert_equal(runs["fsdp2 tied"], runs["tied"])


@pytest.mark.parametrize("name", ["16 bit passes", "fsdp2 16 bit"])
def test_in_16_bit_the_division_matters_no_more_than_rounding(runs, name):
    assert_equal(runs[name], runs["16 bit"], tolerance=1e-3)
    assert runs["16 bit"]["loss"] != runs["one"]["loss"]


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_goes_on_from_its_own_checkpoint_and_from_another_strategys(runs, name):
    assert len(runs[name]["loss"]) == 2
    assert_equal(runs[name], runs["one"])


def test_checkpoints_of_one_process_of_two_and_of_divided_networks_hold_the_same(runs):
    one, *others = (
        torch.load(runs["folder"] / f"{name}.ckpt", weights_only=True)
        for name in ("one", "ddp", "fsdp2", "fsdp2 passes")
    )
    for other in others:
        torch.testing.assert_close(other["state_dict"], one["state_dict"])
        (state,), (expected,) = other["optimizer_states"], one["optimizer_states"]
        torch.testing.assert_close(state["state"], expected["state"])
        assert state["param_groups"] == expected["param_groups"]
        assert other["global_step"] == one["global_step"] == 2


def test_a_divided_networks_checkpoint_is_a_model(runs):
    model, _ = load_checkpoint(runs["folder"] / "fsdp2.ckpt")
    expected, _ = load_checkpoint(runs["folder"] / "one.ckpt")
    ids = torch.arange(16)[None]
    torch.testing.assert_close(model(ids).logits, expected(ids).logits)
