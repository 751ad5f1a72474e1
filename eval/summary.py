"""The results of a run in one table and one picture of its losses."""

import csv
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from fox.figures import FAINT, FOX, TRANSFORMER, new_figure, plain_axes, save_figure
from fox.files import read_json, write_csv, write_json

NEAR_CHANCE = 2.0  # times the chance level
SOURCES = (
    *("validation.json", "ngram.json", "per_token_loss.json"),
    *("needle.json", "recall.json", "mqar.json", "passkey.json", "metrics.csv"),
)

Line = dict[str, str]  # measure, result, beside


def summary(run: str) -> None:
    """Everything that was measured in a run, in one table; written to the run's folder too.

    Args:
        run: folder with what fox-train and fox-eval wrote; gets summary.json, .csv and .png.

    Raises:
        FileNotFoundError: the folder holds no results.
    """
    folder = Path(run)
    if not any((folder / name).is_file() for name in SOURCES):
        raise FileNotFoundError(
            f"expected at least one of {', '.join(SOURCES)} in {folder}, but found none: train "
            "with fox-train fit, and evaluate into the same folder with --output"
        )
    found = {
        Path(name).stem: read_json(folder / name)
        for name in SOURCES
        if name.endswith(".json") and (folder / name).is_file()
    }
    metrics = read_metrics(folder / "metrics.csv") if (folder / "metrics.csv").is_file() else []
    lines: list[Line] = []
    if "validation" in found:
        lines += training_lines(found["validation"], found.get("ngram", {}), metrics)
    for name, lines_of in (
        ("per_token_loss", position_lines),
        ("needle", needle_lines),
        ("recall", recall_lines),
        ("mqar", recall_lines),
        ("passkey", recall_lines),
    ):
        if name in found:
            lines += lines_of(found[name])
    write_csv(folder / "summary.csv", lines)
    write_json(folder / "summary.json", {"lines": lines, **found})
    print_table(lines, str(folder))
    if "validation" in found:
        draw(found["validation"], found.get("ngram", {}), metrics, folder / "summary.png")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of numbers; empty cells are left out."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]


def training_lines(
    validation: list[dict[str, float]],
    ngram: dict[str, dict[str, float]],
    metrics: list[dict[str, float]],
) -> list[Line]:
    """The first validation against the last, the n-gram models on the same tokens beside them."""
    first, last = validation[0], validation[-1]
    losses = [f"{name} {values['loss']:.2f}" for name, values in ngram.items()]
    bits = [f"{name} {values['bits_per_byte']:.2f}" for name, values in ngram.items()]
    lines = [
        line(
            f"validation loss, step {first['step']:.0f}",
            f"{first['loss']:.3f} nats/token",
            ", ".join(losses[:1]),
        ),
        line(
            f"validation loss, step {last['step']:.0f}",
            f"{last['loss']:.3f} nats/token",
            ", ".join(losses[1:]),
        ),
        line("decrease", f"{1 - last['loss'] / first['loss']:.1%}", ""),
        line("bits per byte", f"{last['bits_per_byte']:.3f}", ", ".join(bits[1:])),
    ]
    speeds = [row["tokens_per_second"] for row in metrics if "tokens_per_second" in row]
    if speeds:
        tokens = f"{last['tokens']:,.0f} tokens seen"
        lines.append(line("training speed", f"{median(speeds):,.0f} tokens/s", tokens))
    return lines


def position_lines(result: dict[str, Any]) -> list[Line]:
    """Perplexity of short prefixes against that of the longest."""
    lines, several = [], len(result["models"]) > 1
    for model in result["models"]:
        short, long = model["first"][0], model["first"][-1]
        length = model["training_length"]
        trained = f", trained at {length:,}" if length else ""
        lines.append(
            line(
                f"perplexity of the first {long['tokens']:,} tokens"
                + (f", {model['name']}" if several else ""),
                f"{long['perplexity']:.1f}",
                f"first {short['tokens']}: {short['perplexity']:.1f}{trained}",
            )
        )
    return lines


def needle_lines(result: dict[str, Any]) -> list[Line]:
    """Share of right answers in each mode, beside the same question without the needle."""
    lines = []
    for model in result["models"]:
        for mode, measured in model["modes"].items():
            mean, name = measured["mean"], f"needle, {mode}, {model['name']}"
            if mode != "assignment":
                beside = f"without the needle {mean['control_match']:.1%}"
                lines.append(line(name, f"{mean['match']:.1%} found", beside))
                continue
            chance = measured["chance"]["chosen"]
            beside = f"chance {chance:.1%}, without the needle {mean['control_chosen']:.1%}"
            if mean["chosen"] < NEAR_CHANCE * chance:
                beside += ": near chance, as expected of so small a model in text; compare recall"
            right = f"{mean['chosen']:.1%} right of {measured['candidates']}"
            lines.append(line(name, right, beside))
    return lines


def recall_lines(result: dict[str, Any]) -> list[Line]:
    """Accuracy at the training length against that at the longest."""
    lines = []
    for model in result["models"]:
        short, long = model["by_length"][0], model["by_length"][-1]
        right = f"{short['accuracy']:.1%} right at length {short['length']}, "
        right += f"{long['accuracy']:.1%} at {long['length']}"
        guess = max(result["chance"].values())
        beside = f"trained at {result['training_length']}, guessing {guess:.0%}"
        lines.append(line(f"{result['task']}, {model['name']}", right, beside))
    return lines


def line(measure: str, result: str, beside: str) -> Line:
    return {"measure": measure, "result": result, "beside": beside}


def print_table(lines: list[Line], title: str) -> None:
    table = Table("measure", "result", "beside it", title=title, title_justify="left")
    for row in lines:
        table.add_row(*row.values())
    console = Console(highlight=False, markup=False)
    console.print(table)


def draw(
    validation: list[dict[str, float]],
    ngram: dict[str, dict[str, float]],
    metrics: list[dict[str, float]],
    path: Path,
) -> None:
    """Training and validation loss against tokens, n-gram models as level lines."""
    figure = new_figure(7.2, 4.4)
    axes = figure.subplots()
    training = [row for row in metrics if "train_loss" in row and "tokens" in row]
    axes.plot(
        [row["tokens"] for row in training],
        [row["train_loss"] for row in training],
        color=FAINT,
        linewidth=1,
        label="training loss",
    )
    axes.plot(
        [row["tokens"] for row in validation],
        [row["loss"] for row in validation],
        "o-",
        color=FOX,
        markersize=4,
        label=f"validation loss, {validation[-1]['loss']:.2f} at the end",
    )
    for name, values in ngram.items():
        axes.axhline(values["loss"], color=TRANSFORMER, linestyle="--", linewidth=1)
        label = f" {name} {values['loss']:.2f}"
        axes.text(1, values["loss"], label, transform=axes.get_yaxis_transform(), va="center")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    plain_axes(axes, "Loss during pretraining", "tokens seen", "loss (nats per token)")
    axes.legend(edgecolor="white", framealpha=1, loc="upper right", bbox_to_anchor=(1, 0.92))
    save_figure(figure, path)
