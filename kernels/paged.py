"""Attention of one new row per sequence to keys that lie in pages, each page owned by one head.

Legend: B batch, H query heads, K key heads, G = H / K query heads of a key head, D head size,
P pages, S slots of a page.
"""

import math

import torch
from torch import Tensor

from fox.kernels.checks import checked_backend, require_flash, without_autocast
from fox.kernels.engines import aten_forward, aten_works, matmul_forward

# Stands for -inf: a page without a visible slot has a finite log-sum-exp, and then weight 0.
HIDDEN = -1e30


@torch.no_grad()
def paged_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    bias: Tensor,
    owner: Tensor,
    *,
    softmax_scale: float | None = None,
    order: Tensor | None = None,
    borders: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Softmax attention over the pages of each head, wherever they lie in the pool.

    out_(b, h) = sum over slots s of h's pages of
                 softmax_s(softmax_scale <q_(b, h), k_s> + bias_s) v_s

    Every page is read once and where it lies, so that heads may own different numbers of pages at
    no cost: that is what a cache looks like from which forgotten keys have been dropped. Nothing
    here has a gradient.

    Args:
        q: (B, H, D). Under autocast too it is used as it comes.
        k_pages, v_pages: (P, S, D), any float dtype; finite in slots that hold nothing, too.
        bias: (P, G, S) float32, added to the scores: the gates between the slot and now, so at most
            0, and -inf where there is nothing to see.
        owner: (P,) int64 in [0, B K): b K + key head. Query head h reads key head h // G.
        softmax_scale: factor on the dot products; 1 / sqrt(D) if None.
        order, borders: what sort_pages gives for owner; found in each call if None.
        backend: "flash" (Triton, GPUs), "blocked" (PyTorch, any device) or "reference" (plain
            matmuls); if None, "flash" for CUDA tensors, else "blocked".

    Returns:
        (B, H, D) in the dtype of q; 0 for a head that sees nothing.

    Raises:
        ValueError: a shape or dtype is not as above, or the backend cannot run here.
    """
    _check(q, k_pages, v_pages, bias, owner)
    scale = 1 / math.sqrt(q.shape[-1]) if softmax_scale is None else softmax_scale
    backend = checked_backend(backend, q)
    if backend == "flash":
        require_flash(q)
        from fox.kernels.flash.paged import flash_paged

        return flash_paged(q, k_pages, v_pages, bias, owner, scale, order, borders)

    B, H, D = q.shape
    G = bias.shape[1]
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    cpu = backend == "blocked" and q.device.type == "cpu"
    aten = cpu and dtype == torch.float32 and aten_works()
    engine = aten_forward if aten else matmul_forward
    with without_autocast(q.device):
        out, lse = engine(
            q.reshape(-1, G, D).to(dtype)[owner].unsqueeze(1),
            k_pages.to(dtype).unsqueeze(1),
            v_pages.to(dtype).unsqueeze(1),
            bias.to(dtype).clamp(min=HIDDEN).unsqueeze(1),
            False,
            scale,
        )
    merged = _merge(out.squeeze(1), lse.squeeze(1), owner, B * H // G)
    return merged.view(B, H, D).to(q.dtype)


def sort_pages(owner: Tensor, owners: int) -> tuple[Tensor, Tensor]:
    """The pages in the order of their owners, and where each owner begins and ends in it.

    Found on the device. It holds until a page changes hands.

    Args:
        owner: (P,) integer in [0, owners).
        owners: B * H_kv.

    Returns:
        order (P,) and borders (owners + 1,), both int64.
    """
    sorted_owner, order = owner.sort(stable=True)
    every = torch.arange(owners + 1, dtype=owner.dtype, device=owner.device)
    return order, torch.searchsorted(sorted_owner, every)


def _merge(out: Tensor, lse: Tensor, owner: Tensor, owners: int) -> Tensor:
    """Outputs (P, G, D) of pages, weighed by their sums of exponentials: (owners, G, D)."""
    largest = lse.new_full((owners, lse.shape[1]), HIDDEN / 2)
    largest.scatter_reduce_(0, owner[:, None].expand_as(lse), lse, "amax")
    weight = (lse - largest[owner]).exp()
    total = torch.zeros_like(largest).index_add_(0, owner, weight)
    summed = out.new_zeros(owners, *out.shape[1:]).index_add_(0, owner, out * weight[..., None])
    # Not "> 0": NaN shall stay NaN.
    return torch.where(total[..., None] == 0, 0.0, summed / total[..., None])


def _check(q: Tensor, k_pages: Tensor, v_pages: Tensor, bias: Tensor, owner: Tensor) -> None:
    if q.ndim != 3 or k_pages.ndim != 3 or k_pages.shape[2] != q.shape[2]:
        raise ValueError(
            "expected q (B, H, D) and pages (P, S, D) of one head size, "
            f"but got {tuple(q.shape)} and {tuple(k_pages.shape)}."
        )
    if v_pages.shape != k_pages.shape or v_pages.dtype != k_pages.dtype:
        raise ValueError(
            "k_pages and v_pages must have the same shape and dtype, but got "
            f"{tuple(k_pages.shape)} {k_pages.dtype} and {tuple(v_pages.shape)} {v_pages.dtype}."
        )
    P, S, _ = k_pages.shape
    if bias.ndim != 3 or bias.shape[::2] != (P, S) or q.shape[1] % max(bias.shape[1], 1):
        raise ValueError(
            f"bias must have shape (P, G, S) = ({P}, G, {S}), G a divisor of H = {q.shape[1]}, "
            f"but got {tuple(bias.shape)}."
        )
    if owner.shape != (P,) or owner.dtype != torch.int64:
        raise ValueError(
            f"owner must be int64 of shape (P,) = ({P},), "
            f"but got {owner.dtype} of shape {tuple(owner.shape)}."
        )
