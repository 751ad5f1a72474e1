"""Figures: one look for every picture, and the depth x length heat map."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fox.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOX, TRANSFORMER, INK, FAINT = "#d1491b", "#33658a", "#22272e", "#8b949e"
PALETTE = (FOX, TRANSFORMER, "#6a994e", "#8e5ba6", "#b08900")
WRONG_TO_RIGHT = ("#b5442a", "#e58e5b", "#f6ecd9", "#6fb1a4", "#12706b")  # for every eye
MAX_COLUMNS_WITH_VALUES = 16


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, width x height inches.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "plots need matplotlib: pip install 'fox-transformer[plots]' (the numbers are written)"
        ) from error
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def save_figure(figure: "Figure", path: Path) -> None:
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")


def plain_axes(axes: "Axes", title: str, xlabel: str, ylabel: str) -> None:
    """Titles left, two spines, a faint grid."""
    axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold")
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)


def heat_map(
    axes: "Axes",
    shares: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[int],
    training_length: int | None,
) -> None:
    """Draw shares in [0, 1] as coloured cells with their values, on a scale fixed to 0..1.

    Args:
        shares: (rows, columns).
        rows: labels, from top to bottom.
        columns: lengths in tokens, ascending.
        training_length: tokens; a line parts the lengths seen in training from longer ones.
    """
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("wrong to right", WRONG_TO_RIGHT)
    axes.imshow(shares, cmap=colours, vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), [f"{length:,}" for length in columns])
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)
    axes.set_xticks([column - 0.5 for column in range(1, len(columns))], minor=True)
    axes.set_yticks([row - 0.5 for row in range(1, len(rows))], minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    if len(columns) <= MAX_COLUMNS_WITH_VALUES:
        for row, values in enumerate(shares):
            for column, value in enumerate(values):
                colour = INK if 0.15 < value < 0.85 else "white"
                axes.text(column, row, f"{value:.0%}", ha="center", va="center", color=colour)
    seen = sum(length <= training_length for length in columns) if training_length else 0
    if 0 < seen < len(columns):
        axes.axvline(seen - 0.5, color="white", linewidth=9)
        axes.axvline(seen - 0.5, color=INK, linewidth=2.5)
        axes.annotate(
            "longer than in training →",
            (seen - 0.5, 1.015),
            xycoords=("data", "axes fraction"),
            color=INK,
            fontsize=8.5,
        )
