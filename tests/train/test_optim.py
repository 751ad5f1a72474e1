"""The paper's optimiser: what decays, and the learning rate by tokens."""

import pytest
import torch
from torch import nn

from fox import FoxConfig, FoxForCausalLM
from fox.train.optim import adamw, parameter_groups, renamed_state, warmup_cosine

CONFIG = FoxConfig(
    vocab_size=11,
    hidden_size=16,
    num_hidden_layers=1,
    num_heads=2,
    use_k_shift=True,
    use_v_shift=True,
    qk_norm=True,
    use_output_norm=True,
    use_output_gate=True,
)


def names_by_group(model):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    return [{names[id(parameter)] for parameter in group["params"]} for group in groups]


def test_matrices_and_the_embedding_decay_and_norm_scales_and_gate_biases_do_not():
    model = FoxForCausalLM(CONFIG)
    decayed, kept = names_by_group(model)
    assert decayed | kept == set(dict(model.named_parameters()))
    assert all(("norm" in name) or name.endswith("bias") for name in kept)
    assert {"model.embeddings.weight", "lm_head.weight"} <= decayed
    assert "model.layers.0.attn.fgate_proj.weight" in decayed
    assert "model.layers.0.attn.k_proj.shift_proj.weight" in decayed
    assert "model.layers.0.attn.fgate_proj.bias" in kept


def test_the_gate_logits_of_bias_only_do_not_decay():
    model = FoxForCausalLM(CONFIG.replace(fgate_type="bias_only"))
    assert "model.layers.0.attn.fgate_bias" in names_by_group(model)[1]


def test_a_tied_matrix_counts_once():
    groups = parameter_groups(FoxForCausalLM(CONFIG.replace(tie_word_embeddings=True)), 0.1)
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(ids) == len(set(ids))


def test_a_parameter_of_unknown_kind_is_an_error_that_names_it():
    model = FoxForCausalLM(CONFIG)
    model.model.layers[0].extra = nn.Conv1d(1, 1, 1)
    with pytest.raises(ValueError, match=r"model.layers.0.extra.weight of Conv1d"):
        parameter_groups(model, 0.1)


def test_adamw_has_the_papers_constants():
    optimizer = adamw(FoxForCausalLM(CONFIG), 2e-3, 0.1)
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.9, 0.95), 1e-8)


def test_a_state_under_names_and_numbered_again_is_the_state():
    model = FoxForCausalLM(CONFIG)
    optimizer = adamw(model, 2e-3, 0.1)
    model(torch.arange(5)[None]).logits.sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    names = [f"parameter {number}" for number in state["state"]]
    named = renamed_state(state, dict(enumerate(names)))
    assert set(named["state"]) == set(names)
    assert renamed_state(named, {name: i for i, name in enumerate(names)}) == state


def test_the_learning_rate_rises_from_zero_and_falls_along_a_cosine_to_the_floor():
    factors = [warmup_cosine(n, 100, 500, 0.0) for n in (0, 50, 100, 300, 500, 600)]
    torch.testing.assert_close(factors, [0.0, 0.5, 1.0, 0.5, 0.0, 0.0])
    floored = [warmup_cosine(n, 100, 500, 0.1) for n in (100, 300, 500)]
    torch.testing.assert_close(floored, [1.0, 0.55, 0.1])
    assert warmup_cosine(0, 0, 500, 0.0) == 1.0
