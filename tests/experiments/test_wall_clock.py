"""The experiments on the wall clock measure what they say, here with a few short inferences."""

import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "realtime"
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


@pytest.fixture(scope="module", autouse=True)
def scripts():
    """The experiments import each other as files of one folder; so do their workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield


@pytest.fixture(scope="module")
def wall_clock(scripts):
    import wall_clock

    wall_clock.warm_up()
    return wall_clock


@pytest.fixture
def kills(wall_clock, monkeypatch):
    import kills

    monkeypatch.setattr(kills, "CASE", wall_clock.Case(0.05, 6, 2.0, 0.95))
    monkeypatch.setattr(kills, "QUIET", 0.2)
    monkeypatch.setattr(kills, "WINDOW", 0.2)
    return kills


def test_a_case_counts_what_was_executed_and_what_is_left(wall_clock):
    case = wall_clock.Case(0.05, 6, 2.0, 0.5)
    row, curve = wall_clock.run(case, seconds=1.2)
    assert row["ticks"] == case.d + 72
    assert sum(row["sources"].values()) == row["ticks"]
    assert row["sources"]["BETA_RESET"] == case.d
    assert row["mixed_up"] == 0
    assert row["left"] == {"workers": 0, "shared_memory": 0, "files": 0}
    assert len(curve.x) == 72 - 60 + 1
    assert 0 <= min(curve.y) <= max(curve.y) <= 1


def test_what_a_running_case_holds_is_seen(wall_clock):
    before = wall_clock.holdings()
    with wall_clock.staged(wall_clock.Case(0.05, 2, 2.0, None)):
        held = wall_clock.holdings()
    assert held["workers"] - before["workers"] == 2
    assert held["shared_memory"] > before["shared_memory"]
    assert held["files"] > before["files"]


def test_one_worker_acts_once_per_inference(wall_clock):
    row, _ = wall_clock.run(wall_clock.Case(0.2, 1, 1.5, None), seconds=1.2)
    assert 0 < row["coverage"] < 0.12


def test_the_lines_of_acceptance_can_fail(wall_clock):
    case = wall_clock.Case(0.1, 8, 1.5, 0.98)
    row = {"fps": 58.0, "fps_error": -0.03, "mixed_up": 1, "left": {"files": 1}, "coverage": 0.97}
    assert [line.passed for line in wall_clock.acceptance(case, row)] == [False] * 4
    row = {"fps": 59.7, "fps_error": -0.0, "mixed_up": 0, "left": {"files": 0}, "coverage": 0.98}
    assert [line.passed for line in wall_clock.acceptance(case, row)] == [True] * 4


def test_killed_workers_are_counted_and_come_back(kills):
    played = kills.at_once(seconds=1.5)
    row = played.row
    assert row["killed"] == 1 == sum(played.killed.values())
    assert row["events"]["Lost"] == row["events"]["Joined"] == 1
    assert min(played.live) == 5
    assert row["respawn_ticks"] > 0
    assert row["left"] == {"workers": 0, "shared_memory": 0, "files": 0}


def test_the_lines_about_kills_can_fail(kills):
    row = {"overruns": 1, "killed": 2, "mixed_up": 1, "left": {"files": 1}}
    row["events"] = {"Lost": 2, "Joined": 1}
    assert [line.passed for line in kills.acceptance("at once", row)] == [False] * 4
    row = {"overruns": 0, "killed": 2, "mixed_up": 0, "left": {"files": 0}}
    row["events"] = {"Lost": 2, "Joined": 2}
    assert [line.passed for line in kills.acceptance("at once", row)] == [True] * 4


def test_the_kills_are_drawn(kills, tmp_path):
    pytest.importorskip("matplotlib")
    played = kills.at_random(seconds=1.2)
    json.dumps(played.row, allow_nan=False)
    kills.draw(tmp_path / "kills.png", (played, played))
    assert (tmp_path / "kills.png").stat().st_size > 10_000
