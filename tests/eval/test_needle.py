"""The needle test grades models right: a perfect one, a blind one, and in two sittings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from fox.corpus import Document
from fox.eval.grading import Subject, ask, mean_of, share_found, summarize, word_recall
from fox.eval.haystack import Haystack
from fox.eval.needle import Mode, check_grid, grid_keys, needle, scaled_lengths
from fox.eval.riddles import CUE, NEEDLE, QUESTION, Assignment, Statement
from fox.eval.ruler import ruler
from fox.eval.store import Store

V = 500
Predict = Callable[[list[int]], Tensor]  # ids -> (V,) log probabilities of the next token
Subjects = Callable[..., Subject]


def copying(ids: list[int]) -> Tensor:
    """A perfect model: what came after the last place with the longest matching past."""
    best, successor = 0, 0
    for end in range(len(ids) - 1, 0, -1):
        match = 0
        while match < end and ids[end - 1 - match] == ids[-1 - match]:
            match += 1
        if match > best:
            best, successor = match, ids[end]
    log_probs = torch.full((V,), -20.0)
    log_probs[successor] = -0.1
    return log_probs


def blind(ids: list[int]) -> Tensor:
    """A model that has an opinion of every token, whatever the text says."""
    return torch.randn(V, generator=torch.Generator().manual_seed(0)).log_softmax(-1)


@pytest.fixture(scope="module")
def haystack(tokenizer: Tokenizer, documents: list[Document]) -> Haystack:
    return Haystack(tokenizer, documents)


@pytest.fixture(scope="module")
def subject(haystack: Haystack, fake_model: Callable[..., Any]) -> Subjects:
    """(predict, training length) -> subject of the needle test."""
    riddles = {
        "standard": Statement(NEEDLE, QUESTION, CUE, easy=False),
        "easy": Statement(NEEDLE, QUESTION, CUE, easy=True),
        "assignment": Assignment(haystack),
    }
    return lambda predict, training_length=None: Subject(
        "fake", fake_model(predict, training_length), haystack, riddles
    )


def grade(
    subject: Subjects, mode: Mode, predict: Predict, path: Path, seeds: int
) -> dict[str, float]:
    lengths = (64, 150) if mode == "assignment" else (500,)
    keys = grid_keys(mode, lengths, (0.0, 0.5, 1.0), seeds)
    rows = ask(subject(predict), keys, Store(path, "run"), new_tokens=2)
    return mean_of(summarize(rows, ("length", "depth")))


@pytest.mark.parametrize("mode", ["standard", "easy", "assignment"])
def test_a_model_that_copies_finds_every_needle(
    mode: Mode, subject: Subjects, tmp_path: Path
) -> None:
    mean = grade(subject, mode, copying, tmp_path / "a.jsonl", seeds=2)
    assert mean["exact"] == 1
    assert mean["control_exact"] == 0
    assert mean["gain"] > 10
    if mode == "assignment":
        assert mean["chosen"] == 1
    else:
        assert mean["probability"] > 0.9
        assert mean["control_probability"] < 0.1


def test_a_found_answer_is_in_the_continuation(subject: Subjects, tmp_path: Path) -> None:
    keys = grid_keys("easy", (500,), (0.5,), 1)
    control, seen = ask(subject(copying), keys, Store(tmp_path / "a", "run"), 99)
    assert "eat a sandwich and sit in Dolores Park on a sunny day" in seen["continuation"]
    assert seen["match"] == seen["word_recall"] == 1
    assert control["match"] == 0
    assert control["word_recall"] < 0.5


def test_what_is_generated_counts_even_if_another_word_comes_first(
    haystack: Haystack, subject: Subjects, tmp_path: Path
) -> None:
    said = haystack.ids(" just eat a sandwich, and SIT in Dolores\nPark on a sunny day!")

    def chatty(ids: list[int]) -> Tensor:
        log_probs = torch.full((V,), -20.0)
        done = max(n for n in range(len(said)) if ids[len(ids) - n :] == said[:n])
        log_probs[said[done]] = 0.0
        return log_probs

    keys = grid_keys("standard", (500,), (0.5,), 1)
    _, seen = ask(subject(chatty), keys, Store(tmp_path / "a", "run"), len(said))
    assert not seen["exact"]
    assert seen["match"] == 0  # the comma
    assert seen["word_recall"] == 1


def test_strings_are_found_whatever_their_case_and_white_space() -> None:
    assert share_found(["Dolores Park", "sunny"], "in DOLORES\n park, a dull day") == 0.5
    assert word_recall(["sit in a park"], "A man sits in the parking lot") == 0.5


def test_a_blind_model_scores_chance(subject: Subjects, tmp_path: Path) -> None:
    mean = grade(subject, "assignment", blind, tmp_path / "a.jsonl", seeds=100)
    assert mean["chosen"] == pytest.approx(1 / 16, abs=0.03)
    assert mean["exact"] < 0.02
    assert abs(mean["gain"]) < 0.2
    mean = grade(subject, "standard", blind, tmp_path / "b.jsonl", seeds=2)
    assert mean["match"] == mean["exact"] == mean["gain"] == 0


def test_a_second_sitting_asks_only_what_the_first_one_left(
    subject: Subjects, tmp_path: Path
) -> None:
    asked: list[int] = []

    def counting(ids: list[int]) -> Tensor:
        asked.append(len(ids))
        if len(asked) > 150:
            raise KeyboardInterrupt
        return copying(ids)

    path = tmp_path / "a.jsonl"
    with pytest.raises(KeyboardInterrupt):
        grade(subject, "assignment", counting, path, seeds=40)
    done = len(Store(path, "run").rows)
    assert done > 0
    with path.open("a") as file:
        file.write('{"run": "run", "tas')  # torn by a crash
    asked[:] = [0] * -done
    grade(subject, "assignment", lambda ids: asked.append(0) or copying(ids), path, seeds=40)
    assert len(asked) == 2 * 3 * 40 * 2 - done
    asked.clear()
    grade(subject, "assignment", counting, path, seeds=40)
    assert asked == []


def test_cells_report_the_tokens_before_the_needle(subject: Subjects, tmp_path: Path) -> None:
    keys = grid_keys("assignment", (300,), (0.0, 1.0), 2)
    rows = ask(subject(blind), keys, Store(tmp_path / "a.jsonl", "run"), 0)
    first, last = summarize(rows, ("length", "depth"))
    assert first["mean_position"] == 0
    assert 270 < last["mean_position"] < 300


def test_a_statement_has_one_control_per_length_and_seed_and_a_name_one_per_depth() -> None:
    for mode, controls in (("standard", 2 * 3), ("assignment", 2 * 5 * 3)):
        keys = grid_keys(mode, (64, 128), (0.0, 0.25, 0.5, 0.75, 1.0), 3)
        assert sum(key.planted for key in keys) == 2 * 5 * 3
        assert len({key for key in keys if not key.planted}) == controls


def test_default_lengths_are_the_papers_times_the_training_length(subject: Subjects) -> None:
    papers = (1000, 4100, 7200, 10300, 13400, 16500, 19600, 22700, 25800, 28900, 32000)
    for training_lengths, scale in (((16_384, None), 1), ((None,), 1), ((128, 65_536), 4)):
        tested = [subject(blind, length) for length in training_lengths]
        assert scaled_lengths(tested, ["easy"]) == tuple(scale * length for length in papers)
    short = scaled_lengths([subject(blind, 1024)], ["easy"])
    assert short[0] == 2 * tested[0].fixed_tokens(["easy"]) > 62
    assert (len(short), short[-1]) == (11, 2000)
    with pytest.raises(ValueError, match=r"needle and question take \d+, but .* trained on 128: g"):
        scaled_lengths([subject(blind, 128)], ["easy"])


@pytest.mark.parametrize(
    ("lengths", "depths", "seeds", "message"),
    [
        ((), (0.5,), 1, "one mode, length, depth and seed, but got 1, 0, 1 and 1"),
        ((64,), (), 1, "but got 1, 1, 0 and 1"),
        (None, (0.5,), 0, "but got 1, 11, 1 and 0"),
        ((64,), (50.0,), 1, "between 0 and 1, but got 50.0: write 50 % as 0.5"),
    ],
)
def test_an_impossible_grid_is_refused(
    lengths: tuple[int, ...] | None, depths: tuple[float, ...], seeds: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_grid(("easy",), lengths, depths, seeds)


@pytest.mark.parametrize("command", [needle, ruler])
def test_a_continuation_without_tokens_is_refused(command: Callable[..., None]) -> None:
    with pytest.raises(ValueError, match="new_tokens must be at least 1, but got 0"):
        command(["nowhere"], "nowhere", new_tokens=0)
