"""N-gram baselines on the model's own tokens: what counting alone achieves.

Legend: V vocabulary, N training tokens, M predicted tokens.
"""

from collections.abc import Iterable

import numpy as np

from fox.loss import IGNORED
from fox.train.rows import Batch
from fox.train.shards import Part

ORDERS = {"unigram": 1, "bigram": 2, "trigram": 3}
COUNTED_TOKENS = 50_000_000  # counts take about 50 bytes for each


def ngram_losses(train: Part, batches: Iterable[Batch], vocab_size: int) -> dict[str, float]:
    """Mean loss in nats of interpolated Kneser-Ney models of order 1 to 3, and of no model at all.

    P(w | h) = max(c(h, w) - d, 0) / c(h) + d types(h) / c(h) P(w | shorter h), down to 1 / V;
    d = n1 / (n1 + 2 n2) from the numbers of n-grams seen once and twice; below the highest order
    c counts the different tokens in front instead of the occurrences.

    Args:
        train: what is counted, within documents; the first 50 million tokens.
        batches: what is predicted: exactly the targets that the model's validation counts, and no
            context that the model does not see.
        vocab_size: V.

    Returns:
        loss by name: uniform, unigram, bigram, trigram.

    Source: Kneser and Ney, ICASSP 1995; Chen and Goodman 1998, section 2.7 (interpolation).
    """
    tokens = np.asarray(train.tokens[:COUNTED_TOKENS], dtype=np.int64)
    position = np.arange(len(tokens))
    since_start = position - train.bounds[np.searchsorted(train.bounds, position, "right") - 1]
    models = [
        _KneserNey(_keys(tokens, order, vocab_size)[since_start >= order - 1], order, vocab_size)
        for order in ORDERS.values()
    ]
    sums, num_targets = np.zeros(len(models)), 0
    for batch in batches:
        contexts, words, lengths = _targets(batch)
        num_targets += len(words)
        for i, order in enumerate(ORDERS.values()):
            # With less context than its order takes, a model asks the one that can use it all.
            for length in range(order):
                chosen = lengths == length if length < order - 1 else lengths >= length
                model = models[length]
                probability = model.probability(contexts[chosen, 2 - length :], words[chosen])
                sums[i] -= np.log(probability).sum()
    losses = dict(zip(ORDERS, (sums / num_targets).tolist(), strict=True))
    return {"uniform": float(np.log(vocab_size))} | losses


class _KneserNey:
    """Keys are n-grams as numbers to the base V, the last token being the lowest digit."""

    def __init__(self, keys: np.ndarray, order: int, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.grams, self.counts = np.unique(keys, return_counts=True)
        self.contexts, first = np.unique(self.grams // vocab_size, return_index=True)
        self.totals = np.add.reduceat(self.counts, first)
        self.types = np.diff(first, append=len(self.grams))
        once, twice = (self.counts == 1).sum(), (self.counts == 2).sum()
        self.discount = once / (once + 2 * twice) if once and twice else 0.5
        self.shorter: _KneserNey | None = None
        if order > 1:
            without_first = self.grams % vocab_size ** (order - 1)
            self.shorter = _KneserNey(without_first, order - 1, vocab_size)

    def probability(self, context: np.ndarray, word: np.ndarray) -> np.ndarray:
        """context (M, order - 1) and word (M,) -> (M,)."""
        lower: np.ndarray | float = 1 / self.vocab_size
        if self.shorter is not None:
            lower = self.shorter.probability(context[:, 1:], word)
        powers = self.vocab_size ** np.arange(context.shape[1])[::-1]
        key = context @ powers if context.shape[1] else np.zeros_like(word)
        count = _look_up(self.grams, self.counts, key * self.vocab_size + word)
        total = _look_up(self.contexts, self.totals, key)
        types = _look_up(self.contexts, self.types, key)
        seen = np.maximum(count - self.discount, 0) + self.discount * types * lower
        return np.where(total > 0, seen / np.maximum(total, 1), lower)


def _keys(tokens: np.ndarray, order: int, vocab_size: int) -> np.ndarray:
    """(N,) the n-gram that ends at each token; the first order - 1 of them are not whole."""
    keys = tokens.copy()
    for distance in range(1, order):
        keys[distance:] += tokens[:-distance] * vocab_size**distance
    return keys


def _targets(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two tokens in front (M, 2), the token (M,), and how many of the two the model sees (M,)."""
    ids, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
    starts = batch["document_starts"].numpy()
    before = np.concatenate([np.zeros_like(ids[:, :1]), ids[:, :-2]], axis=1)
    contexts = np.stack([before, ids[:, :-1]], axis=2)  # (B, T - 1, 2)
    lengths = np.where(starts[:, :-1], 1, 2)
    lengths[:, 0] = 1
    counted = labels[:, 1:] != IGNORED
    return contexts[counted], ids[:, 1:][counted], lengths[counted]


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """values[i] where keys[i] == wanted, else 0; keys are sorted."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
