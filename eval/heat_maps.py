"""Pictures of shares over lengths: heat maps side by side, a row per model."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from fox.eval.plots import heat_map
from fox.figures import FAINT, INK, new_figure, save_figure

CELL_WIDTH, CELL_HEIGHT = 0.56, 0.36  # inches


class Panel(NamedTuple):
    """One heat map; see `heat_map` for shares, rows, columns and training_length.

    `apart` of the last rows are a control, or a mean, and no part of the grid.
    """

    title: str
    shares: list[list[float]]
    rows: list[str]
    columns: list[int]
    training_length: int | None
    apart: int


def depth_panel(
    title: str, cells: Sequence[dict[str, Any]], measure: str, training_length: int | None
) -> Panel:
    """Depth x length, with the control as the last row if the measure has one."""
    columns = sorted({cell["length"] for cell in cells})
    depths = sorted({cell["depth"] for cell in cells})
    at = {(cell["depth"], cell["length"]): cell for cell in cells}
    shares = [[at[depth, length][measure] for length in columns] for depth in depths]
    rows = [f"{depth:.0%}" for depth in depths]
    control = f"control_{measure}" in cells[0]
    if control:
        rows.append("no needle")
        shares.append(
            [
                fmean(at[depth, length][f"control_{measure}"] for depth in depths)
                for length in columns
            ]
        )
    return Panel(title, shares, rows, columns, training_length, int(control))


def draw_panels(
    panels: Sequence[Sequence[Panel]], title: str, ylabel: str, note: str, path: Path
) -> None:
    """Save a table of panels, all of one form.

    Args:
        panels: rows of them; the last may be shorter.
        title: over everything.
        ylabel: what the rows of a panel are.
        note: what the shares are, under everything.
        path: of the PNG.
    """
    first = panels[0][0]
    width = 1.1 + CELL_WIDTH * max(6, len(first.columns))
    height = 1.3 + CELL_HEIGHT * len(first.rows)
    figure = new_figure(width * len(panels[0]), 0.9 + height * len(panels))
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    figure.suptitle(title, fontweight="bold", color=INK)
    figure.supxlabel(note, fontsize=8.5, color=FAINT)
    grid = figure.subplots(len(panels), len(panels[0]), squeeze=False)
    for line, axes_line in zip(panels, grid, strict=True):
        for axes in axes_line[len(line) :]:
            axes.axis("off")
        for panel, axes in zip(line, axes_line, strict=False):
            heat_map(axes, panel.shares, panel.rows, panel.columns, panel.training_length)
            if panel.apart:
                axes.axhline(len(panel.rows) - panel.apart - 0.5, color="white", linewidth=9)
            axes.set_title(panel.title, loc="left", pad=20, fontsize=11, color=INK)
            trained = f", trained on {panel.training_length:,}" if panel.training_length else ""
            axes.set_xlabel(f"length of the prompt (tokens){trained}", color=INK)
        axes_line[0].set_ylabel(ylabel, color=INK)
    save_figure(figure, path)
