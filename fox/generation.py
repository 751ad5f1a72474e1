"""Generation: prompts are read in chunks and continued token by token, through the decode cache.

Legend: B batch, T prompt length, V vocabulary, C width, N beams.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fox.cache import FoxCache
from fox.sampling import check_penalty, check_sampling, penalize, sample

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from fox.model import FoxForCausalLM

ENDED = -1  # stands in the place of a token where a row has ended: no token has this id


def generate(
    model: "FoxForCausalLM",
    input_ids: Tensor,
    max_new_tokens: int,
    *,
    attention_mask: Tensor | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    stop_token_ids: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
    tokenizer: "Tokenizer | None" = None,
    generator: torch.Generator | None = None,
    prefill_chunk: int = 2048,
    cache: FoxCache | None = None,
) -> Tensor:
    """Continues each row until it ends or has max_new_tokens more: all of `stream` at once.

    Args:
        As of `stream`.

    Returns:
        (B, T + new) int64, the prompts as they came and then the new tokens; -1 fills what is
        behind the end of a row. new < max_new_tokens if all rows have ended before.

    Raises:
        ValueError: as `stream`.

    Example:
        >>> tokens = model.generate(input_ids, 100, temperature=0.8, min_p=0.05)
    """
    steps = stream(
        model,
        input_ids,
        max_new_tokens,
        attention_mask=attention_mask,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop_token_ids=stop_token_ids,
        stop_strings=stop_strings,
        tokenizer=tokenizer,
        generator=generator,
        prefill_chunk=prefill_chunk,
        cache=cache,
    )
    return torch.cat([input_ids, *(new[:, None] for new in steps)], dim=1)


def stream(
    model: "FoxForCausalLM",
    input_ids: Tensor,
    max_new_tokens: int,
    *,
    attention_mask: Tensor | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    stop_token_ids: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
    tokenizer: "Tokenizer | None" = None,
    generator: torch.Generator | None = None,
    prefill_chunk: int = 2048,
    cache: FoxCache | None = None,
) -> Iterator[Tensor]:
    """Yields the new tokens of each step as they come.

    Options act on the logits in this order: repetition_penalty, temperature, top_k, top_p, min_p.
    What a row becomes does not depend on where the others end.

    Args:
        model: in eval mode, if its layers make a difference.
        input_ids: (B, T) int64.
        max_new_tokens: at most this many per row.
        attention_mask: (B, T), 1 for tokens and 0 for padding on the left or right of shorter
            prompts; each row has a token. None: no padding.
        temperature: divides the logits before sampling; 0 takes the likeliest token.
        top_k, top_p, min_p: as of `keep_top_k`, `keep_top_p` and `keep_min_p`.
        repetition_penalty: as of `penalize`, for what stands in the prompt or is new; what the
            cache held before does not count.
        stop_token_ids: a row ends with the first of these, which is its last token.
        stop_strings: a row ends when its new text contains one of these; the token that completes
            it, and with it the string, is the last.
        tokenizer: gives the text for stop_strings, special tokens included.
        generator: source of the random numbers, on the model's device.
        prefill_chunk: tokens of a prompt that are read at once; bounds the memory beside the cache.
        cache: continues the text that it holds; it is updated and then holds each row's text
            without its last new token: begin the next input_ids with that. None: a new one.

    Returns:
        At most max_new_tokens times (B,) int64; -1 for rows that have ended.

    Raises:
        ValueError: an option is out of its range, a prompt has no token, its mask has holes, or
            the cache is not meant for so many tokens.

    Example:
        >>> for new in model.stream(input_ids, 100, temperature=0.8):
        ...     print(new.tolist())
    """
    check_sampling(temperature, top_k, top_p, min_p)
    check_penalty(repetition_penalty)
    stop = Stop(model.config.vocab_size, stop_token_ids, stop_strings, tokenizer)
    real = token_mask(input_ids, attention_mask)
    state = cache_with_room(model, real, max_new_tokens, prefill_chunk, cache)

    @torch.no_grad()
    def steps(ids: Tensor, real: Tensor) -> Iterator[Tensor]:
        seen = seen_tokens(ids, real, model.config.vocab_size)
        ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        recent = ids[:, :0]
        last: Tensor | None = None
        for _ in range(max_new_tokens):
            last = read(model, ids, real, state, prefill_chunk, last)
            logits = model.lm_head(last).float()
            if repetition_penalty is not None:
                logits = penalize(logits, seen, repetition_penalty)
            new = sample(logits, temperature, top_k, top_p, min_p, generator)
            yield new.masked_fill(ended, ENDED)
            seen.scatter_(1, new[:, None], True)
            recent = torch.cat([recent, new[:, None]], dim=1)[:, -stop.tail :]
            ended = ended | stop(recent)
            if bool(ended.all()):
                return
            ids = new[:, None]
            # What ended rows go on with is stored where nobody reads it: padding would be slower.
            real = torch.ones_like(ids, dtype=torch.bool) if cache is None else ~ended[:, None]

    return steps(input_ids, real)  # a generator of its own, so that the checks are not put off


@torch.no_grad()
def beam_search(
    model: "FoxForCausalLM",
    input_ids: Tensor,
    max_new_tokens: int,
    num_beams: int,
    *,
    attention_mask: Tensor | None = None,
    length_penalty: float = 1.0,
    repetition_penalty: float | None = None,
    stop_token_ids: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
    tokenizer: "Tokenizer | None" = None,
    prefill_chunk: int = 2048,
    cache: FoxCache | None = None,
) -> tuple[Tensor, Tensor]:
    """Searches the likeliest continuations of each row, num_beams wide.

    score = (sum over the n new tokens of log p) / n ** length_penalty

    Each step keeps the num_beams likeliest unfinished texts; texts that end among the num_beams
    likeliest are kept by their score. A search is over when no unfinished text can reach the worst
    of num_beams finished ones any more.

    Args:
        length_penalty: above 0 favours long texts, below 0 short ones.
        repetition_penalty: as of `penalize`; p is what the penalised logits give.
        cache: continues the text that it holds; it is updated with the prompts alone.
        The others as of `stream`.

    Returns:
        ids: (B, N, T + new) int64, best first, so that ids[:, 0] is the result; -1 behind the end.
        scores: (B, N) float32; -inf where there are fewer than N texts.

    Raises:
        ValueError: as `stream`.

    Example:
        >>> ids, scores = model.beam_search(input_ids, 100, num_beams=4)
    """
    check_penalty(repetition_penalty)
    if num_beams < 1:
        raise ValueError(f"num_beams must be at least 1, but got {num_beams}")
    V = model.config.vocab_size
    stop = Stop(V, stop_token_ids, stop_strings, tokenizer)
    real = token_mask(input_ids, attention_mask)
    cache = cache_with_room(model, real, max_new_tokens, prefill_chunk, cache)
    last = read(model, input_ids, real, cache, prefill_chunk)
    beams = cache.repeat_interleave(num_beams)

    B, N = len(input_ids), num_beams
    last = last.repeat_interleave(N, dim=0)  # (B * N, C), as all that the model sees
    seen = seen_tokens(input_ids, real, V).repeat_interleave(N, dim=0)
    first_beam = N * torch.arange(B, device=last.device)[:, None]
    texts = input_ids[:, None, :0].expand(B, N, 0)  # unfinished ones, and the sums of their log p
    sums = last.new_full((B, N), -torch.inf, dtype=torch.float32)
    sums[:, 0] = 0  # the beams are one text still
    results = input_ids.new_full((B, N, max_new_tokens), ENDED)
    scores = torch.full_like(sums, -torch.inf)
    # So many that N unfinished ones are among them, whichever stop tokens are.
    candidates = min(N * max(2, 1 + len(stop.token_ids)), N * V)
    for n in range(1, max_new_tokens + 1):
        logits = model.lm_head(last).float()
        if repetition_penalty is not None:
            logits = penalize(logits, seen, repetition_penalty)
        totals = sums[..., None] + logits.log_softmax(-1).view(B, N, V)
        totals, index = totals.flatten(1).topk(candidates)
        parents, new = index // V, index % V
        texts = torch.cat([pick(texts, parents), new[..., None]], dim=-1)
        ended = stop(texts.flatten(0, 1)).view(B, candidates)
        if n == max_new_tokens:
            ended = torch.ones_like(ended)

        finished = (totals / n**length_penalty).masked_fill(~ended, -torch.inf)[:, :N]
        scores, kept = torch.cat([scores, finished], dim=1).topk(N)
        padded = F.pad(texts[:, :N], (0, max_new_tokens - n), value=ENDED)
        results = pick(torch.cat([results, padded], dim=1), kept)

        sums, kept = totals.masked_fill(ended, -torch.inf).topk(N)
        # Sums only fall; dividing by the greatest length is the kindest, if lengths divide.
        attainable = sums[:, 0] / (max_new_tokens if length_penalty > 0 else n) ** length_penalty
        if bool((scores[:, -1] >= attainable).all()):
            break
        texts, rows = pick(texts, kept), (first_beam + parents.gather(1, kept)).flatten()
        ids = texts[..., -1].reshape(B * N, 1)
        beams.reorder(rows)
        seen = seen[rows].scatter(1, ids, True)
        last = model.model(ids, cache=beams)[:, -1]
    results = results[..., :n].masked_fill((scores == -torch.inf)[..., None], ENDED)
    return torch.cat([input_ids[:, None].expand(B, N, -1), results], dim=-1), scores


@dataclass(frozen=True)
class Stop:
    """Where rows end: at a token, or where their new text contains a string."""

    vocab_size: int
    token_ids: Sequence[int]
    strings: Sequence[str]
    tokenizer: "Tokenizer | None"

    def __post_init__(self) -> None:
        outside = [token for token in self.token_ids if not 0 <= token < self.vocab_size]
        if outside:
            raise ValueError(
                f"stop_token_ids must lie in [0, {self.vocab_size}), but got {outside[0]}"
            )
        if isinstance(self.strings, str) or "" in self.strings:
            raise ValueError(
                f"stop_strings must be a list of texts, none empty, but got {self.strings!r}"
            )
        if self.strings and self.tokenizer is None:
            raise ValueError("stop_strings are looked for in text: give the tokenizer with them")

    @property
    def tail(self) -> int:
        """How many of the newest tokens to look at."""
        # Each token gives a byte of the string or more; one before them, because decoders treat
        # the first token of a text in a way of its own.
        return 1 + max((len(string.encode()) for string in self.strings), default=0)

    def __call__(self, new: Tensor) -> Tensor:
        """(B, n) tokens, newest last -> (B,) bool: the newest token ends the row."""
        ended = torch.isin(new[:, -1], torch.tensor(self.token_ids, device=new.device))
        if self.tokenizer is not None and self.strings:
            tails = new[:, -self.tail :].tolist()
            texts = self.tokenizer.decode_batch(tails, skip_special_tokens=False)
            said = [any(string in text for string in self.strings) for text in texts]
            ended |= torch.tensor(said, device=new.device)
        return ended


def token_mask(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """(B, T) bool, where the tokens of the prompts are."""
    if input_ids.dim() != 2:
        raise ValueError(f"input_ids must have shape (B, T), but got {tuple(input_ids.shape)}")
    if attention_mask is None:
        real = torch.ones_like(input_ids, dtype=torch.bool)
    elif attention_mask.shape == input_ids.shape:
        real = attention_mask.bool()
    else:
        raise ValueError(
            f"attention_mask must have the shape of input_ids, {tuple(input_ids.shape)}, "
            f"but got {tuple(attention_mask.shape)}"
        )
    runs = (F.pad(real.int(), (1, 0)).diff(dim=1) == 1).sum(1)
    for row, count in enumerate(runs.tolist()):
        if count != 1:
            raise ValueError(
                "each prompt must be one run of at least one token, padded on its left or right, "
                f"but row {row} has {count} runs"
            )
    return real


def cache_with_room(
    model: "FoxForCausalLM",
    real: Tensor,
    max_new_tokens: int,
    prefill_chunk: int,
    cache: FoxCache | None,
) -> FoxCache:
    """A cache with room for the prompts and all that may follow."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, but got {max_new_tokens}")
    if prefill_chunk < 1:
        raise ValueError(f"prefill_chunk must be at least 1, but got {prefill_chunk}")
    if cache is None:
        cache = model.new_cache(len(real))
    cache.reserve(int(real.sum(1).max()) + max_new_tokens)
    return cache


def read(
    model: "FoxForCausalLM",
    ids: Tensor,
    real: Tensor,
    cache: FoxCache,
    chunk: int,
    last: Tensor | None = None,
) -> Tensor:
    """(B, C) features of each row's newest token, after (B, T) ids were read chunk by chunk.

    A row without a new token keeps its `last`.
    """
    for ids_now, real_now in zip(ids.split(chunk, 1), real.split(chunk, 1), strict=True):
        mask = None if bool(real_now.all()) else real_now
        features = model.model(ids_now, attention_mask=mask, cache=cache)
        newest = real_now.cumsum(1).argmax(1)
        now = features[torch.arange(len(ids), device=ids.device), newest]
        last = now if last is None else torch.where(real_now.any(1, keepdim=True), now, last)
    assert last is not None
    return last


def seen_tokens(ids: Tensor, real: Tensor, vocab_size: int) -> Tensor:
    """(B, V) bool, which tokens stand in the prompts."""
    counts = torch.zeros(len(ids), vocab_size, dtype=torch.int64, device=ids.device)
    return counts.scatter_add_(1, ids.long(), real.long()) > 0


def pick(texts: Tensor, index: Tensor) -> Tensor:
    """(B, N, n) texts at (B, M) indices -> (B, M, n)."""
    return texts.gather(1, index[..., None].expand(-1, -1, texts.shape[-1]))
