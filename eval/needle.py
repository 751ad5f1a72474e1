"""A needle in a haystack: a statement planted in real text and asked for at its end.

The modes `standard` and `easy` are those of the FoX paper, on text of one's own and without its
judge: there a large model graded the answers, here strings and probabilities do. The mode
`assignment` is for models that are too small to answer in words:

    ... text ...                 the haystack, held-out documents
    KOLUMA = "river"             the needle, at the end of a line or sentence, at some depth
    ... text ...
    KOLUMA = "                   the question; the right next token is `river`

Its value is one token: is it the likeliest of all tokens (exact), and of 16 possible values
(chosen, by chance 1/16)? The control of every mode is the same question without the needle.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from fox.eval.grading import (
    PAPERS_TRAINING_LENGTH,
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
from fox.eval.heat_maps import depth_panel, draw_panels
from fox.eval.riddles import CANDIDATES, CUE, NEEDLE, QUESTION, Assignment, Statement
from fox.eval.store import Store, run_key
from fox.eval.text import Split, documents_of
from fox.files import write_csv, write_json

# The grid of the FoX paper, whose models were trained on rows of 16,384 tokens.
SHORTEST, LONGEST, NUM_LENGTHS = 1000, 32_000, 11
DEPTHS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
MEANINGS = {
    "match": "found",
    "word_recall": "of the words found",
    "chosen": f"right of {CANDIDATES} values",
    "exact": "likeliest of all",
    "probability": "probability per token",
}

PICTURES: dict[str, dict[str, tuple[str, ...]]] = {
    "needle": {"standard": ("match",), "easy": ("match",), "assignment": ("chosen", "exact")},
    "needle_probability": {"standard": ("probability",), "easy": ("probability",)},
}
NOTES = {
    "needle": "share of right answers; the last row is the same question without the needle",
    "needle_probability": (
        "probability of the right answer per token (geometric mean), given the tokens before it; "
        "the last row is the same question without the needle"
    ),
}

Mode = Literal["standard", "easy", "assignment"]


def needle(
    model: list[str],
    output: str,
    *,
    modes: tuple[Mode, ...] = ("standard", "easy"),
    lengths: tuple[int, ...] | None = None,
    depths: tuple[float, ...] = DEPTHS,
    seeds: int = 1,
    needle: str = NEEDLE,
    question: str = QUESTION,
    cue: str = CUE,
    new_tokens: int = 64,
    files: list[str] | None = None,
    split: Split = "held_out",
) -> None:
    """Find a planted statement in held-out text, over a grid of lengths and depths.

    Finished prompts are kept in needle.jsonl: a second call with the same model and text goes on
    where the first one stopped.

    Args:
        model: one or more models: folders, .ckpt files, or names that transformers can load.
        output: folder for needle.jsonl, .csv and .json, and the pictures.
        modes: "standard" plants the statement, "easy" the question and cue with it, "assignment"
            a made-up name and its value, for tiny models.
        lengths: whole prompts, in tokens; if not given, the paper's 11 from 1000 to 32000,
            stretched to the training length as 16384 is to theirs.
        depths: where the needle stands, from 0 (first line) to 1 (last line before the question).
        seeds: prompts per cell, each with another text.
        needle: the statement; it begins with the cue, and the rest is the answer.
        question: what the statement answers.
        cue: the beginning of the answer, with which prompts end.
        new_tokens: length of the model's own continuation, in which the answer is looked for.
        files: glob patterns of .txt, .jsonl or .parquet files; the standard library if not given.
        split: "held_out" takes the documents that training never sees, "all" every document.

    Raises:
        ValueError: an empty or impossible grid or needle, or too little text.
    """
    check_grid(modes, lengths, depths, seeds)
    check_new_tokens(new_tokens)
    standard = Statement(needle, question, cue, easy=False)
    easy = Statement(needle, question, cue, easy=True)
    documents = documents_of(files, split)
    tested = subjects(
        model,
        documents,
        lambda haystack: {"standard": standard, "easy": easy, "assignment": Assignment(haystack)},
    )
    if lengths is None:
        lengths = scaled_lengths(tested, modes)
    for subject in tested:
        subject.haystack.check(max(lengths))
    folder = Path(output)
    protocol = (PROTOCOL, documents, needle, question, cue, new_tokens)
    results = []
    for subject in tested:
        run = run_key(subject.model.fingerprint(), *protocol)
        store = Store(folder / "needle.jsonl", run)
        rows: dict[str, list[Row]] = {}
        for mode in modes:
            keys = grid_keys(mode, lengths, depths, seeds)
            rows[mode] = ask(subject, keys, store, new_tokens)
        results.append(result_of(subject, rows))
    task = {"needle": needle, "question": question, "cue": cue, "new_tokens": new_tokens}
    write_cells(folder / "needle.csv", results)
    write_json(folder / "needle.json", {"seeds": seeds, **task, "models": results})
    report(results)
    draw(results, seeds, folder)


def check_grid(
    modes: Sequence[str], lengths: Sequence[int] | None, depths: Sequence[float], seeds: int
) -> None:
    """Raises ValueError if the grid is empty, or a depth is no share."""
    num_lengths = NUM_LENGTHS if lengths is None else len(lengths)
    if min(len(modes), num_lengths, len(depths), seeds) < 1:
        raise ValueError(
            "expected at least one mode, length, depth and seed, "
            f"but got {len(modes)}, {num_lengths}, {len(depths)} and {seeds}"
        )
    wrong = [depth for depth in depths if not 0 <= depth <= 1]
    if wrong:
        raise ValueError(f"depths lie between 0 and 1, but got {wrong[0]}: write 50 % as 0.5")


def scaled_lengths(tested: Sequence[Subject], modes: Sequence[str]) -> tuple[int, ...]:
    """The paper's lengths times the largest training length over its own.

    No prompt is shorter than twice what is no text in it.
    """
    training = longest_training(tested)
    scale = training / PAPERS_TRAINING_LENGTH
    fixed = max(subject.fixed_tokens(modes) for subject in tested)
    first, last = max(SHORTEST * scale, 2 * fixed), LONGEST * scale
    if first >= last:
        raise ValueError(
            f"expected a training length of {2 * fixed * PAPERS_TRAINING_LENGTH // LONGEST + 1} "
            f"tokens or more, since needle and question take {fixed}, but the models were trained "
            f"on {training}: give --lengths, or --modes assignment"
        )
    step = (last - first) / (NUM_LENGTHS - 1)
    return tuple(round(first + step * number) for number in range(NUM_LENGTHS))


def grid_keys(mode: str, lengths: Sequence[int], depths: Sequence[float], seeds: int) -> list[Key]:
    """Every (length, depth, seed), with the needle and without.

    Without it, the depth makes a difference to the name in an assignment alone.
    """
    planted = [Key(mode, *cell, True) for cell in product(lengths, depths, range(seeds))]
    places: Sequence[float | None] = depths if mode == "assignment" else [None]
    return planted + [Key(mode, *cell, False) for cell in product(lengths, places, range(seeds))]


def result_of(subject: Subject, rows: dict[str, list[Row]]) -> dict[str, Any]:
    """What a model reached in each mode."""
    modes: dict[str, Any] = {}
    for mode, answers in rows.items():
        cells = summarize(answers, ("length", "depth"))
        modes[mode] = {"mean": mean_of(cells), "cells": cells}
        if mode == "assignment":
            chance = {"chosen": 1 / CANDIDATES, "exact": 1 / subject.model.vocab_size}
            modes[mode] |= {"candidates": CANDIDATES, "chance": chance}
    length = subject.model.training_length
    return {"name": subject.name, "training_length": length, "modes": modes}


def write_cells(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """A line per cell; what a mode does not measure stays empty."""
    lines = [
        {"model": result["name"], "mode": mode, **cell}
        for result in results
        for mode, measured in result["modes"].items()
        for cell in measured["cells"]
    ]
    names = dict.fromkeys(name for line in lines for name in line)
    write_csv(path, [{name: line.get(name, "") for name in names} for line in lines])


def report(results: Sequence[dict[str, Any]]) -> None:
    print_line = Console(soft_wrap=True, highlight=False, markup=False).print
    for result in results:
        for mode, measured in result["modes"].items():
            print_line(f"needle, {mode}, {result['name']}:")
            mean, chance = measured["mean"], measured.get("chance", {})
            for measure, meaning in MEANINGS.items():
                if measure in mean:
                    by_chance = f", chance {chance[measure]:.2%}" if measure in chance else ""
                    print_line(
                        f"  {meaning}: {mean[measure]:.1%}, without the needle "
                        f"{mean[f'control_{measure}']:.1%}{by_chance}"
                    )
            print_line(f"  log probability of the answer: {mean['gain']:+.2f} nats by the needle")


def draw(results: Sequence[dict[str, Any]], seeds: int, folder: Path) -> None:
    """needle.png shows what was found, needle_probability.png how likely longer answers were."""
    prompts = "1 prompt" if seeds == 1 else f"{seeds} prompts"
    for name, measures_of in PICTURES.items():
        panels = [
            [
                depth_panel(
                    f"{result['name']}, {mode}: "
                    f"{measured['mean'][measure]:.0%} {MEANINGS[measure]}",
                    measured["cells"],
                    measure,
                    result["training_length"],
                )
                for mode, measured in result["modes"].items()
                for measure in measures_of.get(mode, ())
            ]
            for result in results
        ]
        if panels[0]:
            draw_panels(
                panels,
                f"Needle in held-out text, {prompts} per cell",
                "depth of the needle (0% = start)",
                NOTES[name],
                folder / f"{name}.png",
            )
