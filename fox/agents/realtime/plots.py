"""Pictures of realtime agents: curves, learning, workers, regret."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fox.figures import FAINT, INK, PALETTE, new_figure, plain_axes, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "osD^v"


@dataclass(frozen=True)
class Curve:
    """Points of one legend entry.

    Attributes:
        name: in the legend.
        x, y: of the points, x ascending.
        low, high: of a band around y, if there is one.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def draw_curves(
    path: Path,
    curves: Sequence[Curve],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    log_x: bool = False,
    log_y: bool = False,
    lines: Mapping[str, float] | None = None,
    about: str = "",
) -> None:
    """One panel of curves: return against delay or model size, workers against inference time.

    Args:
        path: the PNG.
        curves: drawn in the palette's order.
        title, xlabel, ylabel: of the panel.
        log_x, log_y: logarithmic axes.
        lines: heights of dotted lines by their names (short ones), such as chance.
        about: a faint sentence below, such as what the bands are.
    """
    figure = new_figure(6.8, 4.4)
    axes = figure.subplots()
    if log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,g}")
    if log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:,g}")
    plain_axes(axes, title, xlabel, ylabel)
    for number, curve in enumerate(curves):
        marker = MARKERS[number % len(MARKERS)] if len(curve.x) <= 40 else None
        _draw_curve(axes, curve, PALETTE[number % len(PALETTE)], marker)
    for name, height in (lines or {}).items():
        _horizontal_line(axes, name, height)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=9)
    if about:
        figure.supxlabel(about, fontsize=8.5, color=FAINT)
    save_figure(figure, path)


def draw_learning(path: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Return, coverage, delay and age of weights of runs, each in its panel, against time.

    Args:
        path: the PNG.
        runs: rows of each run's log by the run's name; keys seconds (of the run's clock), return
            (mean reward per second of play), coverage, delay_ticks and weight_age (updates that the
            learner was ahead of the weights behind the actions). Rows in which a value is None are
            left out of its panel.
    """
    figure = new_figure(10.5, 6.2)
    panels = figure.subplots(2, 2, sharex=True).flat
    kinds = (
        ("return", "Return", "reward per second"),
        ("coverage", "Coverage", "ticks with a policy action"),
        ("delay_ticks", "Delay", "ticks, observation to action"),
        ("weight_age", "Age of weights", "updates behind the learner"),
    )
    for axes, (key, title, ylabel) in zip(panels, kinds, strict=True):
        plain_axes(axes, title, "", ylabel)
        for number, (name, rows) in enumerate(runs.items()):
            points = [(row["seconds"], row[key]) for row in rows if row[key] is not None]
            x, y = zip(*points, strict=True) if points else ((), ())
            _draw_curve(axes, Curve(name, x, y), PALETTE[number % len(PALETTE)], None)
        if key == "coverage":
            axes.set_ylim(0, 1.03)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        elif key != "return":
            axes.set_ylim(bottom=0)
    for axes in figure.axes[2:]:
        axes.set_xlabel("seconds of the run", color=INK)
    if len(runs) > 1:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(4, len(runs)), frameon=False
        )
    save_figure(figure, path)


def draw_regularity(
    path: Path, cells: Sequence[Mapping[str, float]], seconds: float, step_seconds: float
) -> None:
    """Coverage above, deviation of the gaps below, against the workers: one column per law.

    Args:
        path: the PNG.
        cells: of simulate.grid.
        seconds: T.
        step_seconds: M.
    """
    laws = sorted({(cell["cv"], cell["cap"]) for cell in cells})
    figure = new_figure(3.2 * len(laws), 5.2)
    panels = figure.subplots(2, len(laws), sharex=True, sharey="row", squeeze=False)
    for column, (cv, cap) in enumerate(laws):
        above, below = panels[:, column]
        of_law = [cell for cell in cells if (cell["cv"], cell["cap"]) == (cv, cap)]
        plain_axes(above, f"cv {cv:g}, longest {cap:g} T", "", "")
        plain_axes(below, "", "workers / (T / M)", "")
        for number, quantile in enumerate((1.0, 0.99, 0.9)):
            line = [cell for cell in of_law if cell["quantile"] == quantile]
            ratio = [cell["workers"] * step_seconds / seconds for cell in line]
            name = "d: longest" if quantile == 1 else f"d: {quantile:.0%} of inferences"
            for axes, key in ((above, "coverage"), (below, "gap_cv")):
                curve = Curve(name, ratio, [cell[key] for cell in line])
                _draw_curve(axes, curve, PALETTE[number], MARKERS[number])
    panels[0, 0].set_ylabel("coverage", color=INK)
    panels[0, 0].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panels[1, 0].set_ylabel("std / mean of the gaps", color=INK)
    handles, labels = panels[0, -1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    save_figure(figure, path)


def draw_bench(
    path: Path, rows: Sequence[Mapping[str, Any]], step_seconds: float, cores: int
) -> None:
    """Seconds of a job against parameters by cache mode, with the workers that they ask for.

    Args:
        path: the PNG.
        rows: of bench.time_policy.
        step_seconds: M.
        cores: of the machine.
    """
    names = {
        "window": "FoX, window read again",
        "catchup": "FoX, own caches",
        "wavefront": "FoX, one shared cache",
        "frame": "IMPALA, newest frame",
    }
    curves = []
    for cache, name in names.items():
        known = [row for row in rows if row["cache"] == cache and row["seconds"] is not None]
        if known:
            points = sorted((row["parameters"] / 1e6, 1000 * row["seconds"]) for row in known)
            curves.append(Curve(name, *zip(*points, strict=True)))
    draw_curves(
        path,
        curves,
        title="Time of one inference, one thread",
        xlabel="million parameters",
        ylabel="ms",
        log_x=True,
        log_y=True,
        lines={f"N = {n}": 1000 * n * step_seconds for n in sorted({1, cores, 8 * cores})},
        about=f"dotted: where N workers are needed; {cores} cores here",
    )


def draw_regret(path: Path, runs: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Cumulative regret and its parts against time, one panel per run.

    Args:
        path: the PNG.
        runs: rows of regret.csv by the run's name.
    """
    figure = new_figure(max(5.6, 4.6 * len(runs)), 4.4)
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for axes, (name, rows) in zip(panels, runs.items(), strict=True):
        plain_axes(axes, name, "seconds of play", "")
        seconds = [row["seconds"] for row in rows]
        axes.axhline(0, color=FAINT, linewidth=0.8)
        for colour, part in zip(PALETTE, ("delay", "inaction", "learning"), strict=False):
            values, low, high = (
                [row[key] for row in rows] for key in (part, f"{part}_low", f"{part}_high")
            )
            _draw_curve(axes, Curve(part, seconds, values, low, high), colour, None)
        total = [row["total"] for row in rows]
        axes.plot(seconds, total, color=INK, linestyle=":", label="their sum, the regret")
    panels[0].set_ylabel("rewards lost to the undelayed reference", color=INK)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    save_figure(figure, path)


def _draw_curve(axes: "Axes", curve: Curve, colour: str, marker: str | None) -> None:
    if curve.low is not None and curve.high is not None:
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(curve.x, curve.y, color=colour, marker=marker, markersize=5, label=curve.name)


def _horizontal_line(axes: "Axes", name: str, height: float) -> None:
    axes.axhline(height, color=FAINT, linestyle=":", linewidth=1.2)
    axes.annotate(
        name,
        (1.01, height),
        xycoords=("axes fraction", "data"),
        va="center",
        color=FAINT,
        fontsize=8.5,
    )
