"""Warm starts: a FoX with open gates computes what its Transformer computes."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from fox import FoxForCausalLM
from fox.checkpoints import read_folder, write_folder
from fox.layers import ForgettingAttention
from fox.warm_start import main, open_gates

GOLDEN = Path(__file__).parents[1] / "golden"
IDS = torch.arange(60)[None] % 31


@pytest.fixture(params=["llama", "llama-gqa", "llama-tied", "pro"])
def transformer(request, fox_pro, build) -> FoxForCausalLM:
    """A Transformer with RoPE and random weights."""
    config = fox_pro.config.replace(fgate_type="none", use_rope=True, max_position_embeddings=60)
    if request.param != "pro":
        pro = ("use_k_shift", "use_v_shift", "qk_norm", "use_output_norm", "use_output_gate")
        config = config.replace(**dict.fromkeys(pro, False))
    config = config.replace(num_kv_heads=2 if request.param == "llama-gqa" else None)
    return build(config.replace(tie_word_embeddings=request.param == "llama-tied"))


def loss(model: FoxForCausalLM) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, labels=IDS).loss


@torch.no_grad()
def test_with_rope_kept_the_logits_are_the_transformers(transformer):
    fox = open_gates(transformer, 1e9, 1e9)
    assert (fox(IDS).logits - transformer(IDS).logits).abs().max() <= 2e-5
    assert (fox.lm_head.weight is fox.model.embeddings.weight) == fox.config.tie_word_embeddings
    assert transformer.config == fox.config.replace(fgate_type="none")


@torch.no_grad()
def test_without_rope_they_are_those_of_the_transformer_without_rope(transformer):
    fox = open_gates(transformer, 1e9, 1e9, use_rope=False)
    bare = FoxForCausalLM(transformer.config.replace(use_rope=False)).eval()
    bare.load_state_dict(transformer.state_dict())
    assert (fox(IDS).logits - bare(IDS).logits).abs().max() <= 2e-5
    assert (fox(IDS).logits - transformer(IDS).logits).abs().max() > 1e-2
    assert not fox.config.use_rope


@torch.no_grad()
def test_every_token_is_forgotten_with_the_time_constant_of_the_head(transformer):
    fox = open_gates(transformer, 16.0, 1024.0)
    for layer in fox.modules():
        if isinstance(layer, ForgettingAttention):
            rates = -layer.log_gates(torch.randn(1, 5, 32))
            times = torch.tensor([16.0, 64.0, 256.0, 1024.0]).expand(1, 5, 4)
            torch.testing.assert_close(1 / rates, times, rtol=1e-4, atol=0)


def test_gates_of_any_time_constant_get_a_gradient_and_move(transformer):
    fox = open_gates(transformer, 1e6, 1e6)
    optimizer = torch.optim.AdamW(fox.parameters(), lr=1e-3)
    fox(IDS, labels=IDS).loss.backward()
    optimizer.step()
    for layer in fox.model.layers:
        assert (layer.attn.fgate_proj.weight.abs().amax(1) > 1e-4).all()


def test_a_model_with_gates_is_refused(fox_pro):
    with pytest.raises(ValueError, match=r"expected a Transformer, .* gates .*fgate_type 'full'"):
        open_gates(fox_pro, 1e3, 1e3)


def test_a_folder_is_converted_with_a_line_per_tensor(transformer, tmp_path, capsys):
    write_folder(transformer.bfloat16(), tmp_path / "transformer")
    Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "transformer/tokenizer.json"))
    main([str(tmp_path / "transformer"), str(tmp_path / "fox")])
    lines = capsys.readouterr().out.splitlines()
    gates = "model.layers.1.attn.fgate_proj"
    assert f"{gates}.weight: (4, 32) bfloat16, added" in lines
    assert f"{gates}.bias: (4,) bfloat16, added" in lines
    assert "model.norm.weight -> model.norm.weight: (32,) bfloat16, copied" in lines
    assert "tokenizer.json: copied" in lines
    assert lines[-1] == "gates are open: time constants of 240 to 240 tokens"
    fox, theirs = read_folder(tmp_path / "fox"), read_folder(tmp_path / "transformer")
    assert fox.lm_head.weight.dtype == torch.bfloat16
    assert abs(loss(fox.float()) - loss(theirs.float())) < 0.01 * loss(theirs)

    times = ["--decay_time_max", "64"]
    main([str(tmp_path / "transformer"), str(tmp_path / "bare"), "--rope", "drop", *times])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [
        "rotary position embedding: dropped, it had no tensors",
        "gates are open: time constants of 4 to 64 tokens",
    ]
    assert not read_folder(tmp_path / "bare").config.use_rope


def test_mistakes_are_said_in_one_line(tmp_path, capsys):
    def error(*arguments: str) -> str:
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("fox-warm-start: ")

    source, target = str(GOLDEN / "transformer_pro_rope"), str(tmp_path / "target")
    config = read_folder(Path(source)).config.replace(max_position_embeddings=None)
    FoxForCausalLM(config).save_pretrained(tmp_path / "unknown")
    assert error(str(GOLDEN / "fox_pro"), target).startswith("expected a Transformer, but")
    assert error(str(tmp_path / "unknown"), target).endswith("such as 4 times that length")
    assert "0 < decay_time_min <= " in error(source, target, "--decay_time_min", "1e9")
    assert error(source, str(tmp_path)).startswith(f"{tmp_path} is not empty")
    assert error(source, target, "--rope", "maybe").endswith("see fox-warm-start --help")
    assert not Path(target).exists()
