"""fox-hanabi train: what it prints and leaves behind, Ctrl-C, and the presets."""

import shlex
import signal
from pathlib import Path

import pytest
import yaml

from fox.agents.hanabi import train as module
from fox.agents.hanabi.cli import main
from fox.agents.metrics import read_table
from fox.files import read_json

CONFIG = """
env: {game: 2c2r, players: [2, 3]}
network: {hidden_size: 8}
learner: {batch_games: 4}
actors: {wave_games: 8}
run: {folder: run, games: 48, warmup_games: 8, replay_ratio: 2, report_games: 16, test_games: 2,
      evaluation_games: 4}
"""
TRAIN = ["train", "--config", "tiny.yaml"]
PRESETS = sorted(Path(module.__file__).parent.glob("configs/*.yaml"))


@pytest.fixture
def folder(tmp_path, monkeypatch, engine):
    """The working directory, with a configuration of seconds."""
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(CONFIG)
    return tmp_path


def test_a_run_prints_its_rows_and_scores_and_leaves_a_picture(folder, capsys):
    main(TRAIN)
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("2c2r with 2, 3 players, ")
    assert first.endswith(" weights, 48 games, 20 updates, all in run")
    rows, scores = read_table(Path("run/metrics.csv")), read_json(Path("run/evaluation.json"))
    for line, row in zip(lines, rows, strict=False):
        tests = "  ".join(f"{P}p {row[f'test_{P}p']:.2f}" for P in (2, 3))
        assert line.startswith(f"{row['games']:.0f} games  {tests}  updates {row['updates']:.0f}  ")
        assert f"  random {row['random_rate']:.1%}  " in line
    assert lines[3].strip() == "greedy self-play, 4 games each"
    for players, line in zip(("2", "3", "4 *"), lines[6:9], strict=True):
        score = scores["scores"][f"{players[0]}p"]
        half = score["strict_high"] - score["strict"]
        assert line.startswith(f"{players} ")
        assert f" {score['strict']:.2f} ± {half:.2f} " in line
    assert lines[-1] == "all in run"
    assert Path("run/learning.png").read_bytes().startswith(b"\x89PNG")


def test_ctrl_c_leaves_a_run_that_the_same_command_ends(folder, capsys, monkeypatch):
    tell = module.Board.tell
    handler = signal.getsignal(signal.SIGINT)

    def interrupt(self, row):
        tell(self, row)
        if row["games"] == 16:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(module.Board, "tell", interrupt)
    with pytest.raises(SystemExit) as stop:
        main(TRAIN)
    assert stop.value.code == 130
    assert "stopped after game 16 of 48: the same command goes on" in capsys.readouterr().out
    assert not Path("run/evaluation.json").exists()
    main(TRAIN)
    out = capsys.readouterr().out
    assert "\n32 games" in out
    assert "\n16 games" not in out
    assert signal.getsignal(signal.SIGINT) is handler
    assert Path("run/evaluation.json").is_file()


def settings(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--print_config"])
    assert stop.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_a_configuration(path, capsys):
    found = settings(capsys, "train", "--config", f"preset:{path.stem}")
    for part, values in yaml.safe_load(path.read_text()).items():
        assert values.items() <= found[part].items()


def test_the_command_for_a_larger_network_is_one(capsys):
    (text,) = (path.read_text() for path in PRESETS if path.stem == "full")
    words = shlex.split(text.split("env:")[0].replace("\\\n#", " ").replace("#", " "))
    command = words[len(words) - words[::-1].index("fox-hanabi") :]
    found = settings(capsys, *command)
    assert found["network"]["hidden_size"] == 128
    assert found["run"]["folder"] == "runs/full-large"
