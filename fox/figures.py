"""Figures: one look for every picture of the package."""

from pathlib import Path
from typing import TYPE_CHECKING

from fox.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOX, TRANSFORMER, INK, FAINT = "#d1491b", "#33658a", "#22272e", "#8b949e"
PALETTE = (FOX, TRANSFORMER, "#6a994e", "#8e5ba6", "#b08900")


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
    """Write a PNG."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")


def plain_axes(axes: "Axes", title: str, xlabel: str, ylabel: str) -> None:
    """Titles left, two spines, a faint grid."""
    axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold")
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
