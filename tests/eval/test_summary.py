"""The summary tells what was measured, and nothing that was not."""

from pathlib import Path
from typing import Any

import pytest

from fox.eval.summary import needle_lines, position_lines, summary
from fox.files import read_json, write_json

VALIDATION = [
    {"step": 0, "tokens": 0, "loss": 8.0, "perplexity": 2981.0, "bits_per_byte": 3.0},
    {"step": 9, "tokens": 900, "loss": 4.0, "perplexity": 54.6, "bits_per_byte": 1.5},
]
NGRAM = {name: {"loss": 5.0, "bits_per_byte": 2.0} for name in ("uniform", "unigram", "trigram")}


def needle_result(chosen: float) -> dict[str, Any]:
    mean = {"chosen": chosen, "control_chosen": 0.06}
    assignment = {"mean": mean, "chance": {"chosen": 1 / 16}, "candidates": 16}
    easy = {"mean": {"match": 0.75, "control_match": 0.0}}
    return {"models": [{"name": "a", "modes": {"assignment": assignment, "easy": easy}}]}


def test_loss_before_and_after_stand_beside_the_ngram_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "validation.json", VALIDATION)
    write_json(tmp_path / "ngram.json", NGRAM)
    (tmp_path / "metrics.csv").write_text(
        "step,train_loss,tokens,tokens_per_second\n0,8.1,100,\n5,6.0,600,1234\n"
    )
    summary(str(tmp_path))
    lines = {row["measure"]: row for row in read_json(tmp_path / "summary.json")["lines"]}
    assert lines["validation loss, step 0"]["result"] == "8.000 nats/token"
    assert lines["validation loss, step 9"]["beside"] == "unigram 5.00, trigram 5.00"
    assert lines["decrease"]["result"] == "50.0%"
    assert lines["training speed"]["result"] == "1,234 tokens/s"
    printed = capsys.readouterr().out
    assert "50.0%" in printed
    assert (tmp_path / "summary.png").stat().st_size > 10_000
    assert len((tmp_path / "summary.csv").read_text().splitlines()) == 1 + len(lines)


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    write_json(tmp_path / "needle.json", needle_result(0.5))
    summary(str(tmp_path))
    lines = read_json(tmp_path / "summary.json")["lines"]
    assert [row["measure"] for row in lines] == ["needle, assignment, a", "needle, easy, a"]
    assert lines[1]["result"] == "75.0% found"
    assert not (tmp_path / "summary.png").exists()


def test_a_score_near_chance_is_called_so() -> None:
    assert "near chance" in needle_lines(needle_result(0.08))[0]["beside"]
    assert "near chance" not in needle_lines(needle_result(0.5))[0]["beside"]


def test_of_several_models_each_perplexity_names_its_own() -> None:
    first = [{"tokens": 64, "perplexity": 9.0}]
    models = [{"name": name, "first": first, "training_length": None} for name in ("a", "b")]
    measures = [row["measure"] for row in position_lines({"models": models})]
    assert measures == [f"perplexity of the first 64 tokens, {name}" for name in ("a", "b")]
    (alone,) = position_lines({"models": models[:1]})
    assert alone["measure"] == "perplexity of the first 64 tokens"


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"at least one of validation\.json.* found none"):
        summary(str(tmp_path))
