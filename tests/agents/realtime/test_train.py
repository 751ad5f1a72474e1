"""fox-realtime and its command train: mistakes, Ctrl-C, kill -9, agents side by side."""

import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch

from fox.agents.metrics import read_table
from fox.agents.realtime import train as train_module
from fox.agents.realtime.cli import FRONT_PAGE, main
from fox.agents.realtime.replay import Replay
from fox.agents.realtime.run import read_run

CONFIG = """
env: {name: catch}
policy: {hidden_size: 16, num_hidden_layers: 1, num_heads: 1, window: 8, d_max: 16}
schedule: {clock: virtual, inference_seconds: 0.1}
learner: {batch_size: 4, burn_in: 8, train: 8}
run: {folder: run, ticks: 160, evaluation_ticks: 80, updates_per_tick: 0.2, warmup_ticks: 60,
      report_ticks: 40, checkpoint_ticks: 40}
"""
WALL = ["--schedule.clock", "wall", "--schedule.fps", "100", "--run.ticks", "400"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with a configuration of seconds."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(CONFIG)
    return tmp_path


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_without_arguments_it_says_what_can_be_done(capsys):
    main([])
    assert capsys.readouterr().out == FRONT_PAGE


def test_mistakes_are_one_line(capsys, folder):
    assert "expected one of train, play, " in (line := refused(capsys, "fit"))
    assert line.startswith("fox-realtime: error: ")
    assert line.endswith(" but got 'fit'")
    assert "expected a preset among catch" in refused(capsys, "train", "--config", "preset:chess")
    assert "nowhere.yaml" in refused(capsys, "train", "--config", "nowhere.yaml")
    tiny = ("train", "--config", "tiny.yaml")
    assert "arguments: --env.naem" in refused(capsys, *tiny, "--env.naem", "catch")
    assert "name must be" in refused(capsys, *tiny, "--env.name", "chess")
    assert "policy.depth must be 1 or 2" in refused(capsys, *tiny, "--policy.depth", "3")
    assert "each once" in refused(capsys, *tiny, "--interactions", "[staggered, staggered]")
    assert not Path("run").exists()


@pytest.mark.parametrize("path", sorted(Path(train_module.__file__).parent.glob("configs/*.yaml")))
def test_every_preset_is_a_configuration(path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--config", f"preset:{path.stem}", "--print_config"])
    assert stop.value.code == 0
    assert "inference_seconds" in capsys.readouterr().out


def test_ctrl_c_leaves_a_run_that_the_same_command_ends(folder, capsys, monkeypatch):
    tell = train_module.Board.tell
    handler = signal.getsignal(signal.SIGINT)

    def interrupt(self, name, row):
        tell(self, name, row)
        if row.get("tick") == 80:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train_module.Board, "tell", interrupt)
    with pytest.raises(SystemExit) as stop:
        main(["train", "--config", "tiny.yaml"])
    assert stop.value.code == 130
    assert "stopped after tick 80 of 160: the same command goes on" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    main(["train", "--config", "tiny.yaml"])
    out = capsys.readouterr().out
    assert "staggered: 120/160" in out
    assert "staggered: 40/160" not in out
    assert signal.getsignal(signal.SIGINT) is handler
    assert Path("run/learning.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def interrupted(monkeypatch):
    """Every process gets Ctrl-C as soon as there is one, as from a terminal while it imports."""
    start = BaseProcess.start

    def start_and_interrupt(process):
        start(process)
        os.kill(process.pid, signal.SIGINT)

    monkeypatch.setattr(BaseProcess, "start", start_and_interrupt)


def test_agents_are_trained_side_by_side_and_compared(folder, capsys, interrupted):
    main(["train", "--config", "tiny.yaml", "--interactions", "[staggered, sequential]"])
    comparison = json.loads(Path("run/comparison.json").read_text())
    assert list(comparison["agents"]) == ["staggered", "sequential"]
    assert comparison["parameters"] == len(read_run(Path("run/staggered"))[1])
    coverage = {name: agent["coverage"] for name, agent in comparison["agents"].items()}
    assert coverage == {"staggered": 1.0, "sequential": pytest.approx(1 / 6, rel=0.1)}
    assert (
        Path("run/comparison.csv")
        .read_text()
        .startswith("agent,trained_ticks,ticks,version,workers,return")
    )
    assert Path("run/comparison.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "sequential: 160/160" in out
    assert "evaluation, without exploration" in out


def test_where_one_agent_fails_the_others_stop_and_it_is_told(folder, capsys):
    Path("run/sequential").mkdir(parents=True)
    Path("run/sequential/config.json").write_text(json.dumps({"env": {"name": "blocks"}}))
    line = refused(
        capsys, "train", "--config", "tiny.yaml", "--run.ticks", "100000",
        "--interactions", "[staggered, sequential]",
    )  # fmt: skip
    assert "run/sequential holds a run with env.name = blocks, but got catch" in line


def children(process):
    path = Path(f"/proc/{process}/task/{process}/children")
    return [int(number) for number in path.read_text().split()]


def is_alive(process):
    path = Path(f"/proc/{process}/stat")
    return path.exists() and path.read_text().split(") ")[1][0] != "Z"


def test_a_run_on_a_wall_clock_that_is_killed_ends_its_learner_and_goes_on(folder, interrupted):
    command = [str(Path(sys.executable).parent / "fox-realtime"), "train", "--config", "tiny.yaml"]
    command += [*WALL, "--run.ticks", "100000"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if " updates " in line and float(line.split(" updates ")[1].split()[0]) > 0:
                break
        below = children(process.pid)
        process.kill()
    assert below
    until = time.monotonic() + 20
    while any(map(is_alive, below)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(is_alive, below))
    rows = read_table(Path("run/metrics.csv"))
    ticks = 40 * (Replay.open(Path("run/replay")).count // 40 + 2)
    main(["train", "--config", "tiny.yaml", *WALL, "--run.ticks", str(ticks)])
    after = read_table(Path("run/metrics.csv"))
    assert after[: len(rows)] == rows
    assert after[-1]["tick"] == ticks
    assert after[-1]["updates"] > 0
    _, weights, version = read_run(Path("run"))
    assert version > 0
    assert np.isfinite(weights).all()


def test_a_learner_that_fails_tells_the_actor_why(folder):
    Path("run/checkpoint").mkdir(parents=True)
    torch.save({"weights": torch.zeros(3), "version": 0}, "run/checkpoint/learner.pt")
    with pytest.raises(
        RuntimeError, match=r"(?s)learner's process raised.*the state to load has 3"
    ):
        main(["train", "--config", "tiny.yaml", *WALL])
