"""Parts of figures: the depth x length heat map, and marks of training lengths."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fox.figures import FAINT, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WRONG_TO_RIGHT = ("#b5442a", "#e58e5b", "#f6ecd9", "#6fb1a4", "#12706b")  # for every eye
MAX_COLUMNS_WITH_VALUES = 16


def mark_training_lengths(axes: "Axes", lengths: Sequence[int | None]) -> None:
    """A dashed line at each training length that lies within the drawn positions."""
    low, high = axes.get_xlim()
    for length in sorted({length for length in lengths if length is not None}):
        if low < length < high:
            axes.axvline(length, color=FAINT, linestyle="--", linewidth=1.2)
            axes.annotate(
                f"trained at {length:,} ",
                (length, 0.02),
                xycoords=("data", "axes fraction"),
                rotation=90,
                va="bottom",
                ha="right",
                color=INK,
                fontsize=8.5,
            )


def heat_map(
    axes: "Axes",
    shares: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[int],
    training_length: int | None,
) -> None:
    """Draw shares in [0, 1] as coloured cells from 0 to 1, with their values or a colour bar.

    Args:
        shares: (rows, columns).
        rows: labels, from top to bottom.
        columns: lengths in tokens, ascending.
        training_length: tokens; a line parts the lengths seen in training from longer ones.
    """
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("wrong to right", WRONG_TO_RIGHT)
    image = axes.imshow(shares, cmap=colours, vmin=0, vmax=1, aspect="auto")
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
    else:
        axes.figure.colorbar(image, ax=axes, format=lambda share, _: f"{share:.0%}")
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
