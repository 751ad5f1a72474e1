"""RULER's tasks: who reads the prompt can answer, who does not cannot, and the rest is counted."""

import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from fox.corpus import Document
from fox.eval.grading import Subject, ask, summarize
from fox.eval.haystack import Haystack, Key
from fox.eval.ruler import Task, scaled_lengths, table_of, task_keys
from fox.eval.ruler_tasks import NOISE, TASKS, Secrets
from fox.eval.store import Store

LENGTH = 800
CUE = r".*Answer: The (value \d+ is that of|secret .*? (is|are)(?= |$))"
Subjects = Callable[..., Subject]


@pytest.fixture(scope="module")
def haystack(tokenizer: Tokenizer, documents: list[Document]) -> Haystack:
    return Haystack(tokenizer, documents)


@pytest.fixture(scope="module")
def subject(haystack: Haystack, fake_model: Callable[..., Any]) -> Subjects:
    """(predict, training length) -> subject of RULER's tasks."""
    return lambda predict, training_length=None: Subject(
        "fake", fake_model(predict, training_length), haystack, TASKS
    )


def solution(text: str) -> list[str]:
    """The answer, found by reading a prompt as a person would."""
    context, question = text[: text.rindex("\n")], text[text.rindex("\n") :]
    if "variables" in question:
        [value] = re.findall(r"have the value (\d+)", question)
        names: list[str] = []
        for name, source in re.findall(r"^([A-Z]+) = (\w+)$", context, re.MULTILINE):
            if source in (value, *names):
                names.append(name)
        return names
    [asked] = re.findall(r"secret \w+ of (.*)\?", question)
    told = re.findall(r"secret \w+ of (\S+) is (\S+)\.\n", context)
    return [value for name in asked.split(" and ") for owner, value in told if owner == name]


def reading(tokenizer: Tokenizer) -> Callable[[list[int]], Tensor]:
    """A perfect model: it solves the prompt, and goes on where its answer stands."""

    def predict(ids: list[int]) -> Tensor:
        text = tokenizer.decode(ids)
        cue = re.search(CUE, text, re.DOTALL)
        assert cue is not None
        said = text[cue.end() :]
        whole = " " + ", ".join(solution(cue.group()))
        rest = whole[len(said) :] if whole.startswith(said) else "\n"
        log_probs = torch.full((500,), -20.0)
        log_probs[tokenizer.encode(rest or "\n").ids[0]] = -0.1
        return log_probs

    return predict


@pytest.mark.parametrize("task", list(TASKS))
def test_prompts_have_their_length_and_hold_what_is_expected_only_if_planted(
    task: str, haystack: Haystack, tokenizer: Tokenizer
) -> None:
    for seed in range(4):
        key = Key(task, LENGTH, None, seed, True)
        planted = haystack.prompt(key, TASKS[task](key))
        key = key._replace(planted=False)
        control = haystack.prompt(key, TASKS[task](key))
        assert len(planted.ids) == len(control.ids) == LENGTH
        assert control.expected == planted.expected
        text, bare = tokenizer.decode(planted.ids), tokenizer.decode(control.ids)
        assert all(string in text for string in planted.expected)
        assert not any(string in bare for string in planted.expected)
        assert text.splitlines()[-1] == bare.splitlines()[-1]
        assert solution(text) == planted.expected
        assert tokenizer.decode(planted.answer) == " " + ", ".join(planted.expected)


def test_the_tasks_have_the_forms_of_the_paper() -> None:
    forms = {
        task: (form.value, form.name, form.background, form.num_names, form.num_values)
        for task, form in TASKS.items()
        if isinstance(form, Secrets)
    }
    assert forms == {
        "single-1": ("number", "word", "noise", 1, 1),
        "single-2": ("number", "word", "text", 1, 1),
        "single-3": ("code", "word", "text", 1, 1),
        "multikey-1": ("number", "word", "text", 4, 1),
        "multikey-2": ("number", "word", "secrets", 1, 1),
        "multikey-3": ("code", "code", "secrets", 1, 1),
        "multivalue": ("number", "word", "text", 1, 4),
        "multiquery": ("number", "word", "text", 4, 1),
    }
    riddles = {task: form(Key(task, 9, None, 0, True)) for task, form in TASKS.items()}
    assert get_args(Task) == tuple(TASKS)
    several = {task: len(riddle.expected) for task, riddle in riddles.items()}
    ones = dict.fromkeys(TASKS, 1)
    assert several == ones | {"multivalue": 4, "multiquery": 4, "variables": 5}


@pytest.mark.parametrize("task", ["single-1", "multikey-1", "multikey-2"])
def test_the_needle_asked_for_stands_at_its_depth(
    task: str, haystack: Haystack, tokenizer: Tokenizer
) -> None:
    for depth in (0.0, 0.5, 1.0):
        key = Key(task, LENGTH, depth, 0, True)
        text = tokenizer.decode(haystack.prompt(key, TASKS[task](key)).ids)
        start, end = text.index("\n"), text.rindex("\n")  # introduction, question
        place = text.index(f" is {TASKS[task](key).expected[0]}.")
        assert depth - 0.2 <= (place - start) / (end - start) <= depth + 0.1


def test_backgrounds_are_noise_text_and_other_secrets(
    haystack: Haystack, tokenizer: Tokenizer
) -> None:
    texts = {}
    for task in ("single-1", "single-2", "multikey-2"):
        key = Key(task, LENGTH, 0.5, 0, True)
        texts[task] = tokenizer.decode(haystack.prompt(key, TASKS[task](key)).ids)
    assert texts["single-1"].count(NOISE) > 5
    assert "def " in texts["single-2"]
    told = re.findall(r"secret number of (\S+) is (\d{7})\.", texts["multikey-2"])
    assert len({name for name, _ in told}) == len(told) > 8


def test_the_name_asked_for_has_no_second_secret_among_the_others() -> None:
    form, key = Secrets("number", background="secrets"), Key("multikey-2", 9, 0.5, 0, True)
    first, second = islice(form._others(key, set()), 2)
    name = first.split()[4]
    assert next(form._others(key, {name})) == second


def test_a_model_that_reads_finds_everything_in_each_task(
    subject: Subjects, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tested = subject(reading(tokenizer))
    for task in TASKS:
        keys = task_keys(task, [LENGTH], 2, planted=True)
        rows = ask(tested, keys, Store(tmp_path / "a.jsonl", "run"), 150)
        assert [row["match"] for row in rows] == [1, 1], rows


def test_a_blind_model_finds_nothing_and_a_needle_does_not_help_it(
    subject: Subjects, tmp_path: Path
) -> None:
    flat = torch.full((500,), 1 / 500).log()
    store = Store(tmp_path / "a.jsonl", "run")
    for task in TASKS:
        rows = ask(subject(lambda ids: flat), task_keys(task, [LENGTH], 2, True), store, 3)
        rows += ask(subject(lambda ids: flat), task_keys(task, [LENGTH], 2, False), store, 0)
        [cell] = summarize(rows, ["length"])
        assert cell["match"] == cell["exact"] == 0
        assert cell["gain"] == 0
        assert cell["probability"] == pytest.approx(1 / 500, rel=1e-4)
        assert "control_match" not in cell


def test_half_of_the_values_found_is_half_a_point(subject: Subjects, tmp_path: Path) -> None:
    key = Key("multivalue", LENGTH, None, 0, True)
    tested = subject(lambda ids: torch.zeros(500).log_softmax(-1))
    first, _, third, _ = TASKS["multivalue"](key).expected
    tested.model.generate = lambda ids, new: tested.haystack.ids(f" {third} {first} {first}")
    [row] = ask(tested, [key], Store(tmp_path / "a.jsonl", "run"), 99)
    assert row["match"] == 0.5


def test_samples_take_the_depths_in_turn_and_more_samples_keep_the_first_ones() -> None:
    few, many = (task_keys("single-1", [100], count, planted=True) for count in (3, 7))
    assert many[:3] == few
    assert [key.depth for key in many] == [0.0, 0.25, 0.5, 0.75, 1.0, 0.0, 0.25]
    assert {key.depth for key in task_keys("multivalue", [100], 5, planted=True)} == {None}


def test_default_lengths_surround_the_training_length(subject: Subjects) -> None:
    flat = torch.zeros(500)
    assert scaled_lengths([subject(lambda ids: flat, 8000)], ["single-1"]) == (
        *(2000, 4000),
        *(8000, 16000, 32000),
    )
    lengths = scaled_lengths([subject(lambda ids: flat, 256)], ["single-1"])
    assert lengths[-2:] == (512, 1024)
    assert len(lengths) < 5
    with pytest.raises(
        ValueError, match=r"needles and question take \d+, but.*trained on 32: give"
    ):
        scaled_lengths([subject(lambda ids: flat, 32)], ["single-1"])


def test_the_table_ends_in_the_mean_and_the_control() -> None:
    def cells(*values: float) -> list[dict[str, float]]:
        return [
            {"length": length, "probability": value, "control_probability": 0.1}
            for length, value in zip((10, 20), values, strict=True)
        ]

    result = {"tasks": {"a": {"cells": cells(1.0, 0.5)}, "b": {"cells": cells(0.5, 0.0)}}}
    lengths, rows = table_of(result, "probability")
    assert lengths == [10, 20]
    assert list(rows) == ["a", "b", "mean", "no needles"]
    assert rows["mean"] == [0.75, 0.25]
    assert rows["no needles"] == [0.1, 0.1]
