"""Any causal model answers alike: what EvalModel says is what the network itself computes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from fox.eval import models
from fox.eval.models import EvalModel, load_model, tail_names


@pytest.fixture(scope="module", params=["fox", "llama"])
def loaded(request: pytest.FixtureRequest, checkpoint: str, llama: str) -> EvalModel:
    return load_model(checkpoint if request.param == "fox" else llama)


@pytest.fixture
def ids(loaded: EvalModel) -> torch.Tensor:
    return torch.randint(loaded.vocab_size, (3, 33))


def log_probs(loaded: EvalModel, ids: torch.Tensor) -> torch.Tensor:
    """(B, T, V) by the network's own forward."""
    with torch.no_grad():
        return loaded.network(ids).logits.log_softmax(-1)


def test_losses_are_those_of_the_network_however_many_logits_are_made_at_once(
    loaded: EvalModel, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = -log_probs(loaded, ids)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(loaded.next_token_losses(ids), expected.double())
    monkeypatch.setattr(models, "TOKENS_PER_HEAD", 7)
    torch.testing.assert_close(loaded.next_token_losses(ids), expected.double())


def test_the_next_token_is_scored_after_all_tokens(loaded: EvalModel, ids: torch.Tensor) -> None:
    torch.testing.assert_close(loaded.next_token_log_probs(ids), log_probs(loaded, ids)[:, -1])


def test_an_answer_is_scored_given_all_before_it(loaded: EvalModel, ids: torch.Tensor) -> None:
    expected = log_probs(loaded, ids)[:, -6:-1]
    ids[0, -5:] = 0
    ids[1, -1] = expected[1, -1].argmax()
    scores, likeliest = loaded.answer_log_probs(ids, 5)
    expected = log_probs(loaded, ids)[:, -6:-1]
    answer = ids[:, -5:, None]
    torch.testing.assert_close(scores, expected.gather(-1, answer).squeeze(-1))
    assert torch.equal(likeliest, expected.argmax(-1) == answer.squeeze(-1))
    assert likeliest[1, -1]


def test_ends_of_texts_of_many_lengths_are_scored_as_alone(
    loaded: EvalModel, ids: torch.Tensor
) -> None:
    texts, lengths = [ids[0].tolist(), ids[1, :5].tolist(), ids[2, :20].tolist()], [3, 4, 1]
    likeliest = log_probs(loaded, ids)[2, 18].argmax()
    texts[2][-1] = int(likeliest)
    together = loaded.continuation_log_probs(texts, lengths)
    for text, length, (total, greedy) in zip(texts, lengths, together, strict=True):
        scores, right = loaded.answer_log_probs(torch.tensor([text]), length)
        assert total == pytest.approx(scores.sum().item(), rel=1e-5)
        assert greedy == bool(right.all())
    assert together[2][1]


def test_generation_takes_the_likeliest_and_ends_behind_a_stop_text(
    loaded: EvalModel, ids: torch.Tensor
) -> None:
    prompt = ids[0].tolist()
    new = loaded.generate(prompt, 12)
    text = torch.tensor([prompt + new])
    assert torch.equal(log_probs(loaded, text)[0, len(prompt) - 1 : -1].argmax(-1), text[0, 33:])
    stop = loaded.tokenizer.decode(new[:5])[-3:]
    ended = loaded.generate(prompt, 12, [stop])
    assert ended == new[: len(ended)]
    assert stop in loaded.tokenizer.decode(ended)
    assert stop not in loaded.tokenizer.decode(ended[:-1])


def test_the_token_that_ends_a_text_is_no_part_of_it(
    loaded: EvalModel, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = ids[0].tolist()
    new = loaded.generate(prompt, 12)
    end = new[3]
    monkeypatch.setattr(loaded, "eos", [end])
    if loaded.native is None:
        monkeypatch.setattr(loaded.network.generation_config, "eos_token_id", [end])
    assert loaded.generate(prompt, 12) == new[: new.index(end)]


def test_a_model_is_known_by_its_weights_and_its_lengths(checkpoint: str, llama: str) -> None:
    fox, other = load_model(checkpoint), load_model(llama)
    assert fox.native is fox.network
    assert other.native is None
    assert fox.training_length == other.training_length == 64
    assert fox.fingerprint() == load_model(checkpoint).fingerprint() != other.fingerprint()
    with torch.no_grad():
        fox.network.get_parameter("lm_head.weight")[0, 0] += 1
    assert fox.fingerprint() != load_model(checkpoint).fingerprint()


def test_capped_logits_are_not_taken_from_the_output_matrix(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=500, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, head_dim=16,
        num_key_value_heads=2, intermediate_size=32, final_logit_softcapping=0.1,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    model, ids = load_model(str(tmp_path)), torch.randint(500, (2, 9))
    torch.testing.assert_close(model.next_token_log_probs(ids), log_probs(model, ids)[:, -1])


def test_learned_positions_serve_to_the_last_and_end_with_one_error(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=500, n_positions=16, n_embd=32, n_layer=1, n_head=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    model = load_model(str(tmp_path))
    text = torch.ones(1, 17, dtype=torch.int64)  # its last token is scored, but not read
    assert model.next_token_losses(text).shape == (1, 16)
    assert model.answer_log_probs(text, 2)[0].shape == (1, 2)
    assert len(model.continuation_log_probs(text.tolist(), [2])) == 1
    with pytest.raises(ValueError, match="learned positions for 16 tokens, but got 17"):
        model.next_token_losses(torch.ones(1, 18, dtype=torch.int64))
    with pytest.raises(ValueError, match="learned positions for 16 tokens, but got 17"):
        model.generate([1] * 12, 5)


def test_an_unreadable_model_is_one_line(
    llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    fields = json.loads((folder / "config.json").read_text())

    def error() -> str:
        with pytest.raises(ValueError, match=r".") as raised:
            load_model(str(folder))
        assert "\n" not in str(raised.value)
        return str(raised.value)

    (folder / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": 2}))
    assert "lack model.layers.1" in error()
    (folder / "config.json").write_text(json.dumps(fields | {"model_type": "martian"}))
    assert f"cannot read the model {folder}" in error()
    shutil.copy(Path(llama) / "config.json", folder)
    (folder / "tokenizer.json").unlink()
    assert f"the tokenizer of {folder}" in error()
    shutil.rmtree(folder)
    assert f"no checkpoint at {folder}" in error()


def test_names_are_short_tails_that_differ() -> None:
    assert tail_names(["last.ckpt"]) == ["last.ckpt"]
    assert tail_names(["runs/a/model"]) == ["a/model"]
    assert tail_names(["a/b/c", "d/b/c"]) == ["a/b/c", "d/b/c"]
    assert tail_names(["runs/a/model", "runs/b/model"]) == ["a/model", "b/model"]
    with pytest.raises(ValueError, match="expected different models"):
        tail_names(["runs/a", "runs/a"])
