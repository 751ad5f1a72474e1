"""The store of finished prompts survives crashes and knows what it belongs to."""

from pathlib import Path

import pytest
import torch

from fox.eval.store import Store, fingerprint
from fox.model import FoxForCausalLM


def test_rows_come_back_in_a_second_run(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.jsonl"
    Store(path, "one").append([{"seed": 0}, {"seed": 1}])
    assert Store(path, "one").rows == [{"seed": 0}, {"seed": 1}]


def test_a_torn_last_line_is_cut_off_and_the_rest_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    Store(path, "one").append([{"seed": 0}])
    with path.open("a") as file:
        file.write('{"run": "one", "se')
    store = Store(path, "one")
    store.append([{"seed": 1}])
    assert Store(path, "one").rows == [{"seed": 0}, {"seed": 1}]


def test_rows_of_another_run_are_passed_over_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    Store(path, "one").append([{"seed": 0}])
    Store(path, "two").append([{"seed": 5}])
    assert Store(path, "two").rows == [{"seed": 5}]
    assert Store(path, "one").rows == [{"seed": 0}]


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"run": "one"}\nnonsense\n{"run": "one"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2.*delete the file"):
        Store(path, "one")


def test_the_fingerprint_changes_with_a_weight_and_with_a_part(model: FoxForCausalLM) -> None:
    before = fingerprint(model, ["text"])
    assert fingerprint(model, ["text"]) == before
    assert fingerprint(model, ["other text"]) != before
    with torch.no_grad():
        weight = model.lm_head.weight[0, 0].clone()
        model.lm_head.weight[0, 0] += 1
        changed = fingerprint(model, ["text"])
        model.lm_head.weight[0, 0] = weight
    assert changed != before
