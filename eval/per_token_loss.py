"""Loss by position: does a model go on using its context as the context grows?

Legend: N documents, T positions. Position t is the number of tokens seen before the one predicted.
"""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from fox.corpus import Document
from fox.eval.plots import FAINT, INK, PALETTE, new_figure, plain_axes, save_figure
from fox.eval.progress import progress
from fox.eval.text import Split, batches_of, documents_of, load, next_token_losses
from fox.files import write_csv, write_json
from fox.model import FoxForCausalLM

BINS_PER_OCTAVE = 2


def per_token_loss(
    checkpoint: list[str],
    output: str,
    *,
    length: int = 1024,
    files: list[str] | None = None,
    split: Split = "held_out",
) -> None:
    """Loss by position and perplexity of the first tokens, on held-out documents.

    Each document gives one row, its first `length` + 1 tokens; shorter documents are left out, so
    that every position averages over the same documents.

    Args:
        checkpoint: one or more model folders or .ckpt files, all with the same tokenizer.
        output: folder for per_token_loss.csv, .json and .png.
        length: positions to score, in tokens.
        files: glob patterns of .txt, .jsonl or .parquet files; the standard library if not given.
        split: "held_out" takes the documents that training never sees, "all" every document.

    Raises:
        ValueError: no document is long enough, or the tokenizers differ.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, but got {length}")
    models = [load(path) for path in checkpoint]
    tokenizer = models[0][1]
    for path, (_, other) in zip(checkpoint, models, strict=True):
        if other.to_str() != tokenizer.to_str():
            raise ValueError(
                f"losses per token compare only under one tokenizer, but {path} has another than "
                f"{checkpoint[0]}: evaluate them apart and compare bits_per_byte"
            )
    documents = documents_of(files, split)
    encodings = tokenizer.encode_batch([text for _, text in documents], add_special_tokens=False)
    chosen = [number for number, code in enumerate(encodings) if len(code.ids) > length]
    if not chosen:
        raise ValueError(
            f"expected a document of more than {length} tokens, but the longest of "
            f"{len(documents)} has {max(len(code.ids) for code in encodings)}: lower --length"
        )
    rows = torch.tensor([encodings[number].ids[: length + 1] for number in chosen])  # (N, T + 1)
    ends = [[end for _, end in encodings[number].offsets[: length + 1]] for number in chosen]
    spans = [byte_ends(documents[number], end) for number, end in zip(chosen, ends, strict=True)]
    num_bytes = torch.tensor(spans)  # (N, T + 1)

    results, lines = [], []
    for name, (model, _) in zip(names(checkpoint), models, strict=True):
        losses = score(model, rows, name)  # (N, T)
        results.append({"name": name, **summarize(losses, num_bytes)})
        results[-1]["training_length"] = model.config.max_position_embeddings
        for position, total in enumerate(losses.sum(0).tolist(), start=1):
            lines.append({"model": name, "position": position, "sum": total, "count": len(losses)})
    folder = Path(output)
    write_csv(folder / "per_token_loss.csv", lines)
    about = {"documents": len(chosen), "documents_too_short": len(documents) - len(chosen)}
    write_json(folder / "per_token_loss.json", {**about, "length": length, "models": results})
    report(results, len(chosen))
    draw(results, len(chosen), folder / "per_token_loss.png")


def names(checkpoints: list[str]) -> list[str]:
    """Tails of the paths, of two parts or as many as tell the checkpoints apart."""
    parts = [Path(path).parts for path in checkpoints]
    for count in range(2, max(map(len, parts)) + 2):
        tails = ["/".join(part[-count:]) for part in parts]
        if len(set(tails)) == len(tails):
            return tails
    raise ValueError(f"expected different checkpoints, but got {', '.join(checkpoints)}")


def byte_ends(document: Document, ends: list[int]) -> list[int]:
    """Ends in characters -> ends in UTF-8 bytes."""
    text, result, done, last = document.text, [], 0, 0
    for end in ends:
        if end > last:  # a token may be a part of one character
            done += len(text[last:end].encode())
            last = end
        result.append(done)
    return result


def score(model: FoxForCausalLM, rows: Tensor, name: str) -> Tensor:
    """(N, T + 1) ids -> (N, T) float64 losses."""
    device = next(model.parameters()).device
    batches = batches_of(len(rows), rows.shape[1])
    losses = []
    with progress(f"loss by position, {name}", len(batches)) as advance:
        for batch in batches:
            losses.append(next_token_losses(model, rows[batch].to(device)))
            advance("")
    return torch.cat(losses)


def summarize(losses: Tensor, num_bytes: Tensor) -> dict[str, Any]:
    """Means over everything, over the first 2^n tokens, and over log-spaced bins of positions.

    Args:
        losses: (N, T) float64, nats.
        num_bytes: (N, T + 1), where each row's tokens end, in bytes.

    Returns:
        loss, perplexity and bits_per_byte, the list `first` of the same for growing prefixes, and
        the list `bins`, each with the standard error of its mean over documents.
    """
    T = losses.shape[1]
    prefixes = [2**n for n in range(5, 31) if 2**n < T] + [T]
    first = []
    for tokens in prefixes:
        nats = losses[:, :tokens]
        seen = (num_bytes[:, tokens] - num_bytes[:, 0]).sum().item()
        loss = nats.mean().item()
        bits = nats.sum().item() / math.log(2) / seen
        first.append(
            {"tokens": tokens, "loss": loss, "perplexity": math.exp(loss), "bits_per_byte": bits}
        )
    bins = []
    edges = bin_edges(T)
    for start, stop in pairwise(edges):
        by_document = losses[:, start - 1 : stop - 1].mean(1)  # (N,)
        error = by_document.std().item() / math.sqrt(len(losses)) if len(losses) > 1 else 0.0
        mean = by_document.mean().item()
        bins.append({"first": start, "last": stop - 1, "loss": mean, "standard_error": error})
    return {**{k: v for k, v in first[-1].items() if k != "tokens"}, "first": first, "bins": bins}


def bin_edges(T: int) -> list[int]:
    """Log-spaced edges from 1 to T + 1, whole and ascending."""
    count = max(1, round(BINS_PER_OCTAVE * math.log2(T + 1)))
    return sorted({round((T + 1) ** (step / count)) for step in range(count + 1)})


def report(results: list[dict[str, Any]], documents: int) -> None:
    print_line = Console(soft_wrap=True, highlight=False, markup=False).print
    for result in results:
        print_line(f"{result['name']}, {documents} documents:")
        for row in result["first"]:
            print_line(
                f"  first {row['tokens']:>6,} tokens: loss {row['loss']:.3f}, "
                f"perplexity {row['perplexity']:,.1f}, {row['bits_per_byte']:.3f} bits/byte"
            )


def draw(results: list[dict[str, Any]], documents: int, path: Path) -> None:
    """One line per model with its band, against the position on a logarithmic axis."""
    figure = new_figure(7.2, 4.4)
    axes = figure.subplots()
    for result, colour in zip(results, PALETTE * len(results), strict=False):
        middles = [math.sqrt(row["first"] * row["last"]) for row in result["bins"]]
        losses = [row["loss"] for row in result["bins"]]
        errors = [row["standard_error"] for row in result["bins"]]
        low = [loss - error for loss, error in zip(losses, errors, strict=True)]
        high = [loss + error for loss, error in zip(losses, errors, strict=True)]
        axes.fill_between(middles, low, high, color=colour, alpha=0.18, linewidth=0)
        label = f"{result['name']}: mean {result['loss']:.2f} nats"
        axes.plot(middles, losses, "o-", color=colour, markersize=3.5, label=label)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    plain_axes(
        axes,
        f"Loss by position on {documents} held-out documents",
        "tokens of context before the predicted token",
        "loss (nats per token)",
    )
    for length in {result["training_length"] for result in results} - {None}:
        axes.axvline(length, color=FAINT, linestyle="--", linewidth=1.2)
        axes.annotate(
            f" training length {length:,}",
            (length, 0.98),
            xycoords=("data", "axes fraction"),
            va="top",
            ha="left" if length < results[0]["bins"][-1]["last"] else "right",
            color=INK,
            fontsize=8.5,
        )
    axes.legend(frameon=False, loc="best", title="band: standard error over documents")
    save_figure(figure, path)
