"""Recall that a CPU can learn in seconds: which value stood behind this key?

A row is filler with four (key, value) pairs in it, and its last token is one of the four keys; the
model shall say the key's value. FoX (Pro) and the Transformer (Pro) with RoPE, of the same size,
train on the same short rows and are then asked in rows up to eight times as long.

Legend: B batch, T time.
"""

from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from fox.config import FoxConfig
from fox.eval.plots import FAINT, FOX, INK, heat_map, new_figure, save_figure
from fox.eval.progress import progress
from fox.eval.text import next_token_log_probs
from fox.files import write_csv, write_json
from fox.model import FoxForCausalLM

FILLERS, KEYS, VALUES, PAIRS = 64, 16, 16, 4
TRAINING_LENGTH = 64
LENGTHS = (64, 128, 256, 512)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
BATCH, LEARNING_RATE, ROWS_PER_CELL = 64, 3e-3, 100
EXAMPLE = "· · K7 v2 · · · · K1 v9 · · K4 v4 · · · · · · K3 v5 · · · · K1 ?"
SIZE = {"hidden_size": 64, "num_hidden_layers": 2, "num_heads": 4, "intermediate_size": 128}
CONFIGS = {
    "FoX (Pro)": FoxConfig.preset(
        "fox-pro-125m",
        vocab_size=FILLERS + KEYS + VALUES,
        # Heads that look back up to the whole row from the first step; with biases of 0 every head
        # starts with a time constant of 1.4 tokens, and learning takes several times as long.
        decay_time_min=2.0,
        decay_time_max=float(TRAINING_LENGTH),
        **SIZE,
    ),
    "Transformer (Pro, RoPE)": FoxConfig.preset(
        "transformer-pro-125m", vocab_size=FILLERS + KEYS + VALUES, **SIZE
    ),
}


def recall(output: str, *, steps: int = 150, seed: int = 0) -> None:
    """Train FoX (Pro) and the Transformer (Pro) to recall, then test far beyond the trained length.

    Args:
        output: folder for recall.csv, .json and .png.
        steps: training steps of 64 rows, for each model.
        seed: of the weights, the training rows and the test rows; both models see the same.

    Raises:
        ValueError: steps is not positive.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, but got {steps}")
    models: list[dict[str, Any]] = []
    for name, config in CONFIGS.items():
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = FoxForCausalLM(config)
        train(model, steps, seed, name)
        cells = test(model.eval(), seed, name)
        size = sum(parameter.numel() for parameter in model.parameters())
        models.append({"name": name, "parameters": size, "config": asdict(config), "cells": cells})
    result = {
        "training_length": TRAINING_LENGTH,
        "steps": steps,
        "seed": seed,
        "rows_per_cell": ROWS_PER_CELL,
        "chance": {"any value": 1 / VALUES, "a value of the row": 1 / PAIRS},
        "models": models,
    }
    folder = Path(output)
    write_csv(
        folder / "recall.csv",
        [{"model": model["name"], **cell} for model in models for cell in model["cells"]],
    )
    write_json(folder / "recall.json", result)
    report(result)
    draw(result, folder / "recall.png")


def recall_rows(
    count: int, length: int, generator: torch.Generator, depth: float | None = None
) -> tuple[Tensor, Tensor]:
    """Random rows and their answers.

    Args:
        count: rows B.
        length: tokens T of a row; even.
        generator: source of the random numbers.
        depth: where the pair asked for stands, from 0 (first) to 1 (last place); random if None.

    Returns:
        ids (B, T) int64: fillers, then keys, then values number the vocabulary; answers (B,) int64.
    """
    places = length // 2 - 1  # the last two tokens are a filler and the question
    order = torch.rand(count, places, generator=generator)
    if depth is not None:
        order[:, round(depth * (places - 1))] = -1.0  # comes first, and the first pair is asked for
    starts = 2 * order.argsort(1)[:, :PAIRS]  # (B, PAIRS)
    keys = FILLERS + torch.rand(count, KEYS, generator=generator).argsort(1)[:, :PAIRS]
    values = torch.rand(count, VALUES, generator=generator).argsort(1)[:, :PAIRS]
    values += FILLERS + KEYS
    ids = torch.randint(FILLERS, (count, length), generator=generator)
    ids.scatter_(1, starts, keys)
    ids.scatter_(1, starts + 1, values)
    ids[:, -1] = keys[:, 0]
    return ids, values[:, 0]


def train(model: FoxForCausalLM, steps: int, seed: int, name: str) -> None:
    """AdamW on fresh rows, the loss on the answer alone."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    with progress(f"recall, training {name}", steps) as advance:
        for _ in range(steps):
            ids, answers = recall_rows(BATCH, TRAINING_LENGTH, generator)
            logits = model.lm_head(model.model(ids)[:, -1])  # (B, V)
            loss = F.cross_entropy(logits, answers)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            advance(f"loss {loss.item():.3f}")


def test(model: FoxForCausalLM, seed: int, name: str) -> list[dict[str, Any]]:
    """Share of right answers per length and depth, on rows that training never drew."""
    generator = torch.Generator().manual_seed(2**32 + seed)
    cells = []
    with progress(f"recall, testing {name}", len(LENGTHS) * len(DEPTHS)) as advance:
        for length in LENGTHS:
            for depth in DEPTHS:
                ids, answers = recall_rows(ROWS_PER_CELL, length, generator, depth)
                right = next_token_log_probs(model, ids).argmax(-1) == answers
                accuracy = right.double().mean().item()
                cells.append({"length": length, "depth": depth, "accuracy": accuracy})
                advance(f"length {length}")
    return cells


def report(result: dict[str, Any]) -> None:
    print_line = Console(soft_wrap=True, highlight=False, markup=False).print
    for model in result["models"]:
        by_length = {length: mean_accuracy(model, length) for length in LENGTHS}
        shares = ", ".join(f"{length}: {share:.1%}" for length, share in by_length.items())
        print_line(f"recall, {model['name']}: right answers by length {shares}")


def mean_accuracy(model: dict[str, Any], length: int) -> float:
    """Mean over the depths."""
    return fmean(cell["accuracy"] for cell in model["cells"] if cell["length"] == length)


def draw(result: dict[str, Any], path: Path) -> None:
    """The task as a strip of tokens, and under it one depth x length heat map per model."""
    figure = new_figure(10.5, 5.2)
    strip, *maps = figure.subplot_mosaic("aa;bc", height_ratios=[1, 3.6]).values()
    draw_task(strip)
    for axes, model in zip(maps, result["models"], strict=True):
        right = {(cell["depth"], cell["length"]): cell["accuracy"] for cell in model["cells"]}
        table = [[right[depth, length] for length in LENGTHS] for depth in DEPTHS]
        rows = [f"{depth:.0%}" for depth in DEPTHS]
        heat_map(axes, table, rows, LENGTHS, result["training_length"])
        share = f"{mean_accuracy(model, LENGTHS[-1]):.1%} right at length {LENGTHS[-1]}"
        axes.set_title(
            f"{model['name']}: {share}",
            loc="left",
            pad=20,
            fontweight="bold",
            fontsize=11,
            color=INK,
        )
        axes.set_xlabel("length of the row (tokens)", color=INK)
    maps[0].set_ylabel("place of the pair (0% = first)", color=INK)
    guess, blind = result["chance"]["a value of the row"], result["chance"]["any value"]
    figure.supxlabel(
        f"share of right answers; guessing one of the row's values gives {guess:.0%}, any value "
        f"{blind:.0%}. Both models: {result['steps']} steps on rows of "
        f"{result['training_length']} tokens, {result['models'][0]['parameters']:,} and "
        f"{result['models'][1]['parameters']:,} parameters",
        fontsize=8.5,
        color=FAINT,
    )
    save_figure(figure, path)


def draw_task(axes: Any) -> None:
    """A row of the task as boxes: filler, pairs, the question and its answer."""
    axes.set_title(
        "Recall: four keys and their values hide in a row of filler. Which value had the last key?",
        loc="left",
        fontweight="bold",
        fontsize=12,
        color=INK,
    )
    tokens = EXAMPLE.split(" ")
    for place, token in enumerate(tokens):
        asked = token in ("K1", "v9", "?")
        colour = FOX if asked else FAINT
        axes.text(
            place,
            0,
            token,
            ha="center",
            va="center",
            color=colour,
            fontsize=12,
            fontweight="bold" if asked else "normal",
            family="monospace",
        )
    axes.annotate(
        "",
        (9, 0.35),
        (len(tokens) - 1, 0.35),
        arrowprops={"arrowstyle": "->", "color": FOX, "connectionstyle": "arc3,rad=0.12"},
    )
    axes.set_xlim(-0.7, len(tokens) - 0.3)
    axes.set_ylim(-0.5, 1.2)
    axes.axis("off")
