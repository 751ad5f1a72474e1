"""Pictures of Hanabi agents: who plays how well with whom, and how scores grew."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fox.figures import FAINT, INK, PALETTE, new_figure, plain_axes, save_figure

_COLD_TO_WARM = ("#f4f1ea", "#f3d9b8", "#ec9f66", "#d1491b", "#7a2410")
_DARK = 0.55  # of the scale, from where numbers are white
_CELL = 0.62  # inches
_GREEDY: dict[str, Any] = {"linewidth": 1.8}
_LEARNT: dict[str, Any] = {"linewidth": 1, "alpha": 0.4}


def draw_matrix(
    path: Path,
    names: Sequence[str],
    scores: Sequence[Sequence[float]],
    *,
    max_score: int,
    title: str,
    xlabel: str,
    ylabel: str,
    learnt: int,
    about: str,
) -> None:
    """A heat map of mean scores: who sits at whose table; self-play on the diagonal is framed.

    Args:
        path: the PNG.
        names: (A) of the agents, from top to bottom and from left to right.
        scores: (A, A) mean scores, at least 0.
        max_score: points of a perfect game.
        title, xlabel, ylabel: of the picture, and of its columns and rows.
        learnt: so many of the first agents have learnt; the others, set apart, follow rules.
        about: a faint sentence below.
    """
    side = _CELL * len(names)
    figure = new_figure(max(side + 2.6, 5.2), side + 2.3)
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    axes = figure.subplots()
    colours = LinearSegmentedColormap.from_list("cold to warm", _COLD_TO_WARM)
    image = axes.imshow(scores, cmap=colours, vmin=0, vmax=max_score, aspect="equal")
    places = range(len(names))
    axes.set_xticks(places, names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, names)
    for between in (axes.set_xticks, axes.set_yticks):
        between([place + 0.5 for place in places[:-1]], minor=True)
    axes.tick_params(which="both", length=0, colors=INK)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.spines[:].set_visible(False)
    for row, values in enumerate(scores):
        for column, value in enumerate(values):
            text = axes.text(column, row, f"{value:.{1 if max_score >= 10 else 2}f}")
            text.set(ha="center", va="center", fontsize=9)
            text.set_color("white" if value > _DARK * max_score else INK)
        frame = Rectangle((row - 0.41, row - 0.41), 0.82, 0.82, fill=False)
        frame.set(edgecolor="white" if values[row] > _DARK * max_score else INK, linewidth=1.4)
        axes.add_patch(frame)
    if 0 < learnt < len(names):
        for line in (axes.axhline, axes.axvline):
            line(learnt - 0.5, color="white", linewidth=6)
    axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold", pad=10)
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, colors=INK, labelsize=8.5)
    bar.set_label("mean score", color=INK)
    figure.supxlabel(about, fontsize=8.5, color=FAINT)
    save_figure(figure, path)


def draw_learning(
    path: Path,
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    references: Mapping[int, Mapping[str, float]] | None = None,
) -> None:
    """Mean scores of runs against the CPU-seconds of their learners, a panel per player count.

    Args:
        path: the PNG.
        runs: rows of metrics.csv by the run's name; keys cpu_seconds and, for every number of
            players P, test_Pp (greedy games) and play_Pp (games learnt from). None is left out.
        references: for a number of players, heights of dotted lines by their names.
    """
    keys = {key for rows in runs.values() for row in rows for key in row}
    counts = sorted(int(key[5:-1]) for key in keys if key.startswith("play_"))
    figure = new_figure(0.8 + 4.1 * len(counts), 3.9)
    panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axes, P in zip(panels, counts, strict=True):
        plain_axes(axes, f"{P} players", "CPU-seconds of the learner's process", "")
        axes.xaxis.set_major_formatter("{x:,g}")
        for number, (name, rows) in enumerate(runs.items()):
            colour, dashes = PALETTE[number % len(PALETTE)], "-" if number < len(PALETTE) else "--"
            for key, label, style in (
                (f"play_{P}p", None, _LEARNT),
                (f"test_{P}p", name, _GREEDY),
            ):
                told = [row for row in rows if row.get(key) is not None]
                x, y = [row["cpu_seconds"] for row in told], [row[key] for row in told]
                axes.plot(x, y, dashes, color=colour, label=label, **style)
        for name, height in (references or {}).get(P, {}).items():
            axes.axhline(height, color=FAINT, linestyle=":", linewidth=1.4)
            axes.annotate(
                name,
                (1.01, height),
                xycoords=("axes fraction", "data"),
                va="center",
                color=FAINT,
                fontsize=8.5,
            )
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("mean strict score", color=INK)
    panels[0].plot([], [], color=FAINT, label="greedy", **_GREEDY)
    panels[0].plot([], [], color=FAINT, label="games learnt from", **_LEARNT)
    handles, labels = panels[0].get_legend_handles_labels()
    columns = min(len(labels), 3 * len(counts))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    save_figure(figure, path)
