"""Loss by position: does a model go on using its context as the context grows?

Legend: N rows, T positions. Position t is the number of tokens seen before the one predicted.
"""

import hashlib
import math
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from fox.eval.models import EvalModel, load_model, tail_names
from fox.eval.plots import mark_training_lengths
from fox.eval.progress import progress
from fox.eval.store import run_key
from fox.eval.text import Rows, Split, batches_of, documents_of, rows_of
from fox.figures import PALETTE, new_figure, plain_axes, save_figure
from fox.files import whole_file, write_csv, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SECONDS_BETWEEN_SAVES = 20.0
SMOOTHING = 101  # positions of the centred mean, as in the paper
DRAWN_OCTAVES = 8  # of positions up to the last: the loss of the very first tokens hides the rest
CONFIDENCE = 1.96  # standard errors on both sides: 95 %


def per_token_loss(
    model: list[str],
    output: str,
    *,
    length: int = 1024,
    max_rows: int | None = None,
    files: list[str] | None = None,
    split: Split = "held_out",
) -> None:
    """Loss and perplexity by position on held-out documents, far beyond the training length.

    Documents are cut into windows of `length` + 1 tokens, each scored on its own; what is left at
    the end of a document is not used, so that every position averages over the same windows. The
    token that begins a text, if the model has one, stands before each window and is not counted.
    A second call with the same text scores only what the first one left.

    Args:
        model: one or more models with the same tokenizer: folders, .ckpt files or hub names.
        output: folder for per_token_loss.csv, .json, .png and the losses so far.
        length: positions to score, in tokens.
        max_rows: windows at most; all documents give their first one before any gives its second.
        files: glob patterns of .txt, .jsonl or .parquet files; the standard library if not given.
        split: "held_out" takes the documents that training never sees, "all" every document.

    Raises:
        ValueError: no document is long enough, or the tokenizers differ.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, but got {length}")
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"max_rows must be at least 1, but got {max_rows}")
    names = tail_names(model)
    models = [load_model(path) for path in model]
    check_tokenizers(models)
    documents = documents_of(files, split)
    rows = rows_of(documents, models[0].tokenizer, length, max_rows)
    text = hashlib.sha256(rows.ids.numpy().tobytes()).hexdigest()
    folder = Path(output)
    results: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    base: Sums | None = None
    for name, one in zip(names, models, strict=True):
        path = folder / "per_token_loss" / f"{run_key(one.fingerprint(), one.bos, text)}.npz"
        sums = score(one, rows.ids, name, path)
        about = {"name": name, "training_length": one.training_length}
        base = base or sums
        above = bin_means(Sums(sums.by_position, sums.by_bin - base.by_bin), rows.documents)
        results.append(about | summarize(sums, rows) | {"above_first_model": above})
        lines += position_lines(name, sums)
    count = len(rows.documents.unique())
    result = {
        "documents": count,
        "documents_too_short": len(documents) - count if max_rows is None else None,
        "rows": len(rows.ids),
        "length": length,
        "models": results,
    }
    write_csv(folder / "per_token_loss.csv", lines)
    write_json(folder / "per_token_loss.json", result)
    report(result)
    draw(result, folder / "per_token_loss.png")


def check_tokenizers(models: list[EvalModel]) -> None:
    for other in models[1:]:
        if other.tokenizer.to_str() != models[0].tokenizer.to_str():
            raise ValueError(
                f"losses per token compare only under one tokenizer, but {other.path} has another "
                f"than {models[0].path}: evaluate them apart and compare bits_per_byte"
            )


@dataclass
class Sums:
    """Losses of the rows so far.

    Attributes:
        by_position: (T,) float64, over the rows.
        by_bin: (N, bins) float64, over the positions of each bin, row by row.
    """

    by_position: Tensor
    by_bin: Tensor

    def add(self, losses: Tensor, edges: list[int]) -> None:
        """Takes the losses (n, T) of further rows."""
        self.by_position = self.by_position + losses.sum(0)
        bins = [losses[:, a - 1 : b - 1].sum(1) for a, b in pairwise(edges)]
        self.by_bin = torch.cat([self.by_bin, torch.stack(bins, 1)])

    def save(self, path: Path) -> None:
        with whole_file(path) as temporary:
            np.savez(temporary, by_position=self.by_position, by_bin=self.by_bin)


def score(model: EvalModel, ids: Tensor, name: str, path: Path) -> Sums:
    """The losses of every row, those from the file first; the file is kept up to date.

    Args:
        model: under test.
        ids: (N, T + 1).
        name: for the progress bar.
        path: .npz file of this model's sums on these rows.
    """
    T = ids.shape[1] - 1
    edges = bin_edges(T)
    sums = Sums(torch.zeros(T).double(), torch.zeros(0, len(edges) - 1).double())
    if path.is_file():
        with np.load(path) as file:
            sums = Sums(*(torch.from_numpy(file[key]) for key in ("by_position", "by_bin")))
    done = len(sums.by_bin)
    batches = batches_of(len(ids) - done, T + 1)
    if not batches:
        return sums
    saved = time.monotonic()
    with progress(f"loss by position, {name}, {done} rows known", len(batches)) as advance:
        try:
            for batch in batches:
                text = ids[done:][batch].long()
                if model.bos is not None:
                    text = F.pad(text, (1, 0), value=model.bos)
                sums.add(model.next_token_losses(text)[:, -T:], edges)
                advance("")
                if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                    sums.save(path)
                    saved = time.monotonic()
        finally:
            sums.save(path)
    return sums


def bin_edges(T: int) -> list[int]:
    """Edges from 1 to T + 1, two per octave; a bin ends at every power of two."""
    halves = range(2 * T.bit_length() + 1)
    return sorted({1, T + 1} | {n + 1 for k in halves if (n := round(2 ** (k / 2))) < T})


def summarize(sums: Sums, rows: Rows) -> dict[str, Any]:
    """Means over everything, over the first 2^n tokens, and over log-spaced bins of positions.

    Returns:
        loss, perplexity and bits_per_byte, the list `first` of the same for growing prefixes, and
        the list `bins`. Each mean has its standard error over documents, None if there is but one.
    """
    T = len(sums.by_position)
    edges = bin_edges(T)
    prefixes = [2**n for n in range(5, 31) if 2**n < T] + [T]
    seen = rows.num_bytes.sum(0)  # (T + 1,)
    first = []
    for tokens in prefixes:
        by_row = sums.by_bin[:, : edges.index(tokens + 1)].sum(1)  # (N,)
        loss = by_row.mean().item() / tokens
        first.append(
            {
                "tokens": tokens,
                "loss": loss,
                "perplexity": math.exp(loss),
                "bits_per_byte": by_row.sum().item() / math.log(2) / seen[tokens].item(),
                "standard_error": standard_error(by_row / tokens, rows.documents),
            }
        )
    whole = {name: value for name, value in first[-1].items() if name != "tokens"}
    return whole | {"first": first, "bins": bin_means(sums, rows.documents)}


def bin_means(sums: Sums, documents: Tensor) -> list[dict[str, Any]]:
    """Mean and standard error per bin."""
    bins = []
    for column, (start, stop) in enumerate(pairwise(bin_edges(len(sums.by_position)))):
        by_row = sums.by_bin[:, column] / (stop - start)
        error = standard_error(by_row, documents)
        mean = by_row.mean().item()
        bins.append({"first": start, "last": stop - 1, "loss": mean, "standard_error": error})
    return bins


def standard_error(values: Tensor, clusters: Tensor) -> float | None:
    """Of the mean of values (N,) that are independent only between clusters (N,).

    sqrt(C / (C - 1) sum_c (sum_{i in c} (x_i - mean))^2) / N, for C clusters; None for one.
    """
    _, index = clusters.unique(return_inverse=True)
    C = int(index.max()) + 1
    if C == 1:
        return None
    sums = torch.zeros(C).double().index_add(0, index, values - values.mean())
    return math.sqrt(C / (C - 1) * sums.square().sum().item()) / len(values)


def position_lines(name: str, sums: Sums) -> list[dict[str, Any]]:
    """One line per position; `smoothed` is the mean of SMOOTHING positions around it."""
    count = len(sums.by_bin)
    means = sums.by_position / count
    smoothed: list[float | None] = [None] * len(means)
    if len(means) >= SMOOTHING:
        middle = F.avg_pool1d(means.view(1, 1, -1), SMOOTHING, 1).flatten().tolist()
        smoothed[SMOOTHING // 2 : SMOOTHING // 2 + len(middle)] = middle
    return [
        {"model": name, "position": t, "sum": total, "count": count, "loss": loss, "smoothed": mean}
        for t, (total, loss, mean) in enumerate(
            zip(sums.by_position.tolist(), means.tolist(), smoothed, strict=True), start=1
        )
    ]


def report(result: dict[str, Any]) -> None:
    print_line = Console(soft_wrap=True, highlight=False, markup=False).print
    for model in result["models"]:
        print_line(
            f"{model['name']}, {result['rows']:,} windows of {result['documents']:,} documents:"
        )
        for row in model["first"]:
            print_line(
                f"  first {row['tokens']:>6,} tokens: loss {row['loss']:.3f}, "
                f"perplexity {row['perplexity']:,.1f}, {row['bits_per_byte']:.3f} bits/byte"
            )


def draw(result: dict[str, Any], path: Path) -> None:
    """Loss by position, what the first model has less of it, and perplexity of the first tokens."""
    from matplotlib.ticker import LogFormatter

    models = result["models"]
    panels = 3 if len(models) > 1 else 2
    figure = new_figure(5.6 * panels, 4.8)
    figure.suptitle(
        f"Loss by position, {result['rows']:,} windows of {result['documents']:,} documents "
        "(band: 95 % over documents)",
        fontweight="bold",
    )
    left, *middle, right = figure.subplots(1, panels)
    start = result["length"] / 2**DRAWN_OCTAVES
    for model, colour in zip(models, PALETTE * len(models), strict=False):
        bins = [row for row in model["bins"] if row["last"] >= start]
        at = [math.sqrt(row["first"] * row["last"]) for row in bins]
        label = f"{model['name']}: {model['loss']:.3f} on average"
        band(left, at, bins, colour, label)
        for axes in middle:
            band(axes, at, model["above_first_model"][-len(at) :], colour, model["name"])
        first = [row for row in model["first"] if row["tokens"] >= start]
        label = f"{model['name']}: {first[-1]['perplexity']:,.1f} at the end"
        band(right, [row["tokens"] for row in first], first, colour, label, exponential=True)
    # matplotlib tries the inverse on an empty axis, 0 to 0, first.
    scales = (np.exp, lambda perplexity: np.log(np.maximum(perplexity, 1e-9)))
    left.secondary_yaxis("right", functions=scales).set_ylabel("perplexity")
    right.set_yscale("log")
    right.yaxis.set_major_formatter(LogFormatter())
    right.yaxis.set_minor_formatter(LogFormatter())  # labels within a decade where there is room
    position = "tokens before the predicted one"
    for axes, title, xlabel, ylabel in (
        (left, "Loss at a position", position, "loss (nats per token)"),
        *((axes, f"Loss above {models[0]['name']}", position, "nats per token") for axes in middle),
        (right, "Perplexity of the first tokens", "tokens", "perplexity"),
    ):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        plain_axes(axes, title, xlabel, ylabel)
        mark_training_lengths(axes, [model["training_length"] for model in models])
        axes.legend(frameon=False, loc="best", fontsize=9)
    left.spines["right"].set_visible(True)
    save_figure(figure, path)


def band(
    axes: "Axes",
    at: list[float],
    rows: list[dict[str, Any]],
    colour: str,
    label: str,
    exponential: bool = False,
) -> None:
    """A line through the losses of rows, or their perplexities, in its confidence band."""
    scale = np.exp if exponential else np.asarray
    losses = np.array([row["loss"] for row in rows])
    errors = np.array([CONFIDENCE * (row["standard_error"] or 0.0) for row in rows])
    low, high = scale(losses - errors), scale(losses + errors)
    axes.fill_between(at, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.plot(at, scale(losses), "o-", color=colour, markersize=3.5, label=label)
