"""From logits to a token: what may be drawn, and the draw.

Legend: B batch, V vocabulary.
"""

import math

import torch
from torch import Tensor


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Makes tokens that have been seen less likely: l / penalty if l > 0, else l * penalty.

    Args:
        logits: (..., V).
        seen: (..., V) bool.
        penalty: above 0; below 1 it favours them.

    Returns:
        (..., V).

    Source: Keskar et al., CTRL, 2019, section 4.1; negative logits as in its released code.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def check_penalty(penalty: float | None) -> None:
    """Raises ValueError if there is a penalty that is out of its range."""
    if penalty is not None and not penalty > 0:
        raise ValueError(f"repetition_penalty must be above 0, but got {penalty}")


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """(..., V) -> (..., V): -inf but for the k likeliest tokens, and for ties with the last.

    Source: Fan et al., Hierarchical Neural Story Generation, ACL 2018, section 5.3.
    """
    kth = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < kth, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """(..., V) -> (..., V): -inf but for the fewest tokens whose probabilities sum to p or more.

    Source: Holtzman et al., The Curious Case of Neural Text Degeneration, ICLR 2020, section 3.1.
    """
    likelihood, order = logits.softmax(-1).sort(dim=-1, descending=True)
    superfluous = likelihood.cumsum(-1) - likelihood >= p
    return logits.masked_fill(superfluous.scatter(-1, order, superfluous), -torch.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """(..., V) -> (..., V): -inf but for tokens of at least p times the largest probability.

    Source: Nguyen et al., Turning Up the Heat: Min-p Sampling, ICLR 2025, section 3.
    """
    largest = logits.amax(-1, keepdim=True)
    return logits.masked_fill(logits < largest + math.log(p), -torch.inf)


def sample(
    logits: Tensor,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(B, V) logits -> (B,) int64 tokens, drawn from softmax(logits / temperature) cut to size.

    Args:
        temperature: 0 takes the likeliest token.
        top_k, top_p, min_p: as of `keep_top_k`, `keep_top_p` and `keep_min_p`, in this order.
        generator: on the device of logits.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    if min_p is not None:
        logits = keep_min_p(logits, min_p)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def check_sampling(
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
) -> None:
    """Raises ValueError if an option of `sample` is out of its range."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be at least 0 and finite, but got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, but got {top_k}")
    for name, p in (("top_p", top_p), ("min_p", min_p)):
        if p is not None and not 0 < p <= 1:
            raise ValueError(f"{name} must lie in (0, 1], but got {p}")
    if temperature == 0 and (top_k, top_p, min_p) != (None, None, None):
        raise ValueError(
            "top_k, top_p and min_p choose among samples: give a temperature above 0 with them"
        )
