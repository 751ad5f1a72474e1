"""The maps are the attention that the model computes, and the page shows what it has."""

import csv
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fox.config import FoxConfig
from fox.eval import gates as module
from fox.eval.cli import main
from fox.eval.gates import (
    beginning,
    distance,
    head_maps,
    inspect_model,
    most_local_to_most_global,
)
from fox.eval.gates_page import short, visible
from fox.files import read_json
from fox.kernels import forgetting_attention
from fox.model import FoxForCausalLM
from fox.observe import Observed


def random_inputs(T: int, *, log_f: Tensor | None = None, H_kv: int = 2) -> Observed:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, T, 4, 8, generator=generator)
    k = torch.randn(1, T, H_kv, 8, generator=generator)
    return Observed(0, q, k, log_f, None)


def random_gates(T: int) -> Tensor:
    draws = torch.randn(1, T, 4, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.logsigmoid(draws + 2)


@pytest.mark.parametrize("gated", [True, False])
def test_the_attention_map_is_what_the_kernel_weighs_values_with(gated: bool) -> None:
    T = 40
    observed = random_inputs(T, log_f=random_gates(T) if gated else None)
    log_f = torch.zeros(1, T, 4) if observed.log_f is None else observed.log_f
    keys = observed.k.repeat_interleave(2, dim=2)
    values = torch.eye(T)[None, :, None].expand(1, T, 4, T)
    padded = torch.zeros(1, T, 4, T - 8)
    wanted = forgetting_attention(  # values that tell who was looked at need D = T
        torch.cat([observed.q, padded], -1),
        torch.cat([keys, padded], -1),
        values,
        log_f,
        softmax_scale=1 / math.sqrt(8),
        backend="reference",
    )
    assert isinstance(wanted, Tensor)
    for head in range(4):
        maps = head_maps(observed, head)
        torch.testing.assert_close(maps.attention, wanted[0, :, head])
        torch.testing.assert_close(maps.last_attention, wanted[0, -32:, head, -32:])
        assert (maps.decay is None) == (not gated)


def test_the_decay_map_sums_the_gates_between_two_tokens() -> None:
    observed = random_inputs(40, log_f=random_gates(40))
    assert observed.log_f is not None
    maps = head_maps(observed, 3)
    assert maps.decay is not None
    assert maps.last_decay is not None
    between = observed.log_f[0, 12:31, 3].sum()
    torch.testing.assert_close(maps.decay[30, 11], between)
    torch.testing.assert_close(maps.last_decay[30 - 8, 11 - 8], between)
    assert maps.decay.triu().eq(0).all()


def test_pooled_blocks_hold_the_mass_of_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    observed = random_inputs(40, log_f=random_gates(40))
    whole = head_maps(observed, 1)
    monkeypatch.setattr(module, "MAX_BLOCKS", 14)  # blocks of 3 tokens, the last of 1
    pooled = head_maps(observed, 1)
    assert pooled.attention.shape == (14, 14)
    torch.testing.assert_close(pooled.attention.sum(1), torch.ones(14))
    torch.testing.assert_close(pooled.attention[5, 2], whole.attention[15:18, 6:9].sum(1).mean())
    torch.testing.assert_close(pooled.attention[13, 0], whole.attention[39, :3].sum())
    assert pooled.decay is not None
    assert whole.decay is not None
    torch.testing.assert_close(pooled.decay[5, 2], whole.decay[15:18, 6:9].mean())


def test_a_head_that_sees_all_alike_looks_back_half_of_what_is_there() -> None:
    observed = random_inputs(33)
    observed.q.zero_()
    assert distance(observed, 0) == pytest.approx(16 / 2)


def test_heads_are_chosen_by_what_they_reach_and_no_decay_reaches_farthest() -> None:
    lives = (3.0, None, 1.0, 2.0, 9.0)
    heads = [{"layer": 0, "head": n, "half_life": life} for n, life in enumerate(lives)]
    chosen = most_local_to_most_global(heads)
    assert chosen == {"most local": (0, 2), "median": (0, 0), "most global": (0, 1)}


def test_a_page_has_numbers_for_every_head_and_token(
    checkpoint: str, corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = corpus.replace("*", "module0")
    options = ["--text", text, "--length", "150"]
    main(["inspect", "--model", checkpoint, "--output", str(tmp_path), *options])
    result = read_json(tmp_path / "inspect.json")
    assert result["tokens"] == 150
    assert [(head["layer"], head["head"]) for head in result["heads"]] == [(0, 0), (0, 1)]
    for head in result["heads"]:
        assert list(head["computed_share"]) == ["64", "128", "150"]
        assert 0.5 < head["half_life"] < 2  # biases of 0: gates near one half
        assert head["gate_mean"] == pytest.approx(0.5, abs=0.1)
    with (tmp_path / "inspect_tokens.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert "".join(row["token"] for row in rows)[:40] == Path(text).read_text(encoding="utf-8")[:40]
    assert len(rows) == 150
    assert len((tmp_path / "inspect.csv").read_text().splitlines()) == 1 + 2
    assert (tmp_path / "inspect.png").stat().st_size > 50_000
    assert "half-life" in capsys.readouterr().out


def test_a_transformer_gets_its_attention_maps_and_a_clear_sentence(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(checkpoint, tmp_path / "model")
    vocab_size = read_json(tmp_path / "model" / "config.json")["vocab_size"]
    config = FoxConfig.preset(
        "transformer-pro-125m",
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=1,
        num_heads=2,
        intermediate_size=32,
    )
    FoxForCausalLM(config).save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("日本 $x^2$ and so on\n" * 9, encoding="utf-8")
    options: dict[str, Any] = {"text": str(tmp_path / "text.txt"), "length": 60}
    inspect_model(str(tmp_path / "model"), str(tmp_path / "out"), **options)
    assert "no forget gates: its attention maps are drawn" in capsys.readouterr().out
    assert "half_life" not in read_json(tmp_path / "out" / "inspect.json")["heads"][0]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"inspect.csv", "inspect.json", "inspect.png"}
    inspect_model(checkpoint, str(tmp_path / "out"), **options)  # tokens that no font can draw


def test_a_model_whose_layers_are_not_ours_is_refused(llama: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"but .*llama.* holds a LlamaForCausalLM: its layers"):
        inspect_model(llama, str(tmp_path))


def test_without_a_text_a_held_out_document_is_read(checkpoint: str) -> None:
    from fox.eval.models import load_model

    name, ids = beginning(load_model(checkpoint).tokenizer, None, 100)
    assert name.endswith(".py")
    assert len(ids) == 100


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", {}, "at least 2 tokens of text in .*text.txt, but got 0"),
        (b"\xff\xfe", {}, "expected UTF-8 text in .*text.txt"),
        (b"some text", {"length": 1}, "length must be at least 2, but got 1"),
    ],
)
def test_a_text_that_is_none_is_refused(
    checkpoint: str, tmp_path: Path, content: bytes, options: dict[str, Any], message: str
) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        inspect_model(checkpoint, str(tmp_path), text=str(text), **options)


def test_tokens_and_sizes_are_spelt_in_few_signs_of_any_font() -> None:
    assert visible("\n        def $x") == "⏎8·def·$x"
    assert visible("日é\x00") == "\\u65e5é\\x00"
    assert [short(tokens) for tokens in (0.25, 12.3, 1234.0, 2.6e7, math.inf)] == [
        *("0.2", "12", "1k", "26M", "∞"),
    ]
