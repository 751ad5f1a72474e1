"""LongBench's scores, by hand, and its protocol on a model."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from fox.eval.longbench import (
    TASKS,
    class_match,
    edit_similarity,
    first_code_line,
    first_line,
    longbench,
    prompt_template,
    question_f1,
    read_records,
    rouge_l,
    without_middle,
)
from fox.eval.models import EvalModel, load_model


def test_question_f1_counts_common_words_without_articles_case_and_punctuation() -> None:
    assert question_f1("The River, wide", "a river", []) == pytest.approx(2 * 1 / (2 + 1))
    assert question_f1("stone", "river", []) == question_f1("", "river", []) == 0


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence() -> None:
    # "the mat" of 3 and of 4 words
    assert rouge_l("the red mat", "on the mat today", []) == pytest.approx(2 * 2 / (3 + 4))
    assert rouge_l("", "a", []) == 0


def test_a_class_counts_by_how_many_are_named() -> None:
    classes = ["Food", "Other location", "location"]
    assert class_match("Food", "Food", classes) == 1
    assert class_match("Food or location", "Food", classes) == 1 / 2
    assert class_match("Other location", "Other location", classes) == 1  # not also "location"
    assert class_match("Food", "location", classes) == 0


def test_edit_similarity_is_twice_the_matches_over_all_characters() -> None:
    assert edit_similarity("abcd", "abxd", []) == 0.75
    assert edit_similarity("", "abc", []) == 0


def test_only_the_first_line_counts() -> None:
    assert first_line("\n\nParis \nLondon") == "Paris"
    assert first_code_line("\n# why\n`x`\n// y\n  a = 1\nb") == "  a = 1"
    assert first_code_line("# only") == ""


def test_a_long_prompt_loses_its_middle() -> None:
    assert without_middle(list(range(10)), 4) == [0, 1, 8, 9]
    assert without_middle(list(range(10)), 5) == [0, 1, 2, 8, 9]
    assert without_middle([1, 2], 4) == [1, 2]


@pytest.mark.parametrize("task", TASKS)
def test_every_prompt_has_its_places(task: str) -> None:
    template = prompt_template(task)
    assert "{context}" in template
    assert template.format_map({"context": "CONTEXT", "question": "QUESTION"}).count("CONTEXT") == 1
    code_or_summary = task in ("lcc", "gov_report", "multi_news")
    assert ("{question}" in template) != code_or_summary


@pytest.fixture
def loaded(checkpoint: str) -> EvalModel:
    return load_model(checkpoint)


def test_a_task_is_scored_with_the_best_of_its_true_answers(
    loaded: EvalModel, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = []

    def answering(ids: list[int], new_tokens: int) -> list[int]:
        prompts.append(ids)
        assert new_tokens == 32
        return tokenizer.encode("\nthe river\nstone").ids

    monkeypatch.setattr(loaded, "generate", answering)
    monkeypatch.setattr(loaded, "bos", 0)
    rows = [
        {"context": "x " * 500, "input": "what?", "answers": ["cloud", "river"]},
        {"context": "y", "input": "what?", "answers": ["stone"]},
    ]
    (tmp_path / "hotpotqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = longbench(loaded, "hotpotqa", read_records("hotpotqa", str(tmp_path)), 132)
    assert result == {
        "metric": "question_f1", "value": 0.5, "standard_error": 0.5, "samples": 2
    }  # fmt: skip
    assert len(prompts[0]) == 100
    assert prompts[0][0] == 0
    assert "what?" in tokenizer.decode(prompts[0])
    with pytest.raises(ValueError, match="room for a prompt beside the 32 new tokens of hotpotqa"):
        longbench(loaded, "hotpotqa", rows, 33)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "qasper has no records"),
        ('{"context": "a"}', "record 1, lacks question, answers"),
        (
            '{"context": "a", "question": "b", "answers": "yes"}',
            "record 1: expected a list of answers, but got 'yes'",
        ),
    ],
)
def test_what_is_no_longbench_data_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "qasper.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_records("qasper", str(tmp_path))
