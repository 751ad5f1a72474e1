"""The definition of forgetting attention in plain differentiable PyTorch, O(T T_k): the oracle.

Legend: B batch, T query rows, T_k keys, H query heads, H_kv key heads, D head size.
"""

import torch
from torch import Tensor

from fox.kernels.gates import padding, resets


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    softmax_scale: float,
    seq_start: Tensor | None = None,
    window_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax over visible keys of softmax_scale <q_i, k_j> + sum_{l = j+1..i} log f_l, times v.

    Args:
        q: (B, T, H, D). k, v: (B, T_k, H_kv, D). Rows align to the end of the keys.
        log_f: (B, T_k, H).
        softmax_scale: factor on the dot products.
        seq_start: (B,) integer; keys before it are invisible.
        window_size: how many keys a row sees at most, its own included.

    Returns:
        out (B, T, H, D) and lse (B, H, T), float64 for float64 inputs, else float32. A row that
        sees no key has out 0 and lse -inf.
    """
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    T, H = q.shape[1:3]
    T_k, H_kv = k.shape[1:3]
    q = q.to(dtype).transpose(1, 2)  # (B, H, T, D)
    k, v = (
        x.to(dtype).transpose(1, 2).repeat_interleave(H // H_kv, dim=1) for x in (k, v)
    )  # (B, H, T_k, D)

    # A reset starts a new segment and adds nothing to the sum: rows see only their own segment.
    reset = resets(log_f)
    silent = reset if seq_start is None else reset | padding(log_f, seq_start)
    running = log_f.double().masked_fill(silent, 0.0).cumsum(1).transpose(1, 2)  # (B, H, T_k)
    segment = reset.cumsum(1).transpose(1, 2)  # (B, H, T_k)
    rows = slice(T_k - T, T_k)
    visible = segment[:, :, rows, None] == segment[:, :, None, :]  # (B, H, T, T_k)
    band = visible.new_ones(T, T_k).tril(T_k - T)
    if window_size is not None:
        band = band.triu(T_k - T - window_size + 1)
    visible = visible & band
    if seq_start is not None:
        visible = visible & ~padding(log_f, seq_start).transpose(1, 2)[:, :, None]

    decay = (running[:, :, rows, None] - running[:, :, None, :]).to(dtype)
    scores = softmax_scale * (q @ k.transpose(-1, -2)) + decay
    scores = scores.masked_fill(~visible, float("-inf"))
    lse = scores.logsumexp(-1)  # (B, H, T)
    empty = ~visible.any(-1)
    weights = (scores - lse.masked_fill(empty, 0.0).unsqueeze(-1)).exp()
    return (weights @ v).transpose(1, 2), lse
