"""FoxLM: packing changes nothing, and checkpoints hold plain values."""

import dataclasses

import numpy as np
import pytest
import torch

from fox import FoxConfig, FoxForCausalLM
from fox.train.lm import FoxLM
from fox.train.rows import Packing, collate
from fox.train.shards import Part

PRO = {
    "use_k_shift": True,
    "use_v_shift": True,
    "qk_norm": True,
    "use_output_norm": True,
    "use_output_gate": True,
}
CONFIG = FoxConfig(
    vocab_size=23, hidden_size=16, num_hidden_layers=2, num_heads=2, intermediate_size=32
)
VARIANTS = {
    "fox-pro": CONFIG.replace(**PRO),
    "fox-llama": CONFIG,
    "transformer-pro": CONFIG.replace(**PRO, fgate_type="none", use_rope=True),
    "transformer-llama": CONFIG.replace(fgate_type="none", use_rope=True),
}


def loss_and_gradients(model, batches):
    model.zero_grad()
    losses = [model(**batch, reduction="none").loss.sum() for batch in batches]
    loss = sum(losses)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_packed_documents_have_the_loss_and_the_gradients_of_separate_documents(variant):
    model = FoxForCausalLM(VARIANTS[variant])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    tokens = np.random.default_rng(0).integers(1, 23, size=40).astype(np.uint16)
    part = Part(tokens, np.array([0, 7, 8, 25, 40]))
    packed = [collate(Packing(part, np.arange(4), 40), [0])]
    separate = [
        {"input_ids": ids, "labels": ids}
        for a, b in zip(part.bounds[:-1], part.bounds[1:], strict=True)
        for ids in [torch.from_numpy(tokens[a:b].astype(np.int64))[None]]
    ]
    loss, gradients = loss_and_gradients(model, packed)
    expected_loss, expected = loss_and_gradients(model, separate)
    torch.testing.assert_close(loss, expected_loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=2e-5, rtol=1e-4, msg=name)


def test_hyperparameters_are_plain_values_and_rebuild_the_model():
    model = FoxLM(CONFIG, learning_rate=0.1)
    assert model.hparams["config"] == dataclasses.asdict(CONFIG)
    again = FoxLM(**model.hparams)
    assert again.config == CONFIG
    assert again.learning_rate == 0.1


def test_the_network_is_built_once():
    model = FoxLM(CONFIG)
    model.configure_model()
    network = model.network
    model.configure_model()
    assert model.network is network
    assert all(name.startswith("net.") for name in model.state_dict())
