"""The recall command writes what it measured, and goes on where it was stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fox.eval import recall as module
from fox.eval.cli import main
from fox.eval.learning import ROWS_PER_CELL, train_and_test
from fox.eval.recall import by_length, recall
from fox.files import read_json

SHORT: dict[str, Any] = {"steps": 2, "training_length": 32, "lengths": (32, 48)}


def test_a_run_writes_numbers_and_pictures_for_each_task(tmp_path: Path) -> None:
    short = ["--steps", "2", "--training_length", "32", "--lengths", "32", "48"]
    wanted = ["--tasks", "recall", "mqar", "--seeds", "0", "1"]
    main(["recall", "--output", str(tmp_path), *wanted, *short])
    for task, depths in (("recall", [0.0, 0.25, 0.5, 0.75, 1.0]), ("mqar", [None])):
        result = read_json(tmp_path / f"{task}.json")
        assert [model["name"] for model in result["models"]] == [
            "FoX (Pro)",
            "Transformer (Pro, RoPE)",
        ]
        for model in result["models"]:
            grid = [(cell["seed"], cell["length"], cell["depth"]) for cell in model["cells"]]
            assert grid == [(s, n, d) for s in (0, 1) for n in (32, 48) for d in depths]
        lines = (tmp_path / f"{task}.csv").read_text().splitlines()
        assert len(lines) == 1 + 2 * 2 * 2 * len(depths)
    right = [
        cell["accuracy"] * ROWS_PER_CELL
        for cell in read_json(tmp_path / "recall.json")["models"][0]["cells"]
    ]
    assert right == pytest.approx([round(number) for number in right])
    for picture in ("recall", "recall_by_length"):
        assert (tmp_path / f"{picture}.png").stat().st_size > 10_000
    assert not (tmp_path / "mqar.png").exists()  # it has no places to tell apart


def test_a_stopped_run_trains_only_what_is_missing_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**SHORT, "models": ("fox-pro",), "seeds": (3, 4)}
    recall(str(tmp_path / "whole"), **options)
    trained = []

    def train_one(*arguments: Any, seed: int, **rest: Any) -> list[dict[str, Any]]:
        if trained and trained[-1] == 3 and len(trained) == 1:
            trained.append(seed)
            raise KeyboardInterrupt
        trained.append(seed)
        return train_and_test(*arguments, seed=seed, **rest)

    monkeypatch.setattr(module, "train_and_test", train_one)
    with pytest.raises(KeyboardInterrupt):
        recall(str(tmp_path / "stopped"), **options)
    recall(str(tmp_path / "stopped"), **options)
    assert trained == [3, 4, 4]
    results = [read_json(tmp_path / name / "recall.json") for name in ("whole", "stopped")]
    assert results[0] == results[1]
    recall(str(tmp_path / "stopped"), **{**options, "steps": 1})  # another question
    assert trained == [3, 4, 4, 3, 4]


def test_a_length_has_the_mean_of_all_seeds_and_the_extremes_of_each() -> None:
    shares = {(0, 0.0): 0.2, (0, 1.0): 0.4, (1, 0.0): 0.6, (1, 1.0): 1.0}
    cells = [
        {"seed": seed, "length": 64, "depth": depth, "accuracy": share}
        for (seed, depth), share in shares.items()
    ]
    (row,) = by_length(cells)
    wanted = {"length": 64, "accuracy": 0.55, "lowest": 0.3, "highest": 0.8, "seeds": 2}
    assert row == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, but got 0"),
        ({"models": ()}, "at least one task, one model and one seed, but got 1, 0 and 1"),
        ({"lengths": (64, 8)}, "from 10 on, but got 8"),
        ({"training_length": 8}, "from 10 on, but got 8"),
        ({"pairs": 17}, "recall has 1 to 16 pairs, but got 17"),
    ],
)
def test_what_cannot_be_asked_is_refused_and_nothing_is_written(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        recall(str(tmp_path / "out"), **options)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a GPU for device cuda, but torch finds none"):
        recall(str(tmp_path), device="cuda")
