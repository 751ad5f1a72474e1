"""Recall that a CPU can learn in minutes: small models, trained on a task and asked far beyond it.

The tasks are those of fox.eval.tasks. Models of one size train on the same short rows and are then
asked in rows up to eight times as long.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from rich.console import Console

from fox.eval.learning import (
    BATCH,
    LEARNING_RATE,
    ROWS_PER_CELL,
    Cell,
    ModelName,
    task_config,
    train_and_test,
)
from fox.eval.progress import progress
from fox.eval.recall_figures import draw_by_length, draw_by_place
from fox.eval.store import Store, run_key
from fox.eval.tasks import TASKS, Task, TaskName
from fox.files import write_csv, write_json
from fox.model import FoxForCausalLM

NAMES: dict[ModelName, str] = {
    "fox-llama": "FoX (LLaMA)",
    "fox-pro": "FoX (Pro)",
    "transformer-llama": "Transformer (LLaMA, RoPE)",
    "transformer-pro": "Transformer (Pro, RoPE)",
}


def recall(
    output: str,
    *,
    tasks: tuple[TaskName, ...] = ("recall",),
    models: tuple[ModelName, ...] = ("fox-pro", "transformer-pro"),
    seeds: tuple[int, ...] = (0,),
    steps: int | None = None,
    training_length: int | None = None,
    pairs: int | None = None,
    lengths: tuple[int, ...] | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
) -> None:
    """Train small models on recall tasks, then test them far beyond the trained length.

    Finished models are kept in recall.jsonl: a second call goes on with the next one.

    Args:
        output: folder for a .csv, .json and .png per task, recall_by_length.png and recall.jsonl.
        tasks: "recall" (one question about four pairs), "mqar" (multi-query associative recall:
            many questions about many pairs) and "passkey" (a key of several tokens).
        models: "fox-pro", "fox-llama", "transformer-pro" and "transformer-llama".
        seeds: of the weights, the training rows and the test rows; all models see the same.
        steps: training steps of 64 rows for each model; what the task needs if not given.
        training_length: tokens of a row in training; the task's own if not given.
        pairs: pairs in a row, or tokens of the passkey; the task's own if not given.
        lengths: tokens of the test rows; 1, 2, 4 and 8 training lengths if not given.
        device: where to train.

    Raises:
        ValueError: steps is not positive, nothing is asked for, a length is too short for the
            task, or there is no GPU.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, but got {steps}")
    if not (tasks and models and seeds):
        raise ValueError(
            "expected at least one task, one model and one seed, "
            f"but got {len(tasks)}, {len(models)} and {len(seeds)}"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("expected a GPU for device cuda, but torch finds none")
    folder, results = Path(output), []
    for task in chosen_tasks(tasks, training_length, pairs):
        asked = lengths or tuple(factor * task.training_length for factor in (1, 2, 4, 8))
        cells = learn(task, models, seeds, steps or task.steps, asked, device, folder)
        result = summarize(task, cells, steps or task.steps)
        write_csv(folder / f"{task.name}.csv", cells)
        write_json(folder / f"{task.name}.json", result)
        report(result)
        if None not in task.depths:
            draw_by_place(result, task, folder / f"{task.name}.png")
        results.append(result)
    draw_by_length(results, folder / "recall_by_length.png")


def chosen_tasks(
    names: Sequence[TaskName], training_length: int | None, pairs: int | None
) -> list[Task]:
    """The tasks, with the fields that are given in the place of their own."""
    given = {"training_length": training_length, "pairs": pairs}
    changes = {name: value for name, value in given.items() if value is not None}
    return [TASKS[name](**changes) for name in names]


def learn(
    task: Task,
    models: Sequence[ModelName],
    seeds: Sequence[int],
    steps: int,
    lengths: Sequence[int],
    device: str,
    folder: Path,
) -> list[Cell]:
    """The cells of every model and seed, from recall.jsonl where it has them."""
    stores = {}
    for model, seed in product(models, seeds):
        parts = (task, task_config(model, task), seed, steps, tuple(lengths))
        run = run_key(parts, (BATCH, LEARNING_RATE, ROWS_PER_CELL))
        stores[model, seed] = Store(folder / "recall.jsonl", run)
    missing = [key for key, store in stores.items() if not store.rows]
    total = len(missing) * (steps + len(lengths) * len(task.depths))
    with progress(f"{task.name}, {len(stores) - len(missing)} models known", total) as advance:
        for model, seed in missing:
            where = f"{NAMES[model]}, seed {seed}"
            cells = train_and_test(
                task,
                task_config(model, task),
                seed=seed,
                steps=steps,
                lengths=lengths,
                device=device,
                advance=partial(_note, advance, where),
            )
            stores[model, seed].append([{"cells": cells}])
    return [
        {"model": model, "seed": seed, **cell}
        for (model, seed), store in stores.items()
        for cell in store.rows[0]["cells"]
    ]


def _note(advance: Callable[[str], None], where: str, note: str) -> None:
    advance(f"{where}: {note}")


def summarize(task: Task, cells: Sequence[Cell], steps: int) -> dict[str, Any]:
    """Cells by model, and for each length the mean over depths, of all seeds and of each."""
    models = []
    for name in dict.fromkeys(cell["model"] for cell in cells):
        own = [
            {k: v for k, v in cell.items() if k != "model"}
            for cell in cells
            if cell["model"] == name
        ]
        config = task_config(name, task)
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in FoxForCausalLM(config).parameters())
        models.append(
            {
                "name": NAMES[name],
                "preset": name,
                "parameters": size,
                "config": asdict(config),
                "by_length": by_length(own),
                "cells": own,
            }
        )
    return {
        "task": task.name,
        "training_length": task.training_length,
        "pairs": task.pairs,
        "steps": steps,
        "seeds": list(dict.fromkeys(cell["seed"] for cell in cells)),
        "rows_per_cell": ROWS_PER_CELL,
        "chance": task.chance,
        "models": models,
    }


def by_length(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """For each length the mean over depths and seeds, and the lowest and highest seed's mean."""
    rows = []
    for length in dict.fromkeys(cell["length"] for cell in cells):
        by_seed: dict[int, list[float]] = {}
        for cell in cells:
            if cell["length"] == length:
                by_seed.setdefault(cell["seed"], []).append(cell["accuracy"])
        means = [fmean(values) for values in by_seed.values()]
        spread = {"lowest": min(means), "highest": max(means), "seeds": len(means)}
        rows.append({"length": length, "accuracy": fmean(means), **spread})
    return rows


def report(result: dict[str, Any]) -> None:
    print_line = Console(soft_wrap=True, highlight=False, markup=False).print
    for model in result["models"]:
        shares = ", ".join(f"{row['length']}: {spelt(row)}" for row in model["by_length"])
        print_line(f"{result['task']}, {model['name']}: right answers by length {shares}")


def spelt(row: dict[str, Any]) -> str:
    """The mean over seeds, with the lowest and the highest if there are several."""
    if row["seeds"] == 1:
        return f"{row['accuracy']:.1%}"
    return f"{row['accuracy']:.1%} ({row['lowest']:.1%} to {row['highest']:.1%})"
