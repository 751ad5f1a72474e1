"""fox-realtime regret reads runs, and says where their rewards were lost."""

import csv
import json
import shutil
from functools import partial
from itertools import count

import numpy as np
import pytest

from fox.agents.realtime.agent import Agent
from fox.agents.realtime.behaviour import beta
from fox.agents.realtime.cli import main
from fox.agents.realtime.decomposition import TrainedReference, decompose
from fox.agents.realtime.envs.catch import CatchRT
from fox.agents.realtime.regret import read_played
from fox.agents.realtime.replay import _COLUMN_OF_FIELD, Replay
from fox.agents.realtime.run import read_run
from fox.agents.signals import Stopped

pytest.importorskip("matplotlib")


def stopped(small_run, folder, at, ticks):
    """A run that was stopped once, and then went on to its end."""
    asked = count(1)
    with pytest.raises(Stopped):
        small_run(folder, "staggered", ticks, lambda: next(asked) > at)
    small_run(folder, "staggered", ticks)
    return folder


def test_the_regret_of_runs_is_written_drawn_and_told(runs, capsys):
    main(["regret", str(runs), "--block_ticks", "128"])
    with (runs / "regret.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], int(row["tick"])) for row in rows] == [
        (run, 128 * block) for run in ("sequential", "staggered") for block in (1, 2, 3, 4)
    ]
    for row in rows:
        parts = [float(row[part]) for part in ("delay", "inaction", "learning")]
        assert sum(parts) == float(row["total"])
    told = json.loads((runs / "regret.json").read_text())
    staggered, sequential = (told["runs"][name] for name in ("staggered", "sequential"))
    assert (staggered["reference"], staggered["ticks"]) == ("aware oracle", 512)
    assert staggered["lost_per_second"]["inaction"] == [0, 0, 0]
    assert (staggered["tau_i_ticks"], sequential["tau_i_ticks"]) == (1, 6)
    assert sequential["beta_share"] == pytest.approx(sequential["predicted_beta_share"], abs=0.01)
    assert "share of ticks by beta" in capsys.readouterr().out
    assert (runs / "regret.png").read_bytes()[:4] == b"\x89PNG"


def test_the_rewards_of_the_run_are_those_of_its_log(runs):
    config, *_ = read_run(runs / "sequential")
    env = config.env.make()
    played, ticks = read_played(runs / "sequential", env, config.run.seed)
    assert ticks == len(played.reward) == 512
    env.reset(config.run.seed)
    actions = Replay.open(runs / "sequential" / "replay").column("action_t").tolist()
    assert played.reward.tolist() == [env.step(action)[1] for action in actions]


@pytest.mark.parametrize("interaction", ["sequential", "staggered"])
def test_a_trained_reference_sees_and_does_under_the_runs_schedule_what_the_run_did(
    small_run, tmp_path, interaction
):
    tokens, actions = [], []

    class Noting(TrainedReference):
        def see(self, env, token):
            tokens.append(token.copy())
            return super().see(env, token)

    class Recording(CatchRT):
        def step(self, action):
            actions.append(action)
            return super().step(action)

    world = {"gusts": 0.01, "lives": 2}
    frozen = {"first": 0.0, "last": 0.0}
    never = {"updates_per_tick": 0.0, "seed": 1}
    small_run(tmp_path, interaction, 384, env=world, exploration=frozen, run=never)
    config, weights, version = read_run(tmp_path)
    env = Recording(**world)
    played, _ = read_played(tmp_path, env, 1)
    behaviour = beta("noop", n_actions=3, noop=0, seed=1)
    reference = partial(Noting, Agent(config), weights, version)
    regret = decompose(env, reference, played, behaviour, 1)
    log = Replay.open(tmp_path / "replay")
    assert actions[-384:] == log.column("action_t").tolist()  # of the last of the three plays
    for field, column in _COLUMN_OF_FIELD.items():
        seen = [token[field] for token in tokens[-384:]]
        assert np.array_equal(seen, log.column(column))
    assert played.episode[-1] > 0
    assert len(set(actions[-384:])) > 1
    assert played.reward.any()
    assert not regret.learning.any()


def test_only_what_came_before_a_stop_counts_since_the_world_went_on(small_run, tmp_path, capsys):
    stopped(small_run, tmp_path / "run", 300, 512)
    main(["regret", str(tmp_path / "run")])
    about = json.loads((tmp_path / "run" / "regret.json").read_text())["runs"]["run"]
    assert (about["ticks"], about["of_ticks"]) == (300, 512)
    assert "run: the first 300 of 512 ticks; the run was stopped" in " ".join(
        capsys.readouterr().out.split()
    )


def test_regret_says_what_is_missing(runs, tmp_path, capsys):
    def error(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(["regret", *arguments])
        assert stop.value.code == 2
        return capsys.readouterr().err

    assert "expected a run, or a folder of runs, in" in error(str(tmp_path))
    other = tmp_path / "run"
    shutil.copytree(runs / "staggered", other)
    config = json.loads((other / "config.json").read_text())
    config["env"]["gusts"] = 0.5
    (other / "config.json").write_text(json.dumps(config))
    words = error(str(runs / "staggered"), "--reference", str(other))
    assert "was trained in another world" in words
    config["env"] |= {"name": "blocks", "gusts": None}
    (other / "config.json").write_text(json.dumps(config))
    assert "there is no oracle for 'blocks': name a trained run as the reference" in error(
        str(other)
    )
