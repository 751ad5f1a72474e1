"""FoxLM: packing changes nothing, and checkpoints hold plain values."""

import dataclasses

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

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


def random_batch():
    ids = torch.randint(23, (3, 12))
    return {"input_ids": ids, "labels": ids, "document_starts": torch.rand(3, 12) < 0.2}


# Dynamo looks at the gradient of a block's input, which is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    ("variant", "activation_checkpointing"), [("fox-pro", True), ("transformer-llama", False)]
)
def test_compiled_blocks_compute_the_same_and_keep_their_names(
    monkeypatch, variant, activation_checkpointing
):
    compile_module = nn.Module.compile
    backend = {"backend": "aot_eager", "fullgraph": True}  # as strict, and without a C++ compiler
    monkeypatch.setattr(nn.Module, "compile", lambda block: compile_module(block, **backend))
    settings = {"compile_blocks": True, "activation_checkpointing": activation_checkpointing}
    eager, compiled = FoxLM(VARIANTS[variant]), FoxLM(VARIANTS[variant], **settings)
    eager.configure_model()
    compiled.configure_model()
    compiled.load_state_dict(eager.state_dict())
    batch = random_batch()
    expected = loss_and_gradients(eager.network, [batch])
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    got = loss_and_gradients(compiled.network, [batch])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # both blocks have one
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_passes_hold_as_many_rows_as_the_tokens_allow_and_one_at_least():
    batch = random_batch()
    for tokens, rows in ((None, [3]), (35, [2, 1]), (36, [3]), (24, [2, 1]), (5, [1, 1, 1])):
        passes = FoxLM(CONFIG, micro_batch_tokens=tokens)._passes(batch)
        assert [len(part["input_ids"]) for part in passes] == rows
        for name, value in batch.items():
            assert torch.equal(torch.cat([part[name] for part in passes]), value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accumulate_grad_batches": 2}, "model.micro_batch_tokens divides them into passes"),
        ({"gradient_clip_algorithm": "value"}, "gradient_clip_algorithm = norm, but got"),
        ({"plugins": [MixedPrecision("16-mixed", "cpu")]}, "precision = bf16-mixed, but got 16"),
        ({"strategy": ModelParallelStrategy()}, "pass --trainer.strategy fsdp2"),
    ],
)
def test_what_we_do_in_another_way_is_refused(settings, message):
    model = FoxLM(CONFIG)
    model.trainer = Trainer(accelerator="cpu", devices=1, logger=False, **settings)
    with pytest.raises(ValueError, match=message):
        model.setup("fit")
