"""Pictures show the numbers that they are given."""

import pytest

pytest.importorskip("matplotlib")

from fox.agents.realtime import plots
from fox.agents.realtime.plots import Curve


@pytest.fixture
def drawn(monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def values(line):
    return [list(map(float, axis)) for axis in line.get_data()]


def test_curves_have_their_points_bands_names_and_lines(drawn, tmp_path):
    curves = [
        Curve("staggered", [1, 10, 100], [1.0, 0.9, 0.5], [0.9, 0.8, 0.4], [1.0, 1.0, 0.6]),
        Curve("sequential", [1, 10], [0.8, 0.2]),
    ]
    plots.draw_curves(
        tmp_path / "a.png",
        curves,
        title="Catches",
        xlabel="delay",
        ylabel="share",
        log_x=True,
        lines={"chance": 0.25},
        about="95 %",
    )
    (axes,) = drawn[0].axes
    assert values(axes.lines[0]) == [[1, 10, 100], [1, 0.9, 0.5]]
    assert values(axes.lines[1]) == [[1, 10], [0.8, 0.2]]
    assert values(axes.lines[2])[1] == [0.25, 0.25]
    assert [text.get_text() for text in axes.texts] == ["chance"]
    assert len(axes.collections) == 1
    assert [text.get_text() for text in axes.get_legend().texts] == ["staggered", "sequential"]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")


def test_learning_leaves_out_what_was_not_measured(drawn, tmp_path):
    row = {"coverage": 1.0, "delay_ticks": 5.0}
    rows = [
        {"seconds": 10.0, "return": 0.1, "weight_age": None, **row},
        {"seconds": 20.0, "return": 0.3, "weight_age": 4.0, **row},
    ]
    never = [{"seconds": 10.0, "return": 0.0, "coverage": 0.0, "delay_ticks": None}]
    never[0]["weight_age"] = None
    plots.draw_learning(tmp_path / "a.png", {"staggered": rows, "silent": never})
    returns, coverage, delay, age = drawn[0].axes
    assert values(returns.lines[0]) == [[10, 20], [0.1, 0.3]]
    assert values(coverage.lines[1]) == [[10], [0]]
    assert values(delay.lines[1]) == [[], []]
    assert values(age.lines[0]) == [[20], [4]]


def test_regret_is_one_panel_per_run_with_its_parts_and_their_sum(drawn, tmp_path):
    parts = {"delay": 1.0, "inaction": 2.0, "learning": 3.0}
    row = {f"{name}{end}": value for name, value in parts.items() for end in ("", "_low", "_high")}
    rows = [{"seconds": 2.0, "total": 6.0, **row}, {"seconds": 4.0, "total": 6.0, **row}]
    plots.draw_regret(tmp_path / "a.png", {"sequential": rows, "staggered": rows})
    assert [axes.get_title(loc="left") for axes in drawn[0].axes] == ["sequential", "staggered"]
    lines = {line.get_label(): values(line) for line in drawn[0].axes[0].lines}
    for name, value in {**parts, "their sum, the regret": 6.0}.items():
        assert lines[name] == [[2, 4], [value, value]]
    assert len(drawn[0].axes[0].collections) == 3


def test_regularity_shows_coverage_and_gaps_of_each_law(drawn, tmp_path):
    cells = [
        {"cv": cv, "cap": cap, "quantile": 1.0, "workers": N, "coverage": cv, "gap_cv": N / 10}
        for cv, cap in ((0.0, 1.0), (0.2, 2.0))
        for N in (10, 20)
    ]
    plots.draw_regularity(tmp_path / "a.png", cells, seconds=1.0, step_seconds=0.1)
    above, other, below, _ = drawn[0].axes
    assert values(above.lines[0]) == [[1, 2], [0, 0]]
    assert values(other.lines[0]) == [[1, 2], [0.2, 0.2]]
    assert values(below.lines[0]) == [[1, 2], [1, 2]]


def test_bench_leaves_out_caches_that_cannot_keep_up(drawn, tmp_path):
    rows = [
        {"cache": "window", "parameters": 2e6, "seconds": 0.04},
        {"cache": "window", "parameters": 1e6, "seconds": 0.01},
        {"cache": "catchup", "parameters": 1e6, "seconds": None},
    ]
    plots.draw_bench(tmp_path / "a.png", rows, step_seconds=0.01, cores=2)
    (axes,) = drawn[0].axes
    assert values(axes.lines[0]) == [[1, 2], [10, 40]]
    assert [text.get_text() for text in axes.texts] == ["N = 1", "N = 2", "N = 16"]
    assert [values(line)[1][0] for line in axes.lines[1:]] == [10, 20, 160]
