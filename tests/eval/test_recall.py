"""The recall task is what it says, and a FoX learns it in seconds and beyond its length."""

from pathlib import Path

import pytest
import torch

from fox.eval import recall as module
from fox.eval.recall import (
    CONFIGS,
    FILLERS,
    KEYS,
    PAIRS,
    ROWS_PER_CELL,
    TRAINING_LENGTH,
    recall,
    recall_rows,
    train,
)
from fox.eval.text import next_token_log_probs
from fox.files import read_json
from fox.model import FoxForCausalLM


def test_the_answer_stands_behind_the_key_asked_for_and_nowhere_else() -> None:
    ids, answers = recall_rows(50, 64, torch.Generator().manual_seed(0))
    for row, value in zip(ids.tolist(), answers.tolist(), strict=True):
        pairs = {row[i]: row[i + 1] for i in range(62) if FILLERS <= row[i] < FILLERS + KEYS}
        assert len(pairs) == PAIRS
        assert len(set(pairs.values())) == PAIRS
        assert pairs[row[-1]] == value
        assert row[62] < FILLERS


@pytest.mark.parametrize(("depth", "place"), [(0.0, 0), (0.5, 30), (1.0, 60)])
def test_depth_places_the_pair_asked_for(depth: float, place: int) -> None:
    ids, answers = recall_rows(20, 64, torch.Generator().manual_seed(0), depth)
    assert torch.equal(ids[:, place], ids[:, -1])
    assert torch.equal(ids[:, place + 1], answers)


def test_both_models_are_of_one_size_and_differ_in_gates_and_positions_alone() -> None:
    fox, transformer = CONFIGS.values()
    changed = {"fgate_type": "none", "use_rope": True, "decay_time_min": None}
    assert fox.replace(decay_time_max=None, **changed) == transformer


def test_a_fox_learns_to_recall_and_still_does_at_four_times_the_length() -> None:
    torch.manual_seed(0)
    model = FoxForCausalLM(CONFIGS["FoX (Pro)"])
    train(model, 100, 0, "FoX")
    ids, answers = recall_rows(100, 4 * TRAINING_LENGTH, torch.Generator().manual_seed(1), 0.0)
    right = next_token_log_probs(model.eval(), ids).argmax(-1) == answers
    assert right.double().mean() > 0.95


def test_a_short_run_writes_a_grid_for_each_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LENGTHS", (64, 80))
    monkeypatch.setattr(module, "DEPTHS", (0.0, 1.0))
    recall(str(tmp_path), steps=2)
    result = read_json(tmp_path / "recall.json")
    for model in result["models"]:
        grid = [(cell["length"], cell["depth"]) for cell in model["cells"]]
        assert grid == [(64, 0), (64, 1), (80, 0), (80, 1)]
        right = [cell["accuracy"] * ROWS_PER_CELL for cell in model["cells"]]
        assert right == pytest.approx([round(number) for number in right])
    assert len((tmp_path / "recall.csv").read_text().splitlines()) == 1 + 2 * 4
    assert (tmp_path / "recall.png").stat().st_size > 10_000


def test_a_run_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LENGTHS", (64,))
    for name in ("a", "b"):
        recall(str(tmp_path / name), steps=1)
    assert read_json(tmp_path / "a" / "recall.json") == read_json(tmp_path / "b" / "recall.json")


def test_no_steps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="steps must be at least 1, but got 0"):
        recall(str(tmp_path), steps=0)
