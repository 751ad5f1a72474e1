"""A run in its folder: it repeats in virtual time, goes on after a stop, and refuses another's."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

from fox.agents.metrics import read_table
from fox.agents.realtime.agent import Agent, GreedyHead, playing
from fox.agents.realtime.behaviour import SmallPolicy
from fox.agents.realtime.config import (
    ExplorationConfig,
    RunConfig,
    RunSettings,
    ScheduleConfig,
)
from fox.agents.realtime.envs.config import EnvConfig
from fox.agents.realtime.learner import LearnerConfig
from fox.agents.realtime.policy import PolicyConfig
from fox.agents.realtime.replay import Replay
from fox.agents.realtime.run import evaluate, read_run, run_agent
from fox.agents.realtime.ticks import Source
from fox.agents.signals import Stopped
from fox.agents.weights import WeightBuffers
from fox.files import locked

TICKS = 240
TIMES = {"fps"}


def tiny(folder, **parts):
    """A run of seconds: 240 ticks in virtual time, 6 ticks of delay, 36 updates."""
    config = RunConfig(
        env=EnvConfig("catch"),
        policy=PolicyConfig(hidden_size=16, num_hidden_layers=1, num_heads=1, window=8, d_max=8),
        schedule=ScheduleConfig(clock="virtual", inference_seconds=0.1),
        learner=LearnerConfig(batch_size=4, burn_in=8, train=8, learning_rate=1e-3),
        exploration=ExplorationConfig(decay_ticks=200),
        run=RunSettings(
            folder=str(folder),
            ticks=TICKS,
            evaluation_ticks=150,
            updates_per_tick=0.2,
            warmup_ticks=60,
            report_ticks=40,
            checkpoint_ticks=100,
        ),
    )
    for name, changes in parts.items():
        config = replace(config, **{name: replace(getattr(config, name), **changes)})
    return config


def run(config, asked=lambda: False):
    """The evaluation, and the rows that were told."""
    rows = []
    return run_agent(config, rows.append, asked), rows


def after(ticks):
    """Asks for a stop after so many ticks."""
    calls = iter(range(1, 10**9))
    return lambda: next(calls) > ticks


def columns(folder):
    replay = Replay.open(folder / "replay")
    names = [path.stem for path in sorted((folder / "replay").glob("*.npy"))]
    return replay.count, {name: np.load(folder / "replay" / f"{name}.npy") for name in names}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run's folder, its evaluation and its rows."""
    folder = tmp_path_factory.mktemp("run")
    return folder, *run(tiny(folder))


def test_a_run_in_virtual_time_repeats_bit_for_bit(finished, tmp_path):
    folder, evaluation, rows = finished
    again, rows_again = run(tiny(tmp_path))
    timeless = lambda row: {key: row[key] for key in row if key not in TIMES}  # noqa: E731
    assert timeless(again) == timeless(evaluation)
    assert [timeless(row) for row in rows_again] == [timeless(row) for row in rows]
    np.testing.assert_array_equal(read_run(tmp_path)[1], read_run(folder)[1])
    for name, column in columns(folder)[1].items():
        np.testing.assert_array_equal(columns(tmp_path)[1][name], column, err_msg=name)


def test_another_seed_gives_another_run(finished, tmp_path):
    folder, *_ = finished
    run(tiny(tmp_path, run={"seed": 1}))
    assert not np.array_equal(read_run(tmp_path)[1], read_run(folder)[1])


def test_a_run_learns_at_its_pace_and_acts_with_what_it_has_learnt(finished):
    _, evaluation, rows = finished
    training = [row for row in rows if "tick" in row]
    assert [row["tick"] for row in training] == list(range(40, TICKS + 1, 40))
    assert [row["updates"] for row in training] == [0, 4, 12, 20, 28, 36]
    assert all(row["coverage"] == 1 and row["delay_ticks"] == 6 for row in training)
    assert 0 < training[-1]["weight_age"] < 10 + 6 * 0.2 + 1
    assert training[-1]["loss"] > 0
    assert evaluation["version"] == evaluation["trained_ticks"] * 0.2 - 12 == 36
    assert evaluation["workers"] == 7
    assert evaluation["counters"]["sources"]["POLICY"] == 150 - 6


def test_the_metrics_on_disk_are_those_that_were_told(finished):
    folder, evaluation, rows = finished
    training = [row for row in rows if "tick" in row]
    on_disk = read_table(folder / "metrics.csv")
    assert len(on_disk) == len(training)
    for read, told in zip(on_disk, training, strict=True):
        assert {name: read[name] for name in told} == told
    assert json.loads((folder / "evaluation.json").read_text()) == evaluation


def test_a_finished_run_is_not_run_again(finished):
    folder, evaluation, _ = finished
    before = (folder / "checkpoint" / "learner.pt").stat().st_mtime_ns
    again, rows = run(tiny(folder))
    assert again == evaluation
    assert rows == []
    assert (folder / "checkpoint" / "learner.pt").stat().st_mtime_ns == before


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path):
    with pytest.raises(Stopped, match="stopped after tick 130 of 240"):
        run(tiny(tmp_path), after(130))
    count, before = columns(tmp_path)
    assert count == 130
    _, learnt, version = read_run(tmp_path)
    with pytest.raises(Stopped, match="stopped after tick 130 of 240"):
        run(tiny(tmp_path), after(0))
    assert read_run(tmp_path)[2] == version == 14
    np.testing.assert_array_equal(read_run(tmp_path)[1], learnt)
    world = torch.load(tmp_path / "checkpoint" / "world.pt", weights_only=True)["world"]
    evaluation, _ = run(tiny(tmp_path))
    count, rows = columns(tmp_path)
    assert count == TICKS
    for name in before:
        if name != "count":
            np.testing.assert_array_equal(rows[name][:130], before[name][:130], err_msg=name)
    assert rows["tick"][:TICKS].tolist() == list(range(TICKS))
    assert rows["start"][:TICKS].nonzero()[0].tolist() == [0, 130]
    assert (rows["source_t"][:TICKS] != Source.POLICY).nonzero()[0].tolist() == [
        *range(6),
        *range(130, 136),
    ]
    assert (rows["episode"][:TICKS] == np.where(np.arange(TICKS) < 130, 0, 1)).all()
    assert rows["obs"][130][0] == pytest.approx((world["px"] - 76) / 68)
    assert rows["obs"][130][2] == pytest.approx((world["by"] - 80) / 64)
    assert evaluation["version"] == 36
    ticks = [row["tick"] for row in read_table(tmp_path / "metrics.csv")]
    assert ticks == list(range(40, TICKS + 1, 40))


def test_a_killed_run_goes_on_in_an_episode_that_the_log_has_not_seen(tmp_path):
    short = {"env": {"lives": 1}, "run": {"checkpoint_ticks": 1000}}
    with pytest.raises(Stopped):
        run(tiny(tmp_path, **short), after(230))
    (tmp_path / "checkpoint" / "world.pt").unlink()  # killed before the first checkpoint
    run(tiny(tmp_path, **short))
    _, rows = columns(tmp_path)
    starts = rows["start"][:TICKS].nonzero()[0]
    assert 230 in starts
    assert rows["episode"][starts].tolist() == list(range(len(starts)))


def test_a_folder_whose_run_goes_on_keeps_its_configuration(finished):
    folder, *_ = finished
    before = (folder / "config.json").read_text()
    with (
        locked(folder, "not taken"),
        pytest.raises(ValueError, match=r"another process is at the run in .*: stop it first"),
    ):
        run(tiny(folder, run={"ticks": 900}))
    assert (folder / "config.json").read_text() == before


def test_a_longer_run_goes_on_and_is_evaluated_anew(tmp_path):
    short, _ = run(tiny(tmp_path, run={"ticks": 100}))
    longer, _ = run(tiny(tmp_path, run={"ticks": 140}))
    assert (short["trained_ticks"], longer["trained_ticks"]) == (100, 140)


def test_a_torn_last_row_of_the_metrics_is_forgotten(tmp_path):
    run(tiny(tmp_path, run={"ticks": 80}))
    path = tmp_path / "metrics.csv"
    whole = path.read_text()
    path.write_text(whole[:-9])
    run(tiny(tmp_path, run={"ticks": 120}))
    assert path.read_text().startswith(whole[: whole.rstrip().rfind("\n") + 1])
    assert [row["tick"] for row in read_table(path)] == [40, 120]


def test_a_folder_with_another_run_is_refused(finished):
    folder, *_ = finished
    with pytest.raises(ValueError, match=r"holds a run with policy.window = 8, but got 4: choose"):
        run(tiny(folder, policy={"window": 4}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": {"warmup_ticks": 20}}, r"has 23 ticks .* run.warmup_ticks is 20: raise it"),
        ({"run": {"replay_ticks": 20}}, r"has 23 ticks .* run.replay_ticks is 20: raise it"),
        ({"schedule": {"delay_ticks": 5}}, r"of 0.1 s takes 6 ticks: nothing would be in time"),
        ({"schedule": {"delay_ticks": 9}}, r"would be 9 ticks old, but .* policy.d_max = 8"),
        ({"exploration": {"first": 2.0}}, "epsilon is a probability"),
        ({"schedule": {"beta": "nop"}}, r"must be noop, repeat, random or .* but got 'nop'"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused_before_there_is_a_folder(
    tmp_path, changes, message
):
    with pytest.raises(ValueError, match=message):
        run(tiny(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_run_or_without_weights_is_told_apart(tmp_path):
    with pytest.raises(ValueError, match="expected a run of fox-realtime train"):
        read_run(tmp_path)
    with pytest.raises(Stopped):
        run(tiny(tmp_path), after(0))
    (tmp_path / "checkpoint" / "learner.pt").unlink()
    with pytest.raises(ValueError, match="has saved no weights yet"):
        read_run(tmp_path)


def test_a_folder_of_runs_is_no_run_but_names_them(finished):
    folder, *_ = finished
    with pytest.raises(ValueError, match=f"but found no .*: choose one of .*{folder.name}"):
        read_run(folder.parent)


def test_the_evaluation_can_be_watched_and_stopped(finished):
    folder, *_ = finished
    config, weights, version = read_run(folder)
    agent = Agent(config)
    with pytest.raises(Stopped, match="stopped in the evaluation, after tick 20 of 150"):
        evaluate(agent, weights, version, 150, asked=after(19))


def test_sequential_play_has_one_worker_and_acts_once_per_delay(finished):
    folder, *_ = finished
    config = tiny(folder, schedule={"interaction": "sequential"})
    agent = Agent(config)
    row = evaluate(agent, agent.weights, 0, 120)
    assert (row["workers"], row["delay_ticks"]) == (1, 6)
    assert row["counters"]["sources"]["POLICY"] == 120 / 6 - 1
    assert row["coverage"] == pytest.approx(1 / 6)


def test_a_sequential_agents_targets_reach_to_its_next_decision(tmp_path, monkeypatch):
    asked = set()
    sample = Replay.sample

    def told(replay, generator, **options):
        asked.add(options["n_step"])
        return sample(replay, generator, **options)

    monkeypatch.setattr(Replay, "sample", told)
    run(tiny(tmp_path, schedule={"interaction": "sequential"}))
    source = np.load(tmp_path / "replay" / "source_t.npy")[:TICKS]
    assert asked == set(np.diff(np.flatnonzero(source == Source.POLICY)))


def test_another_runs_policy_can_be_the_default_behaviour(finished):
    folder, *_ = finished
    slow = {"interaction": "sequential", "fps": 2.0, "inference_seconds": 2.0}
    agent = Agent(tiny(folder, schedule={"beta": str(folder), **slow}))
    weights = WeightBuffers(len(agent.weights), 1, shared=False)
    weights.publish(agent.weights, 0)
    with playing(agent, weights, 4) as interaction:
        small = interaction.behaviour
        assert [interaction.tick().source for _ in range(9)].count(Source.POLICY) == 2
    assert (type(small), small.d) == (SmallPolicy, Agent(tiny(folder)).size()[0])
    learnt = parameters_to_vector(small.policy.parameters()).detach().numpy()
    np.testing.assert_array_equal(learnt, read_run(folder)[1])


def test_a_run_whose_default_behaviour_looks_farther_back_plays_and_goes_on(finished, tmp_path):
    folder, *_ = finished
    beta = {"beta": str(folder), "fps": 2.0, "inference_seconds": 0.5, "interaction": "sequential"}
    policy, ticks = {"window": 2}, {"ticks": 100, "evaluation_ticks": 20, "updates_per_tick": 0}
    config = tiny(tmp_path, schedule=beta, policy=policy, run=ticks)
    with pytest.raises(Stopped):
        run(config, after(60))
    run(config)
    assert columns(tmp_path)[0] == 100


def test_a_policy_for_another_world_is_no_default_behaviour(finished):
    folder, *_ = finished
    config = replace(tiny(folder, schedule={"beta": str(folder)}), env=EnvConfig("blocks"))
    agent = Agent(config)
    weights = WeightBuffers(len(agent.weights), 1, shared=False)
    with (
        pytest.raises(ValueError, match=r"schedule.beta: the run in .* other observations or"),
        playing(agent, weights, 6),
    ):
        pass


@pytest.mark.parametrize("cache", ["catchup", "wavefront"])
def test_workers_with_a_memory_play_as_those_that_read_again(finished, cache):
    folder, *_ = finished

    def actions(kind):
        agent = Agent(tiny(folder, policy={"cache": kind, "window": 64, "history": 64}))
        steps = []
        evaluate(agent, agent.weights, 0, 60, watch=lambda interaction: steps.append)
        return [step.action for step in steps]

    assert actions(cache) == actions("window")
    assert len(set(actions(cache))) > 1


def test_the_head_takes_the_newest_weights_at_every_call():
    agent = Agent(tiny(Path("unused")))
    weights = WeightBuffers(len(agent.weights), 1, shared=False)
    head = GreedyHead(agent.policy(), weights)
    flat = np.zeros_like(agent.weights)
    for action in (2, 0, 1):
        flat[-3:] = np.eye(3)[action]  # the last parameter is the bias of the Q values
        weights.publish(flat, head.version + 1)
        assert head.act(np.ones(16, np.float32), np.array([0, 1]), agent.observation) == action


def test_delay_and_workers_follow_the_measured_durations():
    config = tiny(Path("unused"), schedule={"clock": "wall", "inference_seconds": 0.05})
    agent = Agent(config)
    assert min(agent.durations()) >= 0.05
    d, workers = agent.size()
    assert 4 <= d <= 8
    assert 5 <= workers <= 9
    fixed = Agent(tiny(Path("unused"), schedule={"delay_ticks": 7, "workers": 2}))
    assert fixed.size() == (7, 2)


def test_a_plain_head_plays_at_any_measured_delay():
    plain = {"head": "plain", "d_max": 8}
    slow = {"clock": "wall", "inference_seconds": 0.2, "workers": 1}
    agent = Agent(tiny(Path("unused"), policy=plain, schedule=slow))
    d, workers = agent.size()
    weights = WeightBuffers(len(agent.weights), workers, shared=False)
    weights.publish(agent.weights, 0)
    with playing(agent, weights, d) as interaction:
        assert interaction.tick().delay == d > 8
