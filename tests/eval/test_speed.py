"""Speed is measured once per cell, for models of every kind, and what it counts is counted."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fox.eval import speed as module
from fox.eval.speed import build, decoding_rate, measure, preset, resident, speed, summarize
from fox.files import read_json
from fox.model import FoxForCausalLM


@pytest.fixture
def config_file(checkpoint: str) -> str:
    return f"{checkpoint}/config.json"


def test_a_second_call_measures_only_what_is_left_and_draws_all(
    checkpoint: str, config_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.cuda.is_available():
        growth = module.peak_in_process(config_file, "training", 16, 32)  # in a process of its own
        assert growth is None or 2**18 < growth < 2**31
    monkeypatch.setattr(module, "peak_in_process", lambda *cell: 3 * 2**20)
    asked = []
    real = module.measure

    def counting(name: str, kind: Any, T: int, tokens: int) -> dict[str, Any]:
        asked.append((kind, T))
        return real(name, kind, T, tokens)

    monkeypatch.setattr(module, "measure", counting)
    options: dict[str, Any] = {"tokens_per_step": 32, "rounds": 2}
    speed(str(tmp_path), model=[config_file], lengths=(16,), **options)
    assert asked == [("training", 16)] * 2 + [("decoding", 16)] * 2
    asked.clear()
    speed(str(tmp_path), model=[config_file, checkpoint], lengths=(8, 16), **options)
    assert len(asked) == 2 * 2 * 2 * 2 - 4
    cells = read_json(tmp_path / "speed.json")["cells"]
    assert [(cell["kind"], cell["length"]) for cell in cells[:4]] == [
        ("training", 8), ("training", 16), ("decoding", 8), ("decoding", 16)
    ]  # fmt: skip
    for cell in cells:
        assert cell["slowest"] <= cell["tokens_per_second"] <= cell["fastest"]
    assert len((tmp_path / "speed.csv").read_text().splitlines()) == 1 + len(cells)
    assert (tmp_path / "speed.png").stat().st_size > 10_000


def test_models_of_transformers_train_and_decode_with_random_weights(llama: str) -> None:
    for kind in ("training", "decoding"):
        assert measure(f"{llama}/config.json", kind, 16, 32)["tokens_per_second"] > 0


def test_decoding_reads_the_context_and_then_token_by_token(
    config_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build(config_file, "cpu")
    assert isinstance(network, FoxForCausalLM)
    lengths = []
    network.model.register_forward_pre_hook(lambda _, arguments: lengths.append(arguments[0].shape))
    monkeypatch.setattr(module, "PREFILL", 8)
    decoding_rate(network, 20, 1, "cpu")
    assert lengths[:3] == [(1, 8), (1, 8), (1, 4)]
    assert lengths[3:] == [(1, 1)] * module.NEW_TOKENS


def test_the_four_small_models_are_of_one_shape() -> None:
    configs = [preset(f"{family}-small") for family in module.FAMILIES]
    assert (
        len({(config.hidden_size, config.num_hidden_layers) for config in configs if config}) == 1
    )
    assert preset("fox-pro-125m") != preset("fox-pro-small")
    assert preset("runs/demo/model") is None


def test_a_cell_is_its_median_and_a_gpu_that_is_too_small_leaves_it_empty() -> None:
    def row(turn: int, rate: float | None, peak: int | None) -> dict[str, Any]:
        about = {"config": "a", "kind": "training", "length": 8, "round": turn}
        return about | {"tokens_per_second": rate, "peak_bytes": peak}

    rows = [row(0, 5.0, 2**20), row(1, 1.0, None), row(2, 2.0, None)]
    assert summarize(rows, "a", "training", 8) == {
        "tokens_per_second": 2.0, "slowest": 1.0, "fastest": 5.0, "peak_mebibytes": 1.0
    }  # fmt: skip
    assert set(summarize([row(0, None, None)], "a", "training", 8).values()) == {None}


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
def test_resident_bytes_grow_with_what_is_held() -> None:
    before = resident("VmRSS")
    held = torch.ones(2**24)  # 64 MiB
    assert 60 * 2**20 < resident("VmRSS") - before < 80 * 2**20
    assert held[0] == 1


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one round, but got 1, 0, 2 and 3"):
        speed(str(tmp_path), model=["fox-pro-small"], lengths=())
    fields = {"model_type": "gpt2", "n_positions": 16, "n_embd": 8, "n_head": 2, "n_layer": 1}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields | {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0}))
    with pytest.raises(ValueError, match=r"learned positions for 16 tokens.*lower --lengths"):
        measure(str(path), "training", 16, 16)
