"""Generation: one token after the other, through the decode cache.

Legend: B batch, T prompt length, V vocabulary.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fox.model import FoxForCausalLM


@torch.no_grad()
def generate(
    model: "FoxForCausalLM",
    input_ids: Tensor,
    max_new_tokens: int,
    *,
    attention_mask: Tensor | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_token_ids: Sequence[int] = (),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continues each row until a stop token or max_new_tokens.

    Args:
        model: in eval mode, if its layers make a difference.
        input_ids: (B, T) int64, T >= 1.
        max_new_tokens: at most this many.
        attention_mask: (B, T), 0 at the padding on the left of shorter prompts.
        temperature: divides the logits before sampling; 0 takes the likeliest token.
        top_k: sample among the k likeliest.
        top_p: sample among the fewest tokens whose probabilities sum to top_p or more.
        stop_token_ids: a row ends with the first of these; what follows is the same token again.
        generator: source of the random numbers, on the model's device.

    Returns:
        (B, T + new) int64; new <= max_new_tokens, and all rows have ended if it is less.

    Raises:
        ValueError: an option is out of its range, or the prompt is empty.
    """
    if input_ids.dim() != 2 or input_ids.shape[1] < 1:
        raise ValueError(
            f"generate needs a prompt (B, T) of at least one token, got {tuple(input_ids.shape)}"
        )
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be at least 0, but got {max_new_tokens}")
    if not temperature >= 0:
        raise ValueError(f"temperature must be at least 0, but got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, but got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], but got {top_p}")
    if temperature == 0 and (top_k is not None or top_p is not None):
        raise ValueError("top_k and top_p choose among samples: give a temperature above 0")

    stops = torch.tensor(list(stop_token_ids), dtype=torch.int64, device=input_ids.device)
    ended = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
    cache = model.new_cache(input_ids.shape[0])
    tokens, chunk = [input_ids], input_ids
    for step in range(max_new_tokens):
        mask = attention_mask if step == 0 else None
        features = model.model(chunk, attention_mask=mask, cache=cache)
        logits = model.lm_head(features[:, -1]).float()  # (B, V)
        new = sample(logits, temperature, top_k, top_p, generator)
        chunk = torch.where(ended[:, None], tokens[-1][:, -1:], new)
        tokens.append(chunk)
        ended |= torch.isin(chunk[:, 0], stops)
        if len(stops) and bool(ended.all()):
            break
    return torch.cat(tokens, dim=1)


def sample(
    logits: Tensor,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(B, V) logits -> (B, 1) token ids; the arguments are those of `generate`."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        kth = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    if top_p is not None:
        ordered, order = logits.softmax(-1).sort(dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
        logits = logits.masked_fill(dropped, float("-inf"))
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)
