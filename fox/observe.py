"""What a model's attention works with on a given text: queries, keys and gates, layer by layer.

Legend: B batch, T time, H query heads, H_kv key and value heads, D head size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fox.kernels import computed_share
from fox.layers import ForgettingAttention
from fox.model import FoxForCausalLM, FoxModel

LOG_PRUNING_TOLERANCE = -10.0  # the usual one


@dataclass(frozen=True)
class Observed:
    """The inputs of one attention layer, as its kernel gets them.

    Attributes:
        layer: its number, from 0.
        q: (B, T, H, D). k: (B, T, H_kv, D); normalised, shifted and rotated.
        log_f: (B, T, H) float32, -inf where a document starts; None in a layer without gates.
        logit_bound: (H,), what the QK-norm bounds the logits by; None without it.
    """

    layer: int
    q: Tensor
    k: Tensor
    log_f: Tensor | None
    logit_bound: Tensor | None


@dataclass(frozen=True)
class Gates:
    """What the gates of one layer do on a text.

    Attributes:
        half_life: (H,) float64, tokens; infinite without gates.
        computed_share: (H,) float64, of the causal attention, that pruning leaves to be computed.
    """

    half_life: Tensor
    computed_share: Tensor


@torch.no_grad()
def observe(
    model: FoxForCausalLM | FoxModel,
    input_ids: Tensor,
    visit: Callable[[Observed], None],
    document_starts: Tensor | None = None,
) -> None:
    """Run the model on a text and call visit with each layer's inputs, one layer at a time.

    No logits are computed and no layer's inputs are kept, so that memory is that of a forward pass.

    Args:
        model: on the device of input_ids.
        input_ids, document_starts: (B, T), as in FoxModel.forward.
        visit: what to do with a layer's inputs.
    """
    layers = [module for module in model.modules() if isinstance(module, ForgettingAttention)]
    for number, layer in enumerate(layers):
        layer.observer = partial(_visit, visit, number, layer)
    try:
        with torch.compiler.set_stance("force_eager"):  # a compiled layer would be compiled anew
            if isinstance(
                model, FoxForCausalLM
            ):  # a divided one gathers its ends when called itself
                model(input_ids, document_starts=document_starts, return_logits=False)
            else:
                model(input_ids, document_starts=document_starts)
    finally:
        for layer in layers:
            layer.observer = None


def observed_gates(
    model: FoxForCausalLM | FoxModel,
    input_ids: Tensor,
    document_starts: Tensor | None = None,
    *,
    log_pruning_tolerance: float = LOG_PRUNING_TOLERANCE,
) -> list[Gates]:
    """Half-lives and computed shares of every layer and head on a text.

    Args:
        model, input_ids, document_starts: as in `observe`.
        log_pruning_tolerance: what pruning would lose at most, whatever the model's own.
    """
    gates: list[Gates] = []

    def visit(observed: Observed) -> None:
        shares = computed_shares(observed, log_pruning_tolerance)
        gates.append(Gates(half_life(observed), shares))

    observe(model, input_ids, visit, document_starts)
    return gates


def half_life(observed: Observed) -> Tensor:
    """ln 2 / mean(-log f), tokens after which the mean gate leaves half: (H,) float64, CPU.

    Document starts, which are no gates of the model's own, are left out.
    """
    if observed.log_f is None:
        return torch.full((observed.q.shape[2],), math.inf, dtype=torch.float64)
    log_f = observed.log_f.double().cpu().flatten(0, 1)  # (B * T, H)
    return math.log(2) / log_f[log_f.isfinite().all(-1)].mean(0).abs()


def computed_shares(observed: Observed, log_pruning_tolerance: float) -> Tensor:
    """The share of its causal attention that each head still computes: (H,) float64, CPU."""
    q, k, log_f, bound = observed.q, observed.k, observed.log_f, observed.logit_bound
    H = q.shape[2]
    if log_f is None:
        return torch.ones(H, dtype=torch.float64)
    shares = []
    for head in range(H):
        one, of_keys = slice(head, head + 1), head * k.shape[2] // H
        shares.append(
            computed_share(
                q[:, :, one],
                k[:, :, of_keys : of_keys + 1],
                log_f[:, :, one],
                log_pruning_tolerance=log_pruning_tolerance,
                logit_bound=None if bound is None else bound[one],
            )
        )
    return torch.tensor(shares, dtype=torch.float64)


def _visit(
    visit: Callable[[Observed], None],
    number: int,
    layer: ForgettingAttention,
    q: Tensor,
    k: Tensor,
    log_f: Tensor | None,
) -> None:
    visit(Observed(number, q, k, log_f, layer.logit_bound()))
