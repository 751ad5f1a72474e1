"""A run: it goes on bit for bit, measures what it says, and its folder is whole."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from episodes import made_up
from saved_runs import save_run

from fox.agents.flat import flattened
from fox.agents.hanabi.config import ActorsConfig, EnvConfig, RunConfig, RunSettings
from fox.agents.hanabi.episode import unpacked
from fox.agents.hanabi.learner import LearnerConfig
from fox.agents.hanabi.network import NetworkConfig
from fox.agents.hanabi.replay import ReplayConfig
from fox.agents.hanabi.run import (
    TEST,
    Progress,
    columns,
    new_net,
    play_greedily,
    read_agent,
    run_agent,
)
from fox.agents.hanabi.selfplay import SelfPlay
from fox.agents.metrics import read_table
from fox.agents.signals import Stopped
from fox.files import read_json, write_json

pytestmark = pytest.mark.usefixtures("engine")

TIMES = ("seconds", "cpu_seconds", "games_per_second")


def small(folder, **run):
    settings = {"games": 64, "report_games": 16, "warmup_games": 8, "test_games": 4}
    settings |= {"evaluation_games": 4, "replay_ratio": 1.5, "folder": str(folder), **run}
    return RunConfig(
        env=EnvConfig("2c2r", [2, 3]),
        network=NetworkConfig(hidden_size=8),
        learner=LearnerConfig(batch_games=4, target_every=5),
        replay=ReplayConfig(capacity=40, alpha=0.5),
        actors=ActorsConfig(wave_games=8),
        run=RunSettings(**settings),
    )


def learn(config, asked=lambda: False):
    rows = []
    return run_agent(config, rows.append, asked), rows


@pytest.fixture(scope="module")
def whole(tmp_path_factory, engine):
    """A run from beginning to end."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, *learn(small(folder))


def state(folder):
    return torch.load(folder / "checkpoint" / "learner.pt", weights_only=True)


def same_run(folder, other):
    ours, theirs = state(folder), state(other)
    for name in ("weights", "target_weights"):
        assert torch.equal(ours["learner"][name], theirs["learner"][name])
    for name in ("games", "turns", "next_wave", "sampled"):
        assert ours["progress"][name] == theirs["progress"][name]
    tables = [read_table(path / "metrics.csv") for path in (folder, other)]
    for a, b in zip(*tables, strict=True):
        assert {k: v for k, v in a.items() if k not in TIMES} == {
            k: v for k, v in b.items() if k not in TIMES
        }


def test_a_run_leaves_metrics_an_evaluation_and_an_agent(whole):
    folder, result, rows = whole
    assert [row["games"] for row in rows] == [16, 32, 48, 64]
    assert list(read_table(folder / "metrics.csv")[0]) == columns([2, 3])
    assert result == read_json(folder / "evaluation.json")
    assert {P: score["trained"] for P, score in result["scores"].items()} == {
        "2p": True,
        "3p": True,
        "4p": False,
    }
    config, net = read_agent(folder)
    assert config == small(folder)
    weights = torch.cat([p.flatten() for p in net.parameters()])
    assert torch.equal(weights, state(folder)["learner"]["weights"])
    assert not torch.equal(weights, torch.cat([p.flatten() for p in new_net(config).parameters()]))


def test_a_row_tells_of_the_games_since_the_row_before(whole):
    folder, _, rows = whole
    config = small(folder)
    play, drawn = SelfPlay(config.plan), flattened(new_net(config)).numpy()
    first = [episode for wave in (0, 1) for episode in play.play(drawn, 0, wave)]
    (path,) = folder.glob("replay/*.npz")
    with np.load(path) as arrays:
        last = unpacked(dict(arrays))[-16:]
    for row, games in ((rows[0], first), (rows[-1], last)):
        for rules in config.env.rules:
            strict = [game.strict_score for game in games if game.rules == rules]
            assert row[f"play_{rules.players}p"] == np.mean(strict)
        assert row["random_rate"] == np.mean(np.concatenate([game.explored for game in games]))


def test_the_last_row_has_the_scores_of_greedy_games_of_the_saved_agent(whole):
    folder, _, rows = whole
    config, net = read_agent(folder)
    for rules in config.env.rules:
        games = play_greedily(net, rules, 4, TEST)
        P = rules.players
        assert rows[-1][f"test_{P}p"] == np.mean([game.strict_score for game in games])
        assert rows[-1][f"keep_{P}p"] == np.mean([game.keep_score for game in games])


def test_games_are_learnt_from_as_often_as_the_ratio_says(whole):
    _, result, rows = whole
    assert result["version"] == int((64 - 8) * 1.5 / 4)
    assert rows[-1]["updates"] == result["version"]
    assert rows[-1]["sampled_per_game"] == pytest.approx(result["version"] * 4 / 64)


def test_a_run_that_was_stopped_goes_on_bit_for_bit(whole, tmp_path):
    waves = iter(range(100))
    with pytest.raises(Stopped, match="stopped after game 24 of 64"):
        learn(small(tmp_path / "run"), lambda: next(waves) == 3)
    learn(small(tmp_path / "run"))
    same_run(tmp_path / "run", whole[0])


def test_a_run_that_was_killed_goes_on_from_its_checkpoint_bit_for_bit(whole, tmp_path):
    folder = tmp_path / "run"
    code = (
        "import sys, time; sys.path.append(sys.argv[1])\n"
        "from test_hanabi_run import small\n"
        "from fox.agents.hanabi.run import run_agent\n"
        "config = small(sys.argv[2], checkpoint_seconds=0)\n"
        "run_agent(config, lambda row: row['games'] < 40 or time.sleep(1000), lambda: False)\n"
    )
    where = os.path.dirname(__file__)
    process = subprocess.Popen([sys.executable, "-c", code, where, str(folder)])
    until = time.monotonic() + 120
    while not (folder / "metrics.csv").is_file() or len(read_table(folder / "metrics.csv")) < 3:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert state(folder)["progress"]["games"] == 40  # and the row of 48 games is played again
    learn(small(folder))
    same_run(folder, whole[0])


def test_an_evaluation_is_made_once(whole):
    folder, result, _ = whole
    before = (folder / "evaluation.json").stat().st_mtime_ns
    again, rows = learn(small(folder))
    assert again == result
    assert rows == []
    assert (folder / "evaluation.json").stat().st_mtime_ns == before


def test_an_evaluation_of_more_games_is_made_anew(whole, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "run")
    result, _ = learn(small(folder, evaluation_games=6))
    assert result["games"] == result["scores"]["2p"]["decks"] == 6
    assert result == read_json(folder / "evaluation.json")


def test_a_run_that_is_stopped_in_its_evaluation_is_evaluated_by_the_same_command(tmp_path):
    config, rows = small(tmp_path / "run", games=16), []
    with pytest.raises(Stopped, match="stopped in the evaluation"):
        run_agent(config, rows.append, lambda: bool(rows))
    assert not (tmp_path / "run" / "evaluation.json").exists()
    result, more = learn(config)
    assert more == []
    assert result["games"] == 4


def test_a_wave_beyond_the_last_game_brings_no_update(tmp_path):
    config = small(tmp_path / "run", games=18, warmup_games=10, test_games=0)
    result, rows = learn(config)
    assert rows[-1]["games"] == 24
    assert result["version"] == config.updates == 3


def test_a_run_begins_with_the_weights_of_the_run_that_it_starts_from(whole):
    config = small("unused", start=str(whole[0]))
    begun = torch.cat([p.flatten() for p in new_net(config).parameters()])
    assert torch.equal(begun, state(whole[0])["learner"]["weights"])
    other = replace(config, network=NetworkConfig(hidden_size=16))
    with pytest.raises(ValueError, match=r"has network.hidden_size = 8, but this one, .* has 16"):
        new_net(other)


def test_a_folder_is_not_taken_for_a_run_that_cannot_begin(tmp_path):
    with pytest.raises(ValueError, match=r"expected a run of fox-hanabi train in .*nowhere"):
        learn(small(tmp_path / "run", start=str(tmp_path / "nowhere")))
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_run_is_refused(whole):
    config = small(whole[0])
    with pytest.raises(ValueError, match=r"learner.gamma = 0.99, but got 0.5: choose another"):
        learn(replace(config, learner=replace(config.learner, gamma=0.5)))


def test_a_run_that_was_stopped_may_go_on_with_processes(tmp_path):
    config = small(tmp_path / "run", games=32, warmup_games=16, test_games=0)
    waves = iter(range(100))
    with pytest.raises(Stopped, match="stopped after game 16 of 32"):
        learn(config, lambda: next(waves) == 2)
    result, rows = learn(replace(config, actors=replace(config.actors, kind="process", workers=2)))
    assert [row["games"] for row in rows] == [32]
    assert result["version"] == 6
    assert rows[-1]["lost_workers"] == 0
    assert "test_2p" not in rows[-1]
    assert read_json(tmp_path / "run" / "config.json")["actors"]["kind"] == "process"


def test_waves_that_come_out_of_order_are_not_played_again():
    progress = Progress()
    for wave in (3, 1):
        progress.add([made_up(number=number) for number in (8 * wave, 8 * wave + 1)], wave_games=8)
    assert progress.next_wave == 4


def test_a_folder_without_a_run_is_named_with_those_inside(whole, tmp_path):
    folder = whole[0]
    with pytest.raises(ValueError, match=r"but found no .*: choose one of .*run"):
        read_agent(folder.parent)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError, match="has saved no weights yet: let it train on"):
        read_agent(tmp_path)


def test_an_agent_is_read_without_the_language_model_that_it_began_with(tmp_path):
    save_run(tmp_path, 0, unit="token")
    path = tmp_path / "config.json"
    config = read_json(path)
    config["network"]["pretrained"] = "gone"
    write_json(path, config)
    assert read_agent(tmp_path)[0].network.pretrained == "gone"


def test_the_seed_draws_the_weights():
    nets = [new_net(small("unused", seed=seed)) for seed in (0, 0, 1)]
    a, b, c = (np.concatenate([p.detach().flatten() for p in net.parameters()]) for net in nets)
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
