"""Return against model size: oracles that plan their held actions, clones that act, the table."""

import json
from pathlib import Path

import numpy as np
import pytest

from fox.agents.realtime.envs.catch import PADDLE_MAX, PADDLE_MIN, CatchRT
from fox.agents.realtime.envs.oracles import plain_oracle

FOLDER = Path(__file__).parents[2] / "experiments" / "realtime"


@pytest.fixture(scope="module", autouse=True)
def scripts():
    """The experiments import each other as files of one folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield


@pytest.fixture(scope="module")
def imitation(scripts):
    import imitation

    return imitation


@pytest.fixture(scope="module")
def size(scripts):
    import size

    return size


def oracle_return(imitation, schedule, balls=20):
    ticks = 128 * balls
    lasts = np.full(ticks, (schedule.d - 0.5) * imitation.STEP_SECONDS)
    head = imitation.OracleHead(schedule.hold)
    play = imitation.play(schedule, imitation.OracleWorker, head, lasts, ticks=ticks, seed=3)
    return play.rewards.sum() / balls


def test_an_action_of_one_tick_is_the_plain_oracles(imitation):
    for px in range(PADDLE_MIN + 2, PADDLE_MAX, 2):  # at a wall, noop moves no less
        for bx in range(8, 151):
            assert imitation.planned(1, px, bx, 90) == plain_oracle(px, bx)


def test_positions_are_read_from_features_exactly(imitation):
    env = CatchRT()
    for action in np.random.default_rng(0).integers(0, 3, 500):
        obs = env.step(int(action))[0]
        assert imitation.pixels(obs).tolist() == [env.px, env.bx, env.by]


def test_an_oracle_that_plans_its_held_actions_catches_what_the_naive_one_misses(imitation):
    assert oracle_return(imitation, imitation.Schedule(19, 1, "repeat")) > 0.9
    naive = imitation.OracleHead(1)
    schedule = imitation.Schedule(19, 1, "repeat")
    lasts = np.full(2560, 18 * imitation.STEP_SECONDS)
    play = imitation.play(schedule, imitation.OracleWorker, naive, lasts, ticks=2560, seed=3)
    assert play.rewards.sum() / 20 < 0.6


def test_only_the_staggered_oracle_keeps_its_return_at_any_delay(imitation):
    for d in (3, 19, 66):
        assert oracle_return(imitation, imitation.Schedule(d, d, "noop")) == 1.0
    falling = [oracle_return(imitation, imitation.Schedule(d, 1, "noop")) for d in (1, 7, 66)]
    assert falling[0] == 1.0
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] < 0


def test_the_plays_to_learn_from_show_what_was_executed(imitation):
    plays = imitation.perturbed_plays((2, 5), 300, seed=1)
    assert plays.actions.shape == (6, 300)
    np.testing.assert_array_equal(plays.tokens["action"][:, 1:], plays.actions[:, :-1])
    assert (imitation.perturbed_plays((2, 5), 300, seed=2).actions != plays.actions).any()


def test_sizes_ask_for_the_delay_that_their_durations_keep(size):
    sizing = {one.family[:3] + f"{one.millions:g}": one.sizing() for one in size.SIZES}
    assert {name: one.d for name, one in sizing.items()} == {
        "FoX0.9": 1,
        "FoX10.6": 3,
        "FoX25": 7,
        "FoX99": 19,
        "IMP0.9": 1,
        "IMP10.4": 6,
        "IMP104.7": 67,
    }
    assert sizing["IMP104.7"].workers >= 0.979 * 60


@pytest.fixture(scope="module")
def small(size, tmp_path_factory):
    """The experiment at two sizes, with few balls."""
    pytest.importorskip("matplotlib")
    sizes = (size.Size("FoX", 1, 0.005), size.Size("FoX", 100, 0.2))
    settings = size.Settings(seeds=2, data_ticks=300, steps=8, balls=2)
    folder = tmp_path_factory.mktemp("size")

    def run():
        size.experiment(sizes, settings, folder / "work", folder, jobs=1)

    run()
    return run, folder


def test_rows_tell_delay_workers_and_cost(small):
    found = json.loads((small[1] / "size.json").read_text())
    assert len(found["rows"]) == 2 * 2 * 4
    rows = {(row["millions"], row["agent"]): row for row in found["rows"] if row["seed"] == 1}
    slow, sequential = rows[100, "staggered, late head"], rows[100, "sequential, noop"]
    assert slow["d"] == sequential["d"] == 14
    assert sequential["workers"] == 1
    assert slow["policy_ticks"] > 0.9  # all but the first d, and the late
    assert sequential["policy_ticks"] < 0.1
    assert slow["core_seconds_per_tick"] == pytest.approx(0.2, rel=0.05)
    assert sequential["core_seconds_per_tick"] < 1 / 60
    assert all(row["oracle"] == 1.0 for row in found["rows"] if row["agent"][:4] == "stag")
    assert (small[1] / "size.png").stat().st_size > 10_000


def test_too_few_seeds_fail_the_acceptance(small):
    lines = json.loads((small[1] / "size.json").read_text())["acceptance"]
    assert lines[-1] == {
        "wanted": "intervals over at least 5 seeds",
        "measured": 2,
        "passed": False,
    }


def test_a_stopped_run_computes_only_what_is_missing(size, small, monkeypatch):
    run, folder = small
    before = json.loads((folder / "size.json").read_text())["rows"]
    (folder / "work" / "delay-1-seed-0.json").unlink()
    cases = []
    whole = size.run_case
    monkeypatch.setattr(size, "run_case", lambda case: cases.append(case) or whole(case))
    run()
    assert [(case.d, case.seed) for case in cases] == [(1, 0)]
    assert json.loads((folder / "size.json").read_text())["rows"] == before


def test_acceptance_sees_a_staggered_agent_that_is_worse(size):
    rows = [
        {"family": "FoX", "millions": millions, "agent": agent, "seed": seed, "return": value}
        for seed in range(5)
        for millions, values in ((1, (1, 1, 1, 1)), (100, (0, 0.5, 0.25, 1)))
        for agent, value in zip(
            size.AGENTS, np.array(values) + 0.01 * seed * (seed % 2), strict=True
        )
    ]
    lines = {line.wanted.partition(" at")[0]: line for line in size.acceptance(size.Table(rows))}
    passed = {wanted: line.passed for wanted, line in lines.items()}
    assert passed["staggered, plain head >= sequential, noop"]
    assert not passed["staggered, plain head >= sequential, repeat"]
    assert passed["staggered, late head >= sequential, repeat"]
    falls = [line for line in lines.values() if "falls" in line.wanted]
    assert [line.passed for line in falls] == [True, True]
