"""N-gram baselines: probabilities that sum to one, on the targets of validation."""

import math

import numpy as np
import torch

from fox.loss import IGNORED
from fox.train.ngram import _keys, _KneserNey, ngram_losses
from fox.train.shards import Part

V = 5


def test_probabilities_sum_to_one_after_seen_and_unseen_contexts():
    tokens = np.random.default_rng(0).integers(0, V - 1, size=60)
    words = np.arange(V)
    for order in (1, 2, 3):
        model = _KneserNey(_keys(tokens, order, V)[order - 1 :], order, V)
        for context in ([0, 1], [3, 3], [4, 4], [0, 4], [4, 0]):
            contexts = np.tile(np.array(context)[3 - order :], (V, 1))
            probability = model.probability(contexts, words)
            assert (probability > 0).all()
            np.testing.assert_allclose(probability.sum(), 1.0)


def test_a_bigram_probability_is_that_of_the_formula():
    # abab abac: after a come b, b, b, c.
    tokens = np.array([0, 1, 0, 1, 0, 1, 0, 2])
    model = _KneserNey(_keys(tokens, 2, V)[1:], 2, V)
    grams = {(0, 1): 3, (1, 0): 3, (0, 2): 1}
    assert dict(zip(model.grams.tolist(), model.counts.tolist(), strict=True)) == {
        a * V + b: count for (a, b), count in grams.items()
    }
    # One token in front of each of 0, 1 and 2; no pair is seen twice, so both discounts are 1/2.
    unigram = [0.5 / 3 + 0.5 * 3 / 3 / V] * 3 + [0.5 / V] * 2
    expected = [0.5 * 2 / 4 * unigram[0], 2.5 / 4 + 0.25 * unigram[1], 0.5 / 4 + 0.25 * unigram[2]]
    probability = model.probability(np.zeros((3, 1), dtype=np.int64), np.arange(3))
    np.testing.assert_allclose(probability, expected)


def batch(ids, starts=(), ignored=()):
    ids = torch.tensor([ids])
    labels, document_starts = ids.clone(), torch.zeros_like(ids, dtype=torch.bool)
    labels[0, list(ignored)] = IGNORED
    document_starts[0, list(starts)] = True
    return {"input_ids": ids, "labels": labels, "document_starts": document_starts}


def test_a_text_that_repeats_itself_is_predicted_by_the_order_that_sees_the_pattern():
    cycle = np.tile([0, 1, 0, 2], 100)
    part = Part(cycle.astype(np.uint16), np.array([0, len(cycle)]))
    losses = ngram_losses(part, [batch(cycle[:40].tolist())], V)
    assert losses["uniform"] == math.log(V)
    assert losses["uniform"] > losses["unigram"] > losses["bigram"] > losses["trigram"]
    assert losses["trigram"] < 0.1


def test_only_counted_targets_are_scored_and_no_context_crosses_a_document_start():
    cycle = np.tile([0, 1, 0, 2], 100)
    part = Part(cycle.astype(np.uint16), np.array([0, len(cycle)]))
    whole = ngram_losses(part, [batch([0, 1, 0, 2])], V)
    joined = [4, 4, 4, 4, 0, 1, 0, 2]
    after = ngram_losses(part, [batch(joined, starts=[4], ignored=[1, 2, 3, 4])], V)
    assert after == whole
