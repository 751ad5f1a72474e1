"""The experiments with learning Hanabi agents: their runs are presets, their claims have bounds."""

import importlib.util
from pathlib import Path

import pytest

from fox.files import read_json

FOLDER = Path(__file__).parents[2] / "experiments" / "hanabi"


def module(name):
    spec = importlib.util.spec_from_file_location(f"hanabi_{name}", FOLDER / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def learning():
    return module("learning")


def runs_of(learning, scores, cpu_seconds=50):
    """Runs of every kind with these strict scores by seed, for every number of players."""
    return [
        {"kind": name, "seed": seed, "cpu_seconds": cpu_seconds}
        | {"scores": {f"{P}p": {"strict": score} for P in (2, 3, 4)}}
        | {
            "curve": [
                {"games": n, "cpu_seconds": 10.0 * n}
                | {f"test_{P}p": score * n / 2 for P in kind.players}
                for n in (1, 2)
            ]
        }
        for name, kind in learning.KINDS.items()
        for seed, score in enumerate(scores)
    ]


def test_kinds_differ_in_what_they_say(learning, tmp_path):
    runs = {name: learning.config(name, 1, tmp_path) for name in learning.KINDS}
    assert runs["mini, FoX memory"].env.game == "2c2r"
    assert {runs[f"mini, {memory} memory"].network.memory for memory in ("FoX", "LSTM", "no")} == {
        "fox",
        "lstm",
        "none",
    }
    assert runs["small, never with 3"].env.players == [2, 4]
    assert runs["small, never with 3"].run.games < runs["small, FoX memory"].run.games
    assert {(run.network.unit, run.run.seed) for run in runs.values()} == {("clause", 1)}


def test_what_was_asked_for_is_a_mean_over_seeds_within_the_budget(learning):
    lines = learning.acceptance(runs_of(learning, (4.7, 4.6, 4.5)))
    assert all(line.passed for line in lines)
    low = learning.acceptance(runs_of(learning, (4.7, 4.6, 4.2)))
    missed = [line.wanted for line in low if not line.passed]
    assert missed == ["small, FoX memory, 2 players: 4.6 or more"]
    slow = learning.acceptance(runs_of(learning, (5.0, 5.0, 5.0), cpu_seconds=2500))
    assert [line.measured for line in slow if not line.passed] == [2500, 2500]


def test_the_table_marks_what_was_never_seen(learning):
    rows = learning.table(runs_of(learning, (1.0, 2.0, 3.0)))
    unseen = {row["players"] for row in rows if row["kind"] == "small, never with 3"} - {
        row["players"] for row in rows if row["trained"] and row["kind"] == "small, never with 3"
    }
    assert unseen == {3}
    assert {row["strict"] for row in rows} == {2.0}


def test_pictures_are_drawn(learning, tmp_path):
    pytest.importorskip("matplotlib")
    learning.draw(tmp_path / "learning.png", runs_of(learning, (1.0, 2.0, 3.0)))
    rows = [{"games": n, **{f"{key}_2p": n / 9 for key in ("keep", "test")}} for n in (1, 2)]
    full = [{"kind": kind, "curve": rows} for kind in ("one", "other")]
    module("full").draw(tmp_path / "full.png", full, [2])
    runs = [
        {"kind": kind, "curve": [{"games": n, "test_2p": n / 2} for n in (1, 2)]}
        for kind in ("drawn", "pretrained")
    ]
    module("pretraining").draw(tmp_path / "pretraining.png", runs, [2])
    assert (tmp_path / "learning.png").stat().st_size > 10_000
    assert (tmp_path / "full.png").stat().st_size > 10_000
    assert (tmp_path / "pretraining.png").stat().st_size > 10_000


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_results_say_how_they_came_about(path):
    results = FOLDER / "results" / f"{path.stem}.json"
    if not results.is_file():
        pytest.skip("it was not run to its end yet")
    found = read_json(results)
    assert found["command"] == f"python experiments/hanabi/{path.name}"
    assert not found["machine"]["commit"].endswith("-dirty")
