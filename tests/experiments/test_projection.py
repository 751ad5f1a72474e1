"""The projection says what it is, and which sizes were timed here."""

import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "realtime"


@pytest.fixture
def projection(monkeypatch):
    """The script, which imports its neighbours."""
    monkeypatch.syspath_prepend(FOLDER)
    import projection

    return projection


def test_without_a_measurement_the_projection_is_that_of_the_earlier_times(
    projection, tmp_path, monkeypatch
):
    arguments = ["projection.py", "--results", str(tmp_path), "--up-to", "0"]
    monkeypatch.setattr(sys, "argv", arguments)
    projection.main()
    result = json.loads((tmp_path / "projection.json").read_text())
    assert (tmp_path / "projection.png").stat().st_size > 10_000
    assert "nothing was run" in result["projection"]
    assert not any(size["measured"] for size in result["sizes"])
    needs = {tuple(size["shape"]): size["workers"] for size in result["sizes"]}
    assert [round(needs[k, 1]) for k in (1, 7, 29, 98)] == [0, 5, 58, 794]
    found = {(row["model"], row["workers"]): row for row in result["largest"]}
    assert found["impala", 64]["millions"] == pytest.approx(113, abs=2)
    assert found["wavefront", 512] == {
        "model": "wavefront",
        "workers": 512,
        "millions": 327.16,
        "or_more": True,
    }
    assert all(line["passed"] for line in result["acceptance"])


def test_only_sizes_up_to_the_wish_are_timed(projection, monkeypatch):
    monkeypatch.setattr(projection, "time_impala", lambda *shape: (900_000, 0.01))
    sizes, _ = projection.measure(0.95)
    timed = [(size.model, size.shape) for size in sizes if size.measured]
    assert timed == [("impala", (1, 1))]
