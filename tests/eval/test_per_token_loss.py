"""Loss by position is the model's own loss, counted once and in the right place."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from fox.corpus import Document
from fox.eval import per_token_loss as module
from fox.eval import text
from fox.eval.models import EvalModel, load_model
from fox.eval.per_token_loss import (
    SMOOTHING,
    Sums,
    bin_edges,
    draw,
    per_token_loss,
    position_lines,
    score,
    standard_error,
    summarize,
)
from fox.eval.text import Rows, byte_ends, rows_of
from fox.files import read_json


@pytest.fixture(scope="module")
def loaded(checkpoint: str) -> EvalModel:
    return load_model(checkpoint)


def sums_of(losses: torch.Tensor) -> Sums:
    edges = bin_edges(losses.shape[1])
    sums = Sums(torch.zeros(losses.shape[1]).double(), torch.zeros(0, len(edges) - 1).double())
    sums.add(losses, edges)
    return sums


def test_every_row_is_scored_by_the_model_in_batches(
    loaded: EvalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.randint(loaded.vocab_size, (5, 34))
    expected = sums_of(loaded.next_token_losses(ids))
    monkeypatch.setattr(text, "TOKENS_PER_BATCH", 70)
    sums = score(loaded, ids, "model", tmp_path / "sums.npz")
    torch.testing.assert_close(sums.by_position, expected.by_position)
    torch.testing.assert_close(sums.by_bin, expected.by_bin)


def test_the_token_that_begins_a_text_is_read_and_not_counted(
    loaded: EvalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.randint(loaded.vocab_size, (2, 9))
    monkeypatch.setattr(loaded, "bos", 7)
    begun = torch.cat([torch.full((2, 1), 7), ids], 1)
    expected = loaded.next_token_losses(begun)[:, 1:].sum(0)
    sums = score(loaded, ids, "model", tmp_path / "sums.npz")
    torch.testing.assert_close(sums.by_position, expected)


def test_a_second_sitting_scores_only_what_the_first_one_left(
    loaded: EvalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.randint(loaded.vocab_size, (7, 34))
    monkeypatch.setattr(text, "TOKENS_PER_BATCH", 34)
    whole = score(loaded, ids, "model", tmp_path / "whole.npz")
    asked = 0
    losses = loaded.next_token_losses

    def stopping(ids: torch.Tensor) -> torch.Tensor:
        nonlocal asked
        asked += 1
        if asked == 4:
            raise KeyboardInterrupt
        return losses(ids)

    monkeypatch.setattr(loaded, "next_token_losses", stopping)
    with pytest.raises(KeyboardInterrupt):
        score(loaded, ids, "model", tmp_path / "sums.npz")
    sums = score(loaded, ids, "model", tmp_path / "sums.npz")
    assert asked == 4 + (7 - 3)
    assert torch.equal(sums.by_bin, whole.by_bin)
    torch.testing.assert_close(sums.by_position, whole.by_position)
    score(loaded, ids, "model", tmp_path / "sums.npz")
    assert asked == 8


def test_a_finished_model_is_not_scored_again_and_another_text_is(
    checkpoint: str, llama: str, corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = {"output": str(tmp_path), "length": 40, "files": [corpus], "split": "all"}
    per_token_loss([checkpoint], **call)
    first = read_json(tmp_path / "per_token_loss.json")["models"]
    per_token_loss([checkpoint, llama], **call)
    fox, other = read_json(tmp_path / "per_token_loss.json")["models"]
    assert [fox] == first
    for row, base, above in zip(
        other["bins"], fox["bins"], other["above_first_model"], strict=True
    ):
        assert above["loss"] == pytest.approx(row["loss"] - base["loss"])
    assert len(list((tmp_path / "per_token_loss").iterdir())) == 2
    per_token_loss([checkpoint], **call | {"max_rows": 3})
    result = read_json(tmp_path / "per_token_loss.json")
    assert (result["rows"], result["documents"]) == (3, 3)
    monkeypatch.setattr(EvalModel, "next_token_losses", None)
    per_token_loss([checkpoint, llama], **call)


def test_documents_are_cut_into_windows_that_do_not_overlap(
    tokenizer: Tokenizer, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "DOCUMENTS_AT_ONCE", 2)
    rows = rows_of(documents, tokenizer, 99, None)
    codes = [tokenizer.encode(document.text).ids for document in documents]
    windows = [len(ids) // 100 for ids in codes]
    assert len(rows.ids) == sum(windows)
    assert rows.documents[:5].tolist() == [0, 1, 2, 3, 4]
    for number, ids in enumerate(codes):
        found = rows.ids[rows.documents == number].flatten().tolist()
        assert found == ids[: 100 * windows[number]]
    decoded = tokenizer.decode(rows.ids[7][1:].tolist())
    assert rows.num_bytes[7, -1] == len(decoded.encode())
    assert rows_of(documents, tokenizer, 99, 6).documents.tolist() == [0, 1, 2, 3, 4, 0]


@pytest.mark.parametrize("T", [1, 2, 5, 64, 1000, 4097])
def test_bins_cover_each_position_once_and_end_at_powers_of_two(T: int) -> None:
    edges = bin_edges(T)
    assert edges[0] == 1
    assert edges[-1] == T + 1
    assert edges == sorted(set(edges))
    assert {2**n + 1 for n in range(13) if 2**n < T} <= set(edges)


def test_prefixes_and_bins_average_what_they_name() -> None:
    losses = torch.zeros(2, 100, dtype=torch.float64)
    losses[:, :32] = math.log(2)
    num_bytes = torch.arange(101).expand(2, 101)
    result = summarize(sums_of(losses), Rows(torch.zeros(2, 101), torch.arange(2), num_bytes))
    first = result["first"]
    assert [row["tokens"] for row in first] == [32, 64, 100]
    assert first[0]["perplexity"] == pytest.approx(2)
    assert first[0]["bits_per_byte"] == pytest.approx(1)
    assert result["loss"] == pytest.approx(0.32 * math.log(2))
    assert result["bins"][0] == {
        "first": 1, "last": 1, "loss": pytest.approx(math.log(2)), "standard_error": 0.0
    }  # fmt: skip
    assert result["bins"][-1]["loss"] == 0


def test_the_standard_error_counts_rows_of_one_document_as_one() -> None:
    values = torch.tensor([1.0, 2.0, 6.0]).double()
    alone = standard_error(values, torch.arange(3))
    assert alone == pytest.approx(np.std([1, 2, 6], ddof=1) / math.sqrt(3))
    copied = standard_error(values.repeat(4), torch.arange(3).repeat(4))
    assert copied == pytest.approx(alone)
    assert standard_error(values, torch.zeros(3)) is None


def test_the_smoothed_loss_is_the_mean_around_a_position() -> None:
    losses = torch.rand(2, 300).double()
    lines = position_lines("model", sums_of(losses))
    half = SMOOTHING // 2
    assert [line["smoothed"] is None for line in lines].index(False) == half
    assert lines[199]["smoothed"] == pytest.approx(losses[:, 199 - half : 200 + half].mean())
    assert lines[199]["loss"] == pytest.approx(losses[:, 199].mean())
    assert lines[299]["smoothed"] is None


def test_bytes_are_counted_once_when_tokens_share_a_character() -> None:
    assert byte_ends(Document("a", "aé€b"), [1, 2, 2, 3, 4]) == [1, 3, 3, 6, 7]


@pytest.mark.parametrize(
    ("highest", "labels"), [(3000.0, ["100", "1000"]), (60.0, ["40", "50", "60"])]
)
def test_perplexities_have_labels_that_do_not_overlap(
    highest: float, labels: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def point(tokens: int, perplexity: float) -> dict[str, float]:
        loss = math.log(perplexity)
        numbers = {"loss": loss, "perplexity": perplexity, "standard_error": 0.0}
        return {"tokens": tokens, "first": tokens, "last": tokens, **numbers}

    points = [point(32, highest), point(64, 35.0)]
    one = {"name": "a", "training_length": None, "loss": 4.0, "bins": points, "first": points}
    figures: list[Any] = []
    monkeypatch.setattr(module, "save_figure", lambda figure, path: figures.append(figure))
    draw({"models": [one], "rows": 1, "documents": 1, "length": 64}, tmp_path / "a.png")
    figures[0].draw_without_rendering()
    axis = figures[0].axes[-1].yaxis
    low, high = axis.get_view_interval()
    shown = [
        label.get_text()
        for label in (*axis.get_majorticklabels(), *axis.get_minorticklabels())
        if label.get_text() and low <= label.get_position()[1] <= high
    ]
    assert shown == labels
