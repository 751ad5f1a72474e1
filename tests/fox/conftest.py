"""Small models that have every part."""

import pytest
import torch

from fox import FoxConfig, FoxForCausalLM

PRO = {
    "use_k_shift": True,
    "use_v_shift": True,
    "qk_norm": True,
    "use_output_norm": True,
    "use_output_gate": True,
}
FOX_PRO = FoxConfig(
    vocab_size=31,
    hidden_size=32,
    num_hidden_layers=2,
    num_heads=4,
    intermediate_size=48,
    **PRO,
)
VARIANTS = {
    "fox-pro": FOX_PRO,
    "fox-pro-gqa": FOX_PRO.replace(num_kv_heads=2),
    "fox-pro-rope": FOX_PRO.replace(use_rope=True),
    "fox-pro-tied": FOX_PRO.replace(tie_word_embeddings=True),
    "fox-pro-shared-qk-norm": FOX_PRO.replace(qk_norm_share_param_across_head=True),
    "fox-pro-silu-gate": FOX_PRO.replace(ogate_act="silu"),
    "fox-pro-pruned": FOX_PRO.replace(log_pruning_tolerance=-10.0),
    "fox-fixed": FOX_PRO.replace(fgate_type="fixed", decay_time_min=2.0, decay_time_max=64.0),
    "fox-bias-only": FOX_PRO.replace(fgate_type="bias_only"),
    "transformer-pro": FOX_PRO.replace(fgate_type="none", use_rope=True),
    "fox-llama": FOX_PRO.replace(**dict.fromkeys(PRO, False)),
    "transformer-llama": FOX_PRO.replace(
        **dict.fromkeys(PRO, False), fgate_type="none", use_rope=True
    ),
}


def random_model(config: FoxConfig, seed: int = 0) -> FoxForCausalLM:
    """A model whose every parameter matters: larger weights, scales and biases off 1 and 0."""
    torch.manual_seed(seed)
    model = FoxForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture(params=sorted(VARIANTS))
def variant(request):
    """Every kind of model, with random weights."""
    return random_model(VARIANTS[request.param])


@pytest.fixture
def fox_pro():
    """A FoX (Pro) with random weights."""
    return random_model(FOX_PRO)


@pytest.fixture
def build():
    """Builds a model with random weights from a config."""
    return random_model
