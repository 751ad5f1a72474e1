"""Puts prompts to a model and grades its answers, without a judge.

Each answer is scored by its probability in one forward pass, and by the strings in the model's
greedy continuation. Legend: B batch, T time, V vocabulary, n tokens of an answer.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import Any

import torch

from fox.corpus import Document
from fox.eval.haystack import Haystack, Key, Prompt, Riddle
from fox.eval.models import EvalModel, load_model, tail_names
from fox.eval.progress import progress
from fox.eval.store import Store
from fox.eval.text import batches_of

SHARES = ("chosen", "match", "word_recall", "exact", "probability")
MEASURES = (*SHARES, "log_prob")

PAPERS_TRAINING_LENGTH = 16_384

Row = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A model with what it is asked.

    Attributes:
        name: for tables and pictures.
        model: under test.
        haystack: texts in the model's tokens.
        riddles: task -> (key -> riddle).
    """

    name: str
    model: EvalModel
    haystack: Haystack
    riddles: Mapping[str, Callable[[Key], Riddle]]

    def prompt(self, key: Key) -> Prompt:
        return self.haystack.prompt(key, self.riddles[key.task](key))

    def fixed_tokens(self, tasks: Iterable[str]) -> int:
        """Tokens that are no text in the longest task: introduction, needles and question."""
        keys = (Key(task, 0, 0.0, 0, True) for task in tasks)
        return max(self.haystack.fixed_tokens(self.riddles[key.task](key)) for key in keys)


def subjects(
    paths: Sequence[str],
    documents: Sequence[Document],
    riddles_of: Callable[[Haystack], Mapping[str, Callable[[Key], Riddle]]],
) -> list[Subject]:
    """Load the models, each with a haystack in its own tokens.

    Raises:
        ValueError: a model cannot be loaded, or comes twice.
    """
    found = []
    for name, path in zip(tail_names(paths), paths, strict=True):
        model = load_model(path)
        haystack = Haystack(model.tokenizer, documents, model.bos)
        found.append(Subject(name, model, haystack, riddles_of(haystack)))
    return found


def check_new_tokens(new_tokens: int) -> None:
    if new_tokens < 1:
        raise ValueError(f"new_tokens must be at least 1, but got {new_tokens}")


def longest_training(tested: Sequence[Subject]) -> int:
    """Tokens of the longest training rows; those of the paper's models if none are known."""
    known = [subject.model.training_length for subject in tested]
    return max((length for length in known if length), default=PAPERS_TRAINING_LENGTH)


def ask(subject: Subject, keys: Sequence[Key], store: Store, new_tokens: int) -> list[Row]:
    """Put every prompt that is not yet in the store to the model.

    Args:
        subject: answers.
        keys: of the prompts, all of one task.
        store: takes the answers, batch by batch.
        new_tokens: length of the continuations; with 0 there are none.

    Returns:
        The rows of these keys, new or not.
    """
    wanted = {*keys}
    done = wanted & {key_of(row) for row in store.rows}
    batches = []
    for length, group in groupby(sorted(wanted - done, key=by_length), lambda key: key.length):
        same = list(group)
        batches += [same[batch] for batch in batches_of(len(same), length)]
    title = f"{keys[0].task}, {subject.name}, {len(done)} prompts known"
    with progress(title, len(batches)) as advance:
        for batch in batches:
            prompts = [subject.prompt(key) for key in batch]
            store.append(graded(subject.model, prompts, new_tokens))
            advance(f"length {batch[0].length:,}")
    return [row for row in store.rows if key_of(row) in wanted]


def by_length(key: Key) -> tuple[float, ...]:
    """Short prompts come first; all batches are the same every time."""
    return key.length, key.seed, -1 if key.depth is None else key.depth, key.planted


def key_of(row: Row) -> Key:
    return Key(*(row[name] for name in Key._fields))


def graded(model: EvalModel, prompts: Sequence[Prompt], new_tokens: int) -> Iterator[Row]:
    """A row per prompt; see `graded_texts` and `graded_choices`."""
    for size, group in groupby(
        sorted(prompts, key=lambda prompt: len(prompt.answer)), lambda prompt: len(prompt.answer)
    ):
        same = list(group)
        if same[0].candidates:
            yield from graded_choices(model, same)
        else:
            yield from graded_texts(model, same, size, new_tokens)


def graded_choices(model: EvalModel, prompts: Sequence[Prompt]) -> Iterator[Row]:
    """One-token answers: whether the likeliest of all tokens, and the likeliest candidate."""
    ids = torch.tensor([prompt.ids for prompt in prompts])
    for prompt, log_probs in zip(prompts, model.next_token_log_probs(ids), strict=True):
        [answer] = prompt.answer
        among = log_probs[list(prompt.candidates)].log_softmax(-1)  # (candidates,)
        right = prompt.candidates.index(answer)
        log_prob = float(log_probs[answer])
        yield {
            **about(prompt, log_prob),
            "exact": int(log_probs.argmax()) == answer,
            "chosen": int(among.argmax()) == right,
            "log_prob_among_candidates": float(among[right]),
        }


def graded_texts(
    model: EvalModel, prompts: Sequence[Prompt], answer_tokens: int, new_tokens: int
) -> Iterator[Row]:
    """Answers of n tokens each: their probability, and what the model says by itself.

    `exact` tells whether each token of the answer is the likeliest after those before it; then the
    greedy continuation begins with the answer, and is not generated once more.
    """
    ids = torch.tensor([prompt.ids + prompt.answer for prompt in prompts])
    log_probs, likeliest = model.answer_log_probs(ids, answer_tokens)  # (B, n)
    for prompt, values, right in zip(prompts, log_probs, likeliest.all(-1).tolist(), strict=True):
        row = {**about(prompt, float(values.sum())), "exact": right}
        if new_tokens:
            new = prompt.answer[:new_tokens] if right else model.generate(prompt.ids, new_tokens)
            text = model.tokenizer.decode(new, skip_special_tokens=False)
            row["match"] = share_found(prompt.expected, text)
            row["word_recall"] = word_recall(prompt.expected, text)
            row["continuation"] = text
        yield row


def about(prompt: Prompt, log_prob: float) -> Row:
    """What every row tells: `probability` is per token, the geometric mean over the answer."""
    return {
        **prompt.key._asdict(),
        "position": prompt.position,
        "answer_tokens": len(prompt.answer),
        "log_prob": log_prob,
        "probability": math.exp(log_prob / len(prompt.answer)),
    }


def share_found(expected: Sequence[str], text: str) -> float:
    """Share of the expected strings that the text holds, whatever the case and white space."""
    said = " ".join(text.lower().split())
    return fmean(" ".join(string.lower().split()) in said for string in expected)


def word_recall(expected: Sequence[str], text: str) -> float:
    """Share of the different words of the expected strings that are words of the text."""
    wanted = {word for string in expected for word in re.findall(r"\w+", string.lower())}
    return len(wanted & {*re.findall(r"\w+", text.lower())}) / len(wanted)


def summarize(rows: Iterable[Row], by: Sequence[str]) -> list[Row]:
    """Means per cell, with those of its controls; a control of no depth belongs to every depth.

    Args:
        rows: of one task, with needle and without.
        by: names of what makes a cell, of "length" and "depth".

    Returns:
        For each cell its place, `prompts`, the tokens before the needle, the means of MEASURES as
        far as they were taken, `control_` of the same, and `gain`: what the needle adds to the
        answer's log probability, in nats.
    """
    rows = list(rows)
    places: dict[tuple[float, ...], list[Row]] = {}
    for row in rows:
        if row["planted"]:
            places.setdefault(tuple(row[name] for name in by), []).append(row)
    cells = []
    for place, planted in sorted(places.items()):
        where = dict(zip(by, place, strict=True))
        control = [
            row
            for row in rows
            if not row["planted"] and all(row[name] in (where[name], None) for name in by)
        ]
        cell: Row = {**where, "prompts": len(planted)}
        cell["mean_position"] = fmean(row["position"] for row in planted)
        cell |= means(planted, "") | means(control, "control_")
        cells.append(cell | {"gain": cell["log_prob"] - cell["control_log_prob"]})
    return cells


def means(rows: Sequence[Row], prefix: str) -> Row:
    return {prefix + name: fmean(row[name] for row in rows) for name in MEASURES if name in rows[0]}


def mean_of(cells: Sequence[Row]) -> dict[str, float]:
    """Means over all cells."""
    names = [f"{prefix}{name}" for name in MEASURES for prefix in ("", "control_")]
    return {
        name: fmean(cell[name] for cell in cells) for name in (*names, "gain") if name in cells[0]
    }
