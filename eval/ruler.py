"""RULER's synthetic tasks: how long may a prompt be until a model loses what it holds?

Scored as in RULER, by the share of the expected strings in the greedy continuation, and, for base
models that are too small to be right, by the probability of the right answer.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, get_args

from rich.console import Console
from rich.table import Table

from fox.eval.grading import (
    Row,
    Subject,
    ask,
    check_new_tokens,
    longest_training,
    mean_of,
    subjects,
    summarize,
)
from fox.eval.haystack import PROTOCOL, Key
from fox.eval.heat_maps import Panel, depth_panel, draw_panels
from fox.eval.ruler_tasks import TASKS
from fox.eval.store import Store, run_key
from fox.eval.text import Split, documents_of
from fox.files import write_csv, write_json

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)  # the samples of a task take them in turn
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)  # times the training length
PANELS_PER_ROW = 3
PICTURES = (  # name, measure, note
    ("ruler", "match", "share of the expected strings in the greedy continuation"),
    (
        "ruler_probability",
        "probability",
        "probability of the right answer per token (geometric mean), given the tokens before it; "
        "the last row holds the same questions without the needles",
    ),
)

Task = Literal[
    "single-1",
    "single-2",
    "single-3",
    "multikey-1",
    "multikey-2",
    "multikey-3",
    "multivalue",
    "multiquery",
    "variables",
]


def ruler(
    model: list[str],
    output: str,
    *,
    tasks: tuple[Task, ...] = get_args(Task),
    lengths: tuple[int, ...] | None = None,
    samples: int = 20,
    new_tokens: int = 128,
    files: list[str] | None = None,
    split: Split = "held_out",
) -> None:
    """Find several needles, or the right one of many, and follow variables, at growing lengths.

    Finished prompts are kept in ruler.jsonl: a second call with the same model and text goes on
    where the first one stopped.

    Args:
        model: one or more models: folders, .ckpt files, or names that transformers can load.
        output: folder for ruler.jsonl, .csv and .json, and the pictures.
        tasks: single-1 to -3 hide one number in noise, one in text, one code in text; multikey-1
            to -3 ask for one of four numbers in text, one of many numbers, one of many codes;
            multivalue and multiquery ask for four numbers of one name or of four; variables asks
            for the names in a chain of assignments.
        lengths: whole prompts, in tokens; if not given, 1/4, 1/2, 1, 2 and 4 times the training
            length, as far as the tasks fit in.
        samples: prompts per task and length.
        new_tokens: length of the model's own continuation, in which the answers are looked for.
        files: glob patterns of .txt, .jsonl or .parquet files; the standard library if not given.
        split: "held_out" takes the documents that training never sees, "all" every document.

    Raises:
        ValueError: no task, length or sample, an impossible length, or too little text.
    """
    num_lengths = len(SCALES) if lengths is None else len(lengths)
    if min(len(tasks), num_lengths, samples) < 1:
        raise ValueError(
            "expected at least one task, length and sample, "
            f"but got {len(tasks)}, {num_lengths} and {samples}"
        )
    check_new_tokens(new_tokens)
    documents = documents_of(files, split)
    tested = subjects(model, documents, lambda haystack: TASKS)
    if lengths is None:
        lengths = scaled_lengths(tested, tasks)
    for subject in tested:
        subject.haystack.check(max(lengths))
    folder = Path(output)
    results = []
    for subject in tested:
        run = run_key(subject.model.fingerprint(), PROTOCOL, documents, new_tokens)
        store = Store(folder / "ruler.jsonl", run)
        rows: dict[str, list[Row]] = {}
        for task in tasks:
            planted, control = (
                task_keys(task, lengths, samples, hidden) for hidden in (True, False)
            )
            rows[task] = ask(subject, planted, store, new_tokens)
            rows[task] += ask(subject, control, store, 0)  # random values are never right by luck
        results.append(result_of(subject, rows))
    write_csv(
        folder / "ruler.csv",
        [
            {"model": result["name"], "task": task, **cell}
            for result in results
            for task, measured in result["tasks"].items()
            for cell in measured["cells"]
        ],
    )
    about = {"samples": samples, "new_tokens": new_tokens}
    write_json(folder / "ruler.json", {**about, "models": results})
    report(results)
    draw(results, samples, folder)


def scaled_lengths(tested: Sequence[Subject], tasks: Sequence[str]) -> tuple[int, ...]:
    """Shares and multiples of the largest training length; half of each prompt at most is no text.

    Raises:
        ValueError: none is long enough.
    """
    fixed = max(subject.fixed_tokens(tasks) for subject in tested)
    training = longest_training(tested)
    lengths = tuple(round(scale * training) for scale in SCALES if scale * training >= 2 * fixed)
    if not lengths:
        raise ValueError(
            f"expected a training length of {round(2 * fixed / SCALES[-1])} tokens or more, since "
            f"needles and question take {fixed}, but the models were trained on {training}: give "
            "--lengths"
        )
    return lengths


def task_keys(task: str, lengths: Sequence[int], samples: int, planted: bool) -> list[Key]:
    return [
        Key(task, length, DEPTHS[n % len(DEPTHS)] if TASKS[task].has_depth else None, n, planted)
        for length in lengths
        for n in range(samples)
    ]


def result_of(subject: Subject, rows: dict[str, list[Row]]) -> dict[str, Any]:
    """What a model reached: means per length, and per length and depth where one needle counts."""
    tasks: dict[str, Any] = {}
    for task, answers in rows.items():
        cells = summarize(answers, ["length"])
        tasks[task] = {"mean": mean_of(cells), "cells": cells}
        if TASKS[task].has_depth:
            tasks[task]["depth_cells"] = summarize(answers, ["length", "depth"])
    length = subject.model.training_length
    return {"name": subject.name, "training_length": length, "tasks": tasks}


def table_of(result: dict[str, Any], measure: str) -> tuple[list[int], dict[str, list[float]]]:
    """Lengths, and for each task and their mean the measure at each length."""
    cells = {task: measured["cells"] for task, measured in result["tasks"].items()}
    rows = {task: [cell[measure] for cell in line] for task, line in cells.items()}
    columns = list(zip(*cells.values(), strict=True))
    rows["mean"] = [fmean(cell[measure] for cell in column) for column in columns]
    control = f"control_{measure}"
    if control in columns[0][0]:
        rows["no needles"] = [fmean(cell[control] for cell in column) for column in columns]
    return [column[0]["length"] for column in columns], rows


def report(results: Sequence[dict[str, Any]]) -> None:
    for result in results:
        lengths, rows = table_of(result, "match")
        table = Table(
            "share found",
            *(f"{length:,}" for length in lengths),
            title=f"RULER's tasks, {result['name']}, by the length of the prompt",
            title_justify="left",
        )
        for task, shares in rows.items():
            table.add_row(task, *(f"{share:.1%}" for share in shares))
        Console(highlight=False, markup=False).print(table)


def draw(results: Sequence[dict[str, Any]], samples: int, folder: Path) -> None:
    """Task x length for strings and for probabilities; depth x length where one needle counts."""
    title = f"RULER's tasks, {samples} prompts per task and length"
    for name, measure, note in PICTURES:
        panels = [table_panel(result, measure) for result in results]
        draw_panels([panels], title, "", note, folder / f"{name}.png")
    panels = [
        depth_panel(
            f"{result['name']}, {task}: {measured['mean']['match']:.0%}",
            measured["depth_cells"],
            "match",
            result["training_length"],
        )
        for result in results
        for task, measured in result["tasks"].items()
        if "depth_cells" in measured
    ]
    lines = [panels[n : n + PANELS_PER_ROW] for n in range(0, len(panels), PANELS_PER_ROW)]
    if lines:
        ylabel = "depth of the needle"
        draw_panels(lines, title, ylabel, PICTURES[0][2], folder / "ruler_depths.png")


def table_panel(result: dict[str, Any], measure: str) -> Panel:
    lengths, rows = table_of(result, measure)
    title = f"{result['name']}: {fmean(rows['mean']):.0%} on average"
    apart = len(rows) - len(result["tasks"])
    return Panel(title, list(rows.values()), list(rows), lengths, result["training_length"], apart)
