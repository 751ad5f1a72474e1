"""The two experiments in virtual time judge what they measure."""

from dataclasses import replace
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "realtime"


@pytest.fixture(scope="module", autouse=True)
def scripts():
    """The experiments import each other as files of one folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield


@pytest.fixture(scope="module")
def workers(scripts):
    import workers

    return workers


@pytest.fixture(scope="module")
def regularity(scripts):
    import regularity

    return regularity


def failed(lines):
    return [line.wanted for line in lines if not line.passed]


def test_the_lines_about_workers_fail_where_the_numbers_do(workers, monkeypatch):
    monkeypatch.setattr(workers, "SECONDS", (0.05, 1.0, 10.0))
    monkeypatch.setattr(workers, "LONG", 20_000)
    points = list(workers.sweep(workers.SECONDS))
    assert failed(workers.acceptance(points, 1.0)) == []
    half_more = [replace(point, workers=round(1.5 * point.workers)) for point in points]
    wanted = failed(workers.acceptance(half_more, 1.0))
    assert len([line for line in wanted if "slope" in line]) == 4
    assert len([line for line in wanted if "at most" in line]) == 3
    assert failed(workers.acceptance(points, 61.0)) == ["sweep in less than 60 s of processor time"]
    monkeypatch.setattr(workers, "workers_for", lambda mean, std, step: round(mean / step))
    assert len(failed(workers.acceptance(points, 1.0))) == 1


def test_a_schedule_is_judged_by_its_mean_over_the_seeds_and_a_reversed_one_never(regularity):
    row = {"case": "algorithm 1", "wanted_cv": (0.5, 0.7), "wanted_coverage": (0.016, 0.016)}
    good = row | {"cv": [0.4, 0.9], "coverage": [0.0165]}
    bad = row | {"cv": [0.4, 1.3], "coverage": [0.05]}
    assert failed(regularity.acceptance([good], [])) == []
    assert len(failed(regularity.acceptance([bad], []))) == 2
    assert regularity.acceptance([bad | {"case": "reversed"}], []) == []


def test_ticks_are_judged_at_enough_workers_and_the_longest_delay(regularity):
    row = {"cv_of_law": 0.2, "delay": "maximum", "d": 120, "N": 72, "coverage": 0.99, "cv": 0.0}
    assert len(failed(regularity.acceptance([], [row]))) == 1
    assert failed(regularity.acceptance([], [row | {"coverage": 0.9995}])) == []
    assert regularity.acceptance([], [row | {"delay": "p99"}]) == []


def test_every_case_is_run_for_every_seed(regularity, monkeypatch):
    monkeypatch.setattr(regularity, "SECONDS", 8.0)
    monkeypatch.setattr(regularity, "COUNTED_FROM", 4.0)
    rows = [regularity.run_case(case) for case in regularity.cases()]
    assert len({row["case"] for row in rows}) == len(rows) == 19
    assert all(len(row["coverage"]) == 5 for row in rows)


def test_the_figure_shows_every_way_to_interact(regularity, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(regularity, "SECONDS", 12.0)
    monkeypatch.setattr(regularity, "COUNTED_FROM", 6.0)
    monkeypatch.setattr(regularity, "TICKS", 400)
    ways = regularity.compared()
    regularity.draw(ways, tmp_path / "ways.png")
    assert (tmp_path / "ways.png").stat().st_size > 10_000
    assert [numbers["coverage"] > 0.98 for *_, numbers in ways] == 5 * [False] + 3 * [True]
