"""What is observed is what attention worked with, and watching leaves no trace."""

import math

import pytest
import torch

from fox.config import FoxConfig
from fox.kernels import forgetting_attention
from fox.layers import ForgettingAttention
from fox.model import FoxForCausalLM
from fox.observe import Observed, observe, observed_gates

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4, "intermediate_size": 32}


def make_model(family: str = "fox-pro", **changes: object) -> FoxForCausalLM:
    torch.manual_seed(0)
    config = FoxConfig.preset(f"{family}-125m", vocab_size=50, **SIZE | changes)
    return FoxForCausalLM(config).eval()


def random_ids(B: int = 2, T: int = 40) -> torch.Tensor:
    return torch.randint(50, (B, T), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", ["fox-pro", "fox-llama"])
def test_gates_of_a_fixed_bias_have_its_half_life(family: str) -> None:
    model = make_model(family, fgate_type="bias_only", decay_time_min=2.0, decay_time_max=16.0)
    starts = torch.zeros(2, 40, dtype=torch.bool)
    starts[:, 17] = True  # a document start is no gate
    for document_starts in (None, starts):
        for gates in observed_gates(model, random_ids(), document_starts):
            time_constants = torch.tensor([2.0, 4.0, 8.0, 16.0], dtype=torch.float64)
            torch.testing.assert_close(
                gates.half_life, time_constants * math.log(2), rtol=1e-5, atol=0
            )


def test_heads_that_forget_faster_compute_less_and_documents_cut_the_rest() -> None:
    model = make_model(fgate_type="bias_only", decay_time_min=0.01, decay_time_max=1e4)
    ids = random_ids(1, 600)
    for gates in observed_gates(model, ids):
        assert gates.computed_share[0] < 0.2
        assert gates.computed_share[-1] == 1
        assert gates.computed_share.diff().min() >= 0
    starts = torch.zeros(1, 600, dtype=torch.bool)
    starts[0, 300] = True
    for gates in observed_gates(model, ids, starts):
        assert gates.computed_share[-1] < 0.6


def test_a_grouped_head_is_measured_with_its_own_keys() -> None:
    model = make_model(num_kv_heads=2, fgate_type="bias_only", decay_time_min=1, decay_time_max=1.1)
    for layer in model.model.layers:
        layer.attn.q_norm = layer.attn.k_norm = None  # the norms of q and k bound the logits
        layer.attn.k_proj.linear.weight.data[8:] *= 1e4  # the keys of the last two heads
    for gates in observed_gates(model, random_ids(1, 600)):
        assert gates.computed_share[:2].max() < gates.computed_share[2:].min()


def test_without_gates_nothing_is_forgotten() -> None:
    for gates in observed_gates(make_model("transformer-pro"), random_ids()):
        assert gates.half_life.isinf().all()
        assert (gates.half_life > 0).all()
        assert (gates.computed_share == 1).all()


def test_attention_of_the_observed_inputs_is_what_the_layer_computes() -> None:
    model, seen = make_model("fox-llama"), []
    observe(model, random_ids(), seen.append)
    assert [observed.layer for observed in seen] == [0, 1]
    layer: ForgettingAttention = model.model.layers[0].attn
    x = model.model.layers[0].attn_norm(model.model.embeddings(random_ids()))
    v = layer.v_proj(x).unflatten(-1, (4, 8))
    first: Observed = seen[0]
    assert first.log_f is not None
    out = forgetting_attention(first.q, first.k, v, first.log_f)
    assert isinstance(out, torch.Tensor)
    torch.testing.assert_close(layer.o_proj(out.flatten(2)), layer(x))


def test_a_visit_that_raises_leaves_no_observer_behind() -> None:
    model = make_model()
    with pytest.raises(ZeroDivisionError):
        observe(model, random_ids(), lambda observed: 1 / 0)
    assert all(layer.attn.observer is None for layer in model.model.layers)
