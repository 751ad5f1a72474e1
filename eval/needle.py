"""A needle in a haystack: an assignment planted in real text and asked for at its end.

    ... text ...                 the haystack, held-out documents
    KOLUMA = "river"             the needle, at a line end, at some depth
    ... text ...
    KOLUMA = "                   the question; the right next token is `river`

The value is one token, so one forward pass tells everything: whether it is the likeliest of all
tokens (exact match) and whether it is the likeliest of 16 possible values (chance 1/16). The
control is the same question without the needle.

Legend: B batch, T time, V vocabulary.
"""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from fox.eval.haystack import CANDIDATES, PROTOCOL, Haystack, Key, Prompt
from fox.eval.plots import heat_map, new_figure, save_figure
from fox.eval.progress import progress
from fox.eval.store import Store, fingerprint
from fox.eval.text import Split, batches_of, documents_of, load, next_token_log_probs
from fox.files import write_csv, write_json


def needle(
    checkpoint: str,
    output: str,
    *,
    lengths: tuple[int, ...] = (128, 256, 512, 1024),
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0),
    seeds: int = 8,
    files: list[str] | None = None,
    split: Split = "held_out",
) -> None:
    """Find a planted assignment in held-out text, over a grid of lengths and depths.

    Finished prompts are kept in needle.jsonl: a second call with the same model and text goes on
    where the first one stopped.

    Args:
        checkpoint: a model folder or a .ckpt file.
        output: folder for needle.jsonl, .csv, .json and .png.
        lengths: whole prompts, in tokens.
        depths: where the needle stands, from 0 (first line) to 1 (last line before the question).
        seeds: prompts per cell, each with its own text, name and value.
        files: glob patterns of .txt, .jsonl or .parquet files; the standard library if not given.
        split: "held_out" takes the documents that training never sees, "all" every document.

    Raises:
        ValueError: an empty or impossible grid, or too little text for the longest prompt.
    """
    grid = grid_keys(lengths, depths, seeds)
    model, tokenizer = load(checkpoint)
    device = next(model.parameters()).device
    documents = documents_of(files, split)
    haystack = Haystack(tokenizer, documents)
    haystack.check(max(lengths))
    folder = Path(output)
    run = fingerprint(model, (tokenizer.to_str(), documents, PROTOCOL))
    store = Store(folder / "needle.jsonl", run)
    answer(grid, haystack.prompt, lambda ids: next_token_log_probs(model, ids.to(device)), store)
    wanted = set(grid)
    rows = [row for row in store.rows if key_of(row) in wanted]
    cells = summarize(rows)
    result = {
        "checkpoint": checkpoint,
        "training_length": model.config.max_position_embeddings,
        "seeds": seeds,
        "candidates": CANDIDATES,
        "chance": {"chosen": 1 / CANDIDATES, "exact": 1 / model.config.vocab_size},
        "mean": mean_of(cells),
        "cells": cells,
    }
    write_csv(folder / "needle.csv", cells)
    write_json(folder / "needle.json", result)
    report(result)
    draw(result, folder / "needle.png")


def grid_keys(lengths: tuple[int, ...], depths: tuple[float, ...], seeds: int) -> list[Key]:
    """Every (length, depth, seed), short prompts first, with the needle and without."""
    if not lengths or not depths or seeds < 1:
        raise ValueError(
            "expected at least one length, one depth and one seed, "
            f"but got {len(lengths)}, {len(depths)} and {seeds}"
        )
    wrong = [depth for depth in depths if not 0 <= depth <= 1]
    if wrong:
        raise ValueError(f"depths lie between 0 and 1, but got {wrong[0]}: write 50 % as 0.5")
    axes = (sorted(set(lengths)), sorted(set(depths)), range(seeds), (True, False))
    return list(product(*axes))


def key_of(row: dict[str, Any]) -> Key:
    return row["length"], row["depth"], row["seed"], row["planted"]


def answer(
    grid: list[Key],
    prompt_of: Callable[[Key], Prompt],
    log_probs_of: Callable[[Tensor], Tensor],
    store: Store,
) -> None:
    """Put every prompt of the grid that is not yet in the store to the model.

    Args:
        grid: keys of prompts.
        prompt_of: key -> prompt.
        log_probs_of: (B, T) ids -> (B, V) log probabilities of the next token.
        store: takes the answers, batch by batch.
    """
    done = {key_of(row) for row in store.rows}
    missing = [key for key in grid if key not in done]
    batches = []
    for length in sorted({length for length, *_ in missing}):
        keys = [key for key in missing if key[0] == length]
        batches += [keys[batch] for batch in batches_of(len(keys), length)]
    with progress(f"needle, {len(done & set(grid))} prompts known", len(batches)) as advance:
        for keys in batches:
            prompts = [prompt_of(key) for key in keys]
            log_probs = log_probs_of(torch.tensor([prompt.ids for prompt in prompts]))
            store.append(map(graded, prompts, log_probs))
            advance(f"length {keys[0][0]:,}")


def graded(prompt: Prompt, log_probs: Tensor) -> dict[str, Any]:
    """One row of results from the log probabilities (V,) after the question."""
    among = log_probs[prompt.candidates].log_softmax(-1)
    right = prompt.candidates.index(prompt.answer)
    length, depth, seed, planted = prompt.key
    return {
        "length": length,
        "depth": depth,
        "seed": seed,
        "planted": planted,
        "position": prompt.position,
        "exact": int(log_probs.argmax()) == prompt.answer,
        "chosen": int(among.argmax()) == right,
        "log_prob": float(log_probs[prompt.answer]),
        "log_prob_among_candidates": float(among[right]),
    }


def summarize(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means per cell; `gain` is what the needle adds to the value's log probability, in nats."""
    groups: dict[tuple[int, float], tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}
    for row in rows:
        planted, control = groups.setdefault((row["length"], row["depth"]), ([], []))
        (planted if row["planted"] else control).append(row)
    cells = []
    for (length, depth), (planted, control) in sorted(groups.items()):
        log_prob = fmean(row["log_prob"] for row in planted)
        cells.append(
            {
                "length": length,
                "depth": depth,
                "mean_position": fmean(row["position"] for row in planted),
                "prompts": len(planted),
                "chosen": fmean(row["chosen"] for row in planted),
                "exact": fmean(row["exact"] for row in planted),
                "log_prob": log_prob,
                "gain": log_prob - fmean(row["log_prob"] for row in control),
                "control_chosen": fmean(row["chosen"] for row in control),
                "control_exact": fmean(row["exact"] for row in control),
            }
        )
    return cells


def mean_of(cells: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the whole grid."""
    names = ("chosen", "control_chosen", "exact", "control_exact", "gain")
    return {name: fmean(cell[name] for cell in cells) for name in names}


def report(result: dict[str, Any]) -> None:
    print_line = Console(soft_wrap=True, highlight=False, markup=False).print
    mean, chance = result["mean"], result["chance"]
    for measure, meaning in (
        ("chosen", f"likeliest of {result['candidates']} values"),
        ("exact", "likeliest of all tokens"),
    ):
        print_line(
            f"needle, {meaning}: {mean[measure]:.1%}, without the needle "
            f"{mean[f'control_{measure}']:.1%}, chance {chance[measure]:.2%}"
        )
    print_line(f"needle, log probability of the value: {mean['gain']:+.2f} nats by the needle")


def draw(result: dict[str, Any], path: Path) -> None:
    """Two depth x length heat maps with the control as their last row."""
    columns = sorted({cell["length"] for cell in result["cells"]})
    depths = sorted({cell["depth"] for cell in result["cells"]})
    rows = [f"{depth:.0%}" for depth in depths] + ["no needle"]
    figure = new_figure(11, 1.9 + 0.45 * len(rows))
    figure.suptitle(
        f"Needle in held-out text, {result['seeds']} prompts per cell", fontweight="bold"
    )
    panels = (
        ("chosen", f"right among {result['candidates']} values"),
        ("exact", "right among all tokens"),
    )
    for axes, (measure, title) in zip(figure.subplots(1, 2), panels, strict=True):
        at = {(cell["depth"], cell["length"]): cell for cell in result["cells"]}
        table = [[at[depth, length][measure] for length in columns] for depth in depths]
        control = f"control_{measure}"
        table.append([fmean(at[depth, length][control] for depth in depths) for length in columns])
        heat_map(axes, table, rows, columns, result["training_length"])
        axes.axhline(len(depths) - 0.5, color="white", linewidth=9)
        axes.set_title(f"{title} (chance {result['chance'][measure]:.2%})", pad=22, fontsize=11)
        axes.set_xlabel("length of the prompt (tokens)")
        axes.set_ylabel("depth of the needle (0% = start)")
    save_figure(figure, path)
