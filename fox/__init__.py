"""The Forgetting Transformer (FoX): softmax attention with a forget gate.

from fox import FoxConfig, FoxForCausalLM

model = FoxForCausalLM(FoxConfig.preset("fox-pro-125m"))
"""

import importlib.util

if importlib.util.find_spec("fox.kernels") is None:
    raise ModuleNotFoundError(
        "fox.kernels is missing: this looks like a checkout that is not installed: "
        "run pip install -e ."
    )

from fox.cache import FoxCache
from fox.config import FoxConfig
from fox.layers import ForgettingAttention
from fox.model import FoxForCausalLM, FoxModel
from fox.policy import FoxPolicy

__all__ = [
    "ForgettingAttention",
    "FoxCache",
    "FoxConfig",
    "FoxForCausalLM",
    "FoxModel",
    "FoxPolicy",
]
