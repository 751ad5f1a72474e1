"""The needle test grades models right: a perfect one, a blind one, and in two sittings."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from fox.corpus import Document
from fox.eval.haystack import Haystack
from fox.eval.needle import answer, grid_keys, mean_of, summarize
from fox.eval.store import Store

V = 500


def copying(ids: Tensor) -> Tensor:
    """A perfect model: what came after the last place with the longest matching past."""
    log_probs = torch.full((len(ids), V), -20.0)
    for row, tokens in enumerate(ids.tolist()):
        best, successor = 0, 0
        for end in range(len(tokens) - 1, 0, -1):
            match = 0
            while match < end and tokens[end - 1 - match] == tokens[-1 - match]:
                match += 1
            if match > best:
                best, successor = match, tokens[end]
        log_probs[row, successor] = -0.1
    return log_probs


def blind(ids: Tensor) -> Tensor:
    """A model that has an opinion of every token, whatever the text says."""
    return torch.randn(len(ids), V, generator=torch.Generator().manual_seed(0)).log_softmax(-1)


def grade(model, haystack: Haystack, path: Path, seeds: int = 4) -> dict[str, float]:
    store = Store(path, "run")
    answer(grid_keys((64, 150), (0.0, 0.5, 1.0), seeds), haystack.prompt, model, store)
    return mean_of(summarize(store.rows))


@pytest.fixture(scope="module")
def haystack(tokenizer: Tokenizer, documents: list[Document]) -> Haystack:
    return Haystack(tokenizer, documents)


def test_a_model_that_copies_finds_every_needle(haystack: Haystack, tmp_path: Path) -> None:
    mean = grade(copying, haystack, tmp_path / "a.jsonl")
    assert mean["chosen"] == mean["exact"] == 1
    assert mean["control_exact"] == 0
    assert mean["gain"] > 10


def test_a_blind_model_scores_chance(haystack: Haystack, tmp_path: Path) -> None:
    mean = grade(blind, haystack, tmp_path / "a.jsonl", seeds=100)
    assert mean["chosen"] == pytest.approx(1 / 16, abs=0.03)
    assert mean["exact"] < 0.02
    assert abs(mean["gain"]) < 0.2


def test_a_second_sitting_asks_only_what_the_first_one_left(
    haystack: Haystack, tmp_path: Path
) -> None:
    asked: list[int] = []

    def counting(ids: Tensor) -> Tensor:
        asked.append(len(ids))
        if sum(asked) > 10:
            raise KeyboardInterrupt
        return copying(ids)

    path = tmp_path / "a.jsonl"
    with pytest.raises(KeyboardInterrupt):
        grade(counting, haystack, path)
    done = len(Store(path, "run").rows)
    asked.clear()

    def counting_on(ids: Tensor) -> Tensor:
        asked.append(len(ids))
        return copying(ids)

    assert grade(counting_on, haystack, path)["exact"] == 1
    assert sum(asked) == 2 * 3 * 4 * 2 - done
    asked.clear()
    grade(counting_on, haystack, path)
    assert asked == []


def test_cells_report_the_tokens_before_the_needle(haystack: Haystack, tmp_path: Path) -> None:
    store = Store(tmp_path / "a.jsonl", "run")
    answer(grid_keys((300,), (0.0, 1.0), 2), haystack.prompt, blind, store)
    first, last = summarize(store.rows)
    assert first["mean_position"] == 0
    assert 270 < last["mean_position"] < 300


@pytest.mark.parametrize(
    ("lengths", "depths", "seeds", "message"),
    [
        ((), (0.5,), 1, "at least one length, one depth and one seed, but got 0, 1 and 1"),
        ((64,), (), 1, "but got 1, 0 and 1"),
        ((64,), (0.5,), 0, "but got 1, 1 and 0"),
        ((64,), (50.0,), 1, "between 0 and 1, but got 50.0: write 50 % as 0.5"),
    ],
)
def test_an_impossible_grid_is_refused(
    lengths: tuple[int, ...], depths: tuple[float, ...], seeds: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        grid_keys(lengths, depths, seeds)
