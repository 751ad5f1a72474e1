"""Loss by position is the model's own loss, counted once and in the right place."""

import math

import pytest
import torch

from fox.corpus import Document
from fox.eval import text
from fox.eval.per_token_loss import bin_edges, byte_ends, names, score, summarize
from fox.eval.text import next_token_log_probs, next_token_losses
from fox.model import FoxForCausalLM


@pytest.fixture
def rows(model: FoxForCausalLM) -> torch.Tensor:
    return torch.randint(model.config.vocab_size, (5, 33))


def test_losses_are_those_of_the_model(model: FoxForCausalLM, rows: torch.Tensor) -> None:
    expected = model(rows, labels=rows, reduction="none").loss[:, :-1]
    torch.testing.assert_close(next_token_losses(model, rows), expected.double().detach())


def test_losses_do_not_depend_on_how_many_logits_are_made_at_once(
    model: FoxForCausalLM, rows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = next_token_losses(model, rows)
    monkeypatch.setattr(text, "TOKENS_PER_HEAD", 7)
    monkeypatch.setattr(text, "TOKENS_PER_BATCH", 70)
    torch.testing.assert_close(score(model, rows, "model"), whole)


def test_the_next_token_is_scored_after_all_tokens(
    model: FoxForCausalLM, rows: torch.Tensor
) -> None:
    losses = next_token_losses(model, rows)[:, -1]
    log_probs = next_token_log_probs(model, rows[:, :-1])
    chosen = log_probs.gather(1, rows[:, -1:]).squeeze(1)
    torch.testing.assert_close(-losses, chosen.double())


@pytest.mark.parametrize("T", [1, 2, 5, 1000, 4097])
def test_bins_cover_each_position_once(T: int) -> None:
    edges = bin_edges(T)
    assert edges[0] == 1
    assert edges[-1] == T + 1
    assert edges == sorted(set(edges))


def test_prefixes_and_bins_average_what_they_name() -> None:
    losses = torch.zeros(2, 100, dtype=torch.float64)
    losses[:, :32] = math.log(2)
    num_bytes = torch.arange(101).expand(2, 101)
    result = summarize(losses, num_bytes)
    first = result["first"]
    assert [row["tokens"] for row in first] == [32, 64, 100]
    assert first[0]["perplexity"] == pytest.approx(2)
    assert first[0]["bits_per_byte"] == pytest.approx(1)
    assert result["loss"] == pytest.approx(0.32 * math.log(2))
    assert result["bins"][0] == {
        "first": 1, "last": 1, "loss": pytest.approx(math.log(2)), "standard_error": 0.0
    }  # fmt: skip
    assert result["bins"][-1]["loss"] == 0


def test_bytes_are_counted_once_when_tokens_share_a_character() -> None:
    assert byte_ends(Document("a", "aé€b"), [1, 2, 2, 3, 4]) == [1, 3, 3, 6, 7]


def test_names_are_short_tails_that_differ() -> None:
    assert names(["last.ckpt"]) == ["last.ckpt"]
    assert names(["runs/a/model"]) == ["a/model"]
    assert names(["a/b/c", "d/b/c"]) == ["a/b/c", "d/b/c"]
    assert names(["runs/a/model", "runs/b/model"]) == ["a/model", "b/model"]
    with pytest.raises(ValueError, match="expected different checkpoints"):
        names(["runs/a", "runs/a"])
