"""The experiment on regret passes what adds up, and fails what does not."""

import csv
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "realtime"
TICKS = 128 * np.arange(1, 51)
ABOUT = {"beta_share": 0.9583, "predicted_beta_share": 23 / 24}


@pytest.fixture
def regret(monkeypatch):
    """The script, which imports its neighbours."""
    monkeypatch.syspath_prepend(FOLDER)
    import regret

    return regret


def runs(**staggered):
    """Two runs that lose by delay, by inaction (the sequential one) and by learning."""
    delay, learning = 0.01 * TICKS, np.sqrt(TICKS)
    first = {"tick": TICKS, "delay": delay, "inaction": 0.25 * TICKS, "learning": learning}
    second = first | {"inaction": 0.0 * TICKS} | staggered
    found = {}
    for name, run in (("sequential", first), ("staggered", second)):
        total = run["delay"] + run["inaction"] + run["learning"]
        found[name] = run | {"inaction_low": run["inaction"] - 1, "total": total}
    return found


def failed(lines):
    return [line.wanted.split(":")[0].split(" (")[0] for line in lines if not line.passed]


def test_parts_that_add_up_pass(regret):
    lines = regret.acceptance(runs(), {"sequential": ABOUT})
    assert failed(lines) == []
    assert len(lines) == 6


def test_each_line_can_fail(regret):
    wrong = runs()
    wrong["staggered"]["total"] = wrong["staggered"]["total"] + 1
    assert failed(regret.acceptance(wrong, {"sequential": ABOUT})) == [
        "the parts sum to the regret"
    ]
    idle = regret.acceptance(runs(inaction=0.1 * TICKS), {"sequential": ABOUT})
    assert failed(idle) == ["staggered"]
    later = regret.acceptance(runs(delay=0.02 * TICKS), {"sequential": ABOUT})
    assert failed(later) == ["the delay part is the same in both"]
    shares = regret.acceptance(runs(), {"sequential": ABOUT | {"beta_share": 0.5}})
    assert failed(shares) == ["sequential"]
    saturating = runs()
    saturating["sequential"]["inaction"] = 1000 * np.tanh(TICKS / 1000)
    saturating["sequential"]["inaction_low"] = 0 * TICKS
    assert "sequential" in failed(regret.acceptance(saturating, {"sequential": ABOUT}))


def test_curves_are_read_by_run(regret, tmp_path):
    rows = [{"run": run, "tick": tick, "delay": 0.5} for run in "ab" for tick in (128, 256)]
    with (tmp_path / "regret.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    found = regret.curves(tmp_path / "regret.csv")
    assert found["b"]["tick"].tolist() == [128, 256]
    assert found["a"]["delay"].tolist() == [0.5, 0.5]
