"""Cross-entropy of a linear layer's outputs, without ever holding all of them.

Legend: N tokens, C width, V vocabulary.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fox.kernels.checks import without_autocast

IGNORED = -100  # a label that is not counted
CHUNK_ELEMENTS = 2**26  # logits held at a time


def linear_cross_entropy(
    features: Tensor,
    weight: Tensor,
    labels: Tensor,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> tuple[Tensor, Tensor]:
    """loss_n = logsumexp_v <weight_v, features_n> - <weight_{label_n}, features_n>.

    The logits are made for a chunk of tokens at a time, so memory is O(N C + V C) and not O(N V).
    For "mean" and "sum" the gradients are computed in the forward pass, while a chunk's logits are
    there; for "none" the backward pass makes the logits again. Products are in the dtype of the
    features, or autocast's; the softmax is in float32 (float64 for float64).

    Args:
        features: (..., C), floating point.
        weight: (V, C), of the features' dtype, or float32 under autocast.
        labels: (...) int64 in [0, V); -100 is not counted.
        reduction: "mean" over the counted tokens (nan if there is none), "sum" or "none".

    Returns:
        The loss, a scalar or for "none" (...), and each token's loss (...) without gradient, 0
        where not counted; both float32 (float64 for float64).

    Raises:
        ValueError: the shapes do not fit.
    """
    if features.shape[:-1] != labels.shape or features.shape[-1:] != weight.shape[1:]:
        raise ValueError(
            f"expected features (..., C), weight (V, C) and labels (...), but got "
            f"{tuple(features.shape)}, {tuple(weight.shape)} and {tuple(labels.shape)}"
        )
    device, flat = features.device.type, (features.flatten(0, -2), weight, labels.flatten())
    dtype = features.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    if reduction == "none":
        loss: Tensor = _TokenLosses.apply(*flat, dtype).view(labels.shape)
        return loss, loss.detach()
    total, losses = _SummedLoss.apply(*flat, dtype, torch.is_grad_enabled())
    if reduction == "mean":
        total = total / (labels != IGNORED).sum()
    return total, losses.view(labels.shape)


class _SummedLoss(torch.autograd.Function):
    """The sum, whose gradients need no more than the forward pass, and the summands."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype, grad: bool
    ) -> tuple[Tensor, Tensor]:
        scale = torch.ones_like(labels, dtype=_softmax_dtype(dtype)) if grad else None
        losses, *gradients = _losses(features, weight, labels, dtype, scale)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        features_grad, weight_grad = ctx.saved_tensors
        return features_grad * grad, weight_grad * grad, None, None, None


class _TokenLosses(torch.autograd.Function):
    """Every token's loss; its gradients wait for the weights that the caller gives the losses."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(features, weight, labels)
        ctx.dtype = dtype
        return _losses(features, weight, labels, dtype, None)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, labels = ctx.saved_tensors
        _, features_grad, weight_grad = _losses(features, weight, labels, ctx.dtype, grad)
        return features_grad, weight_grad, None, None


def _losses(
    features: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype, scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(N,) losses; with a scale (N,) also the gradients of sum(scale * losses)."""
    counted = labels != IGNORED
    places = torch.where(counted, labels, 0).unsqueeze(1)
    losses = torch.empty(labels.shape, dtype=_softmax_dtype(dtype), device=labels.device)
    features_grad = weight_grad = losses[:0]
    if scale is not None:
        # The sum over chunks is in float32, each of its summands one product in `dtype`.
        features_grad = torch.empty_like(features)
        weight_grad = torch.zeros_like(weight, dtype=losses.dtype)
    size = max(1, CHUNK_ELEMENTS // len(weight))
    with without_autocast(features.device):
        matrix = weight.to(dtype)
        for start in range(0, len(labels), size):
            rows = slice(start, start + size)
            x = features[rows].to(dtype)
            log_p = (x @ matrix.T).log_softmax(-1, dtype=losses.dtype)
            losses[rows] = -log_p.gather(1, places[rows]).squeeze(1)
            if scale is not None:
                p = log_p.exp_()
                p.scatter_add_(1, places[rows], torch.full_like(p[:, :1], -1.0))
                logits_grad = p.mul_((scale * counted)[rows, None]).to(dtype)
                features_grad[rows] = logits_grad @ matrix
                weight_grad += logits_grad.T @ x
    losses.masked_fill_(~counted, 0.0)
    return losses, features_grad, weight_grad.to(weight.dtype)


def _softmax_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
