"""fox-realtime simulate finds the workers that a slow policy needs."""

import csv
import json

import pytest

from fox.agents.realtime.cli import main
from fox.agents.realtime.simulate import grid

M = 1 / 59.7275


def test_simulate_writes_the_least_workers_and_pictures(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    main(
        ["simulate", "--output", str(tmp_path), "--seconds", "[0.5, 0.1]", "--grid_seconds", "0.1"]
    )
    with (tmp_path / "workers.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {(float(row["cv"]), float(row["seconds"])): int(row["workers"]) for row in rows}
    assert found[0, 0.1] == 6  # ceil(T / M)
    assert found[0, 0.5] == 30
    assert 30 < found[0.2, 0.5] <= 35
    told = json.loads((tmp_path / "simulate.json").read_text())
    assert [row["workers"] for row in told["workers"]] == [int(row["workers"]) for row in rows]
    assert told["grid"]
    assert {path.name for path in tmp_path.glob("*.png")} == {"workers.png", "grid.png"}
    assert "30 (31)" in capsys.readouterr().out


def test_the_grid_shows_what_waiting_longer_and_more_workers_are_worth():
    cells = {
        (cell["cv"], cell["quantile"], cell["workers"]): (cell["coverage"], cell["gap_cv"])
        for cell in grid(1.0, M, 0)
    }
    assert cells[0.0, 1.0, 60] == (1, 0)
    assert cells[0.2, 1.0, 72] == (1, 0)
    coverage, gap_cv = cells[0.2, 0.99, 72]
    assert coverage == pytest.approx(0.991, abs=0.002)
    assert gap_cv == pytest.approx(0.10, abs=0.01)
    coverage, gap_cv = cells[0.2, 1.0, 60]
    assert coverage == pytest.approx(0.949, abs=0.005)
    assert gap_cv == pytest.approx(0.29, abs=0.02)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--seconds", "[]", "seconds must be one or more times above 0, but got []"),
        ("--seconds", "[1, 0]", "seconds must be one or more times above 0, but got [1.0, 0.0]"),
        ("--fps", "0", "fps must be above 0, but got 0.0"),
        ("--grid_seconds", "-1", "grid_seconds must be above 0, but got -1.0"),
        ("--wanted", "1.5", "wanted is a share of ticks, above 0 and at most 1, but got 1.5"),
    ],
)
def test_simulate_refuses_what_cannot_be(option, value, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["simulate", "--output", str(tmp_path), option, value])
    assert stop.value.code == 2
    assert words in capsys.readouterr().err
