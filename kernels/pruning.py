"""Adaptive computation pruning: how far the gate must fall before keys may be dropped.

Legend: B batch, T query rows, T_k keys, H query heads, H_kv key heads, D head size.
"""

import math

import numpy as np
import torch
from torch import Tensor

from fox.kernels.tiles import Span

# Rounding q and k to 16 bits may lengthen them by this factor after their norms were bounded.
STORAGE_MARGIN = {torch.bfloat16: 1 + 2.0**-7, torch.float16: 1 + 2.0**-10}


class Pruning:
    """Thresholds that keep the dropped weight of every row below exp(log_pruning_tolerance).

    With U >= |softmax_scale <q_i, k_j>| and N the keys that a row sees at most, a pair (i, j) is
    dropped when its decay lambda_i - lambda_j < -(2 U + ln N) + log_pruning_tolerance: its weight
    is then below exp(log_pruning_tolerance) / N.

    Args:
        q: (B, H, T, D). k: (B, H_kv, T_k, D).
        softmax_scale: factor on the dot products.
        log_pruning_tolerance: ln of the largest weight a row may lose, at most 0.
        logit_bound: (B, H), U itself; if None, from the norms of visible q and k.

    Source: Lin et al., Adaptive Computation Pruning for the Forgetting Transformer, 2025.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        softmax_scale: float,
        log_pruning_tolerance: float,
        logit_bound: Tensor | None,
    ) -> None:
        self.log_tolerance = log_pruning_tolerance
        self.bound = None if logit_bound is None else logit_bound.cpu().numpy()
        if self.bound is None:
            self.factor = abs(softmax_scale) * STORAGE_MARGIN.get(q.dtype, 1.0)
            self.q_norm = _norms(q)
            self.k_norm = np.repeat(_norms(k), q.shape[1] // k.shape[1], axis=1)

    def threshold(self, span: Span) -> np.ndarray:
        """The decay below which a span drops keys, (batch rows, heads) float64, at most 0."""
        if self.bound is None:
            q_norm = self.q_norm[span.batch, span.heads, span.row0 : span.row1]
            k_norm = self.k_norm[span.batch, span.heads, span.key0 : span.key1]
            bound = self.factor * q_norm.max(-1) * k_norm.max(-1)
        else:
            bound = self.bound[span.batch, span.heads]
        return self.log_tolerance - (2 * bound + math.log(span.visible))


def _norms(x: Tensor) -> np.ndarray:
    """(B, H, T, D) -> (B, H, T) float64, the norms taken in float32 at least."""
    return torch.linalg.vector_norm(x, dim=-1, dtype=_wide(x.dtype)).double().cpu().numpy()


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32
