"""Pictures of recall: right answers by length for all tasks, and by length and place for one."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from fox.eval.plots import heat_map, mark_training_lengths
from fox.eval.tasks import Task
from fox.figures import FAINT, FOX, INK, TRANSFORMER, new_figure, plain_axes, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Hue: gates or not; full lines and points: Pro.
LOOKS: dict[str, dict[str, Any]] = {
    "fox-pro": {"color": FOX, "marker": "o"},
    "fox-llama": {"color": FOX, "marker": "s", "linestyle": "--", "markerfacecolor": "white"},
    "transformer-pro": {"color": TRANSFORMER, "marker": "o"},
    "transformer-llama": {
        "color": TRANSFORMER,
        "marker": "s",
        "linestyle": "--",
        "markerfacecolor": "white",
    },
}


def draw_by_length(results: Sequence[dict[str, Any]], path: Path) -> None:
    """One panel per task: right answers against length, a band over seeds.

    Args:
        results: of recall, one per task.
        path: the picture.
    """
    figure = new_figure(max(5.6, 4.2 * len(results)), 4.3)
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, result in zip(panels, results, strict=True):
        draw_panel(axes, result)
    panels[0].set_ylabel("share of right answers", color=INK)
    handles, labels = panels[0].get_legend_handles_labels()
    seeds = len(results[0]["seeds"])
    about = f"mean of {seeds} seeds; band: lowest to highest" if seeds > 1 else None
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=2 if len(results) == 1 else len(labels),
        frameon=False,
        title=about,
        title_fontsize=8.5,
    )
    save_figure(figure, path)


def draw_panel(axes: "Axes", result: dict[str, Any]) -> None:
    for model in result["models"]:
        rows, look = model["by_length"], LOOKS[model["preset"]]
        lengths = [row["length"] for row in rows]
        low, high = [row["lowest"] for row in rows], [row["highest"] for row in rows]
        axes.fill_between(lengths, low, high, color=look["color"], alpha=0.15, linewidth=0)
        means = [row["accuracy"] for row in rows]
        axes.plot(lengths, means, markersize=5, label=model["name"], clip_on=False, **look)
    name, share = max(result["chance"].items(), key=lambda item: item[1])
    axes.axhline(share, color=FAINT, linestyle=":", linewidth=1.2)
    axes.annotate(
        f"guessing {name}",
        (0.99, share),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        color=FAINT,
        fontsize=8.5,
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    plain_axes(axes, result["task"], "length of the row (tokens)", "")
    mark_training_lengths(axes, [result["training_length"]])


def draw_by_place(result: dict[str, Any], task: Task, path: Path) -> None:
    """The task as a strip of tokens, and under it one depth x length heat map per model."""
    models = result["models"]
    rows = -(-len(models) // 2)
    places = [f"model {number}" for number in range(len(models))]
    layout: list[Any] = [["strip", "strip"]] + [["."] * 2 for _ in range(rows)]
    for number, place in enumerate(places):
        layout[1 + number // 2][number % 2] = place
    figure = new_figure(10.5, 1.3 + 3.9 * rows)
    panels = figure.subplot_mosaic(layout, height_ratios=[1, *[3.6] * rows])
    draw_task(panels["strip"], task)
    for place, model in zip(places, models, strict=True):
        axes, last = panels[place], model["by_length"][-1]
        lengths = [row["length"] for row in model["by_length"]]
        table = [[mean_cell(model, depth, length) for length in lengths] for depth in task.depths]
        names = [f"{depth:.0%}" for depth in task.depths]
        heat_map(axes, table, names, lengths, result["training_length"])
        axes.set_title(
            f"{model['name']}: {last['accuracy']:.1%} at length {last['length']}",
            loc="left",
            pad=20,
            fontweight="bold",
            fontsize=11,
            color=INK,
        )
        axes.set_xlabel("length of the row (tokens)", color=INK)
        axes.set_ylabel("place of the answer (0% = first)", color=INK)
    guesses = ", ".join(f"{name} {share:.1%}" for name, share in result["chance"].items())
    seeds = len(result["seeds"])
    sizes = ", ".join(f"{model['parameters']:,}" for model in models)
    figure.supxlabel(
        f"share of right answers, mean of {seeds} seed{'s' if seeds > 1 else ''} "
        f"(guessing {guesses})\nall models: {result['steps']} steps on rows of "
        f"{result['training_length']} tokens; {sizes} parameters",
        fontsize=8.5,
        color=FAINT,
    )
    save_figure(figure, path)


def mean_cell(model: dict[str, Any], depth: float | None, length: int) -> float:
    """Mean over the seeds."""
    return fmean(
        cell["accuracy"]
        for cell in model["cells"]
        if cell["depth"] == depth and cell["length"] == length
    )


def draw_task(axes: "Axes", task: Task) -> None:
    """A row of the task as a strip, from the question an arrow to its answer."""
    axes.set_title(
        f"{task.name.capitalize()}: {task.title}",
        loc="left",
        fontweight="bold",
        fontsize=12,
        color=INK,
    )
    tokens = task.example.split(" ")
    for place, token in enumerate(tokens):
        asked = token.endswith("*")
        axes.text(
            place,
            0,
            token.rstrip("*"),
            ha="center",
            va="center",
            color=FOX if asked else FAINT,
            fontsize=12,
            fontweight="bold" if asked else "normal",
            family="monospace",
        )
    answer = [place for place, token in enumerate(tokens) if token.endswith("*")][1]
    axes.annotate(
        "",
        (answer, 0.35),
        (tokens.index("?*"), 0.35),
        arrowprops={"arrowstyle": "->", "color": FOX, "connectionstyle": "arc3,rad=0.12"},
    )
    axes.set_xlim(-0.7, len(tokens) - 0.3)
    axes.set_ylim(-0.5, 1.2)
    axes.axis("off")
