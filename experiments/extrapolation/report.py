"""From the numbers of the experiment to its report: one picture, and what became of each claim.

Legend: S seeds. Losses are nats per token, positions count the tokens before the predicted one.
"""

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fox.figures import FAINT, FOX, TRANSFORMER, new_figure, plain_axes, save_figure
from fox.files import write_json, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {
    "fox-pro": "FoX (Pro)",
    "fox-llama": "FoX (LLaMA)",
    "transformer-pro": "Transformer (Pro)",
    "transformer-llama": "Transformer (LLaMA)",
}
TASKS = {"recall": "one question about 4 pairs", "mqar": "multi-query associative recall"}
LEARNED = 0.5  # share of right answers that tells learning from guessing among a row's values
Result = dict[str, Any]


def losses_of(result: Result, model: str, first: int, last: int) -> np.ndarray:
    """(S,), the mean loss over positions first..last, which are borders of bins."""
    means = []
    for run in result["losses"]["models"]:
        if run["model"] == model:
            bins = [b for b in run["bins"] if first <= b["first"] and b["last"] <= last]
            widths = [b["last"] - b["first"] + 1 for b in bins]
            means.append(np.average([b["loss"] for b in bins], weights=widths))
    return np.array(means)


def accuracies_of(result: Result, task: str, model: str) -> dict[int, np.ndarray]:
    """Length -> (S,), the share of right answers, over all places."""
    (found,) = (one for one in result["recall"][task]["models"] if one["preset"] == model)
    seeds = result["recall"][task]["seeds"]
    by_length: dict[int, list[list[float]]] = {}
    for cell in found["cells"]:
        rows = by_length.setdefault(cell["length"], [[] for _ in seeds])
        rows[seeds.index(cell["seed"])].append(cell["accuracy"])
    return {length: np.array(rows).mean(1) for length, rows in by_length.items()}


def ranges_of(training_length: int, length: int) -> list[tuple[int, int]]:
    """The whole training length, its second half, and every doubling beyond it."""
    borders = [training_length // 2]
    while borders[-1] < length:
        borders.append(2 * borders[-1])
    return [(1, training_length), *((a + 1, b) for a, b in pairwise(borders))]


def told(values: np.ndarray, digits: int = 3, sign: str = "") -> str:
    """Mean over the seeds, and the range."""
    mean, low, high = (f"{x:{sign}.{digits}f}" for x in (values.mean(), values.min(), values.max()))
    return f"{mean} ({low} to {high})"


def held(holds: np.ndarray) -> str:
    """In how many seeds a claim held."""
    return f"holds in {int(np.sum(holds))} of {len(holds)} seeds"


def claims(result: Result, ranges: list[tuple[int, int]]) -> list[tuple[str, str, str]]:
    """What was claimed, what was measured, and in how many seeds the claim held."""
    inside, farthest = ranges[1], ranges[-1]
    where = f"positions {farthest[0]:,} to {farthest[1]:,} against {inside[0]:,} to {inside[1]:,}"
    rows = []
    for block in ("pro", "llama"):
        fox, transformer = (f"{kind}-{block}" for kind in ("fox", "transformer"))
        rise = {
            model: losses_of(result, model, *farthest) - losses_of(result, model, *inside)
            for model in (fox, transformer)
        }
        measured = ", ".join(f"{NAMES[m]} {told(rise[m], sign='+')}" for m in (fox, transformer))
        rows += [
            (
                f"{NAMES[fox]} extrapolates: its loss does not rise beyond the training length",
                f"change at {where}: {told(rise[fox], sign='+')}",
                held(rise[fox] <= 0),
            ),
            (
                f"{NAMES[transformer]} with RoPE breaks down where {NAMES[fox]} does not",
                f"change at {where}: {measured}",
                held(rise[fox] < rise[transformer]),
            ),
        ]
    pro, llama = (losses_of(result, model, *ranges[0]) for model in ("fox-pro", "fox-llama"))
    rows.append(
        (
            "FoX (Pro) has at most the loss of FoX (LLaMA)",
            f"inside the training length: {told(pro)} against {told(llama)}",
            held(pro <= llama),
        )
    )
    for task in TASKS:
        length = result["recall"][task]["training_length"]
        for block in ("pro", "llama"):
            fox, transformer = (
                accuracies_of(result, task, f"{kind}-{block}")[length]
                for kind in ("fox", "transformer")
            )
            outcome = held(fox >= transformer - 0.01) + " (by one point at most)"
            if max(fox.max(), transformer.max()) < LEARNED:
                outcome = "not tested: neither learns the task in so few steps"
            rows.append(
                (
                    f"forgetting does not cost recall inside the training length ({task}, "
                    f"{NAMES['fox-' + block].removeprefix('FoX ')[1:-1]})",
                    f"FoX {told(100 * fox, 1)} % right, Transformer {told(100 * transformer, 1)} %",
                    outcome,
                )
            )
    return rows


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write_report(result: Result, folder: Path) -> None:
    """Writes report.md, report.json and report.png."""
    settings, losses = result["settings"], result["losses"]
    T, steps = settings["data"]["seq_len"], settings["trainer"]["max_steps"]
    tokens = T * settings["data"]["batch_size"] * steps
    ranges = ranges_of(T, losses["length"])
    found = claims(result, ranges)
    counts = [run["parameters"] for run in losses["models"]]
    sizes = f"{min(counts):,} to {max(counts):,} parameters"
    seeds = len({run["seed"] for run in losses["models"]})
    by_position = [
        [name, *(told(losses_of(result, model, *span)) for span in ranges)]
        for model, name in NAMES.items()
    ]
    parts = [
        "# Extrapolation, the Pro block and recall",
        f"Each model, {sizes}, learns from {tokens:,} tokens, {steps:,} steps of "
        f"{settings['data']['batch_size']} rows of {T:,} tokens, and then reads "
        f"{losses['rows']:,} windows of {losses['length']:,} tokens out of {losses['documents']:,} "
        f"held-out documents. Everything of the recipe is equal for all; the "
        f"{seeds} seeds change the weights and the order of the rows. Figures are means over "
        "seeds, with the lowest and the highest.",
        "![Loss by position, recall by length, validation loss](report.png)",
        "## What became of the claims",
        table(["claim", "measured", "outcome"], [list(row) for row in found]),
        "## Loss by position (nats per token)",
        table(["model", *(f"{a:,} to {b:,}" for a, b in ranges)], by_position),
    ]
    for task, meaning in TASKS.items():
        trained = result["recall"][task]["training_length"]
        rows = []
        for model, name in NAMES.items():
            shares = accuracies_of(result, task, model)
            rows.append([name, *(told(100 * share, 1) for share in shares.values())])
        parts += [
            f"## Recall: {meaning} (% right, trained on rows of {trained} tokens)",
            table(["model", *(f"{length} tokens" for length in shares)], rows),
        ]
    about = result["machine"]
    parts += [
        "## How it was made",
        f"`python experiments/extrapolation/run.py --config experiments/extrapolation/"
        f"{folder.name}.yaml --seeds {seeds}`: {result['seconds'] / 60:.0f} minutes on "
        f"{about['cores']} cores ({about['processor']}, GPU: {about['gpu'] or 'none'}), Python "
        f"{about['python']}, torch {about['torch']}, commit {about['commit']}. The numbers behind "
        "everything here are in `report.json`.",
    ]
    write_json(folder / "report.json", result | {"claims": found})
    draw(result, folder / "report.png")
    write_text(folder / "report.md", "\n\n".join(part.rstrip("\n") for part in parts) + "\n")


def style(model: str) -> dict[str, str]:
    """FoX and Transformer by colour, Pro and LLaMA by line."""
    colour = FOX if model.startswith("fox") else TRANSFORMER
    return {"color": colour, "linestyle": "-" if model.endswith("pro") else "--"}


def band(axes: "Axes", x: Any, values: np.ndarray, model: str) -> None:
    """The mean over seeds of values (S, n) in its range."""
    look = style(model)
    axes.fill_between(x, values.min(0), values.max(0), color=look["color"], alpha=0.15, linewidth=0)
    axes.plot(x, values.mean(0), label=NAMES[model], linewidth=1.8, **look)


def draw(result: Result, path: Path) -> None:
    """Loss by position, recall by length, and the validation loss during training."""
    figure = new_figure(15, 8.4)
    axes = figure.subplot_mosaic("aab;aac")
    T = result["settings"]["data"]["seq_len"]
    for model in NAMES:
        runs = [run for run in result["losses"]["models"] if run["model"] == model]
        bins = [b for b in runs[0]["bins"] if b["last"] >= 16]
        x = [np.sqrt(b["first"] * b["last"]) for b in bins]
        values = np.array([[b["loss"] for b in run["bins"][-len(bins) :]] for run in runs])
        band(axes["a"], x, values, model)
        trained = [run["validation"][1:] for run in runs]  # the first is before any step
        validation = np.array([[row["loss"] for row in rows] for rows in trained])
        band(axes["c"], [row["tokens"] for row in trained[0]], validation, model)
        shares = accuracies_of(result, "mqar", model)
        band(axes["b"], list(shares), 100 * np.array(list(shares.values())).T, model)
    mark(axes["a"], T)
    mark(axes["b"], result["recall"]["mqar"]["training_length"])
    plain_axes(
        axes["a"], "Loss by position in held-out text", "tokens before the predicted one",
        "loss (nats per token)",
    )  # fmt: skip
    plain_axes(axes["b"], "Multi-query recall", "tokens of the row", "% right")
    plain_axes(axes["c"], "Validation during training", "tokens seen", "loss (nats per token)")
    axes["c"].xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")
    axes["b"].set_ylim(0, 102)
    axes["a"].legend(frameon=False, title="band: lowest to highest seed")
    save_figure(figure, path)


def mark(axes: "Axes", training_length: int) -> None:
    """A logarithmic axis of tokens with the training length."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.axvline(training_length, color=FAINT, linestyle=":", linewidth=1.5)
    axes.annotate(
        f" trained on {training_length:,}",
        (training_length, 0.02),
        xycoords=("data", "axes fraction"),
        color=FAINT,
        fontsize=9,
    )
