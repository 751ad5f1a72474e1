"""Sampling: every cut on numbers worked out by hand, and the draw by its frequencies."""

import math

import pytest
import torch

from fox.sampling import check_sampling, keep_min_p, keep_top_k, keep_top_p, penalize, sample

INF = math.inf
PROBABILITIES = torch.tensor([0.15, 0.5, 0.05, 0.3])


def kept(logits):
    """The places that are still possible."""
    return {place for place, logit in enumerate(logits.tolist()) if logit > -INF}


def frequencies(draws, **options):
    generator = torch.Generator().manual_seed(0)
    logits = PROBABILITIES.log().expand(draws, -1)
    drawn = sample(logits, **({"temperature": 1.0} | options), generator=generator)
    return drawn.bincount(minlength=4) / draws


def test_the_penalty_divides_positive_and_multiplies_negative_logits_of_seen_tokens():
    logits = torch.tensor([[3.0, -3.0, 3.0, -3.0], [0.0, 1.0, 2.0, -1.0]])
    seen = torch.tensor([[True, True, False, False], [True, False, True, True]])
    expected = torch.tensor([[2.0, -4.5, 3.0, -3.0], [0.0, 1.0, 4 / 3, -1.5]])
    torch.testing.assert_close(penalize(logits, seen, 1.5), expected)


@pytest.mark.parametrize(
    ("k", "expected"), [(1, {1}), (2, {1, 3}), (4, {0, 1, 2, 3}), (9, {0, 1, 2, 3})]
)
def test_top_k_keeps_the_k_likeliest(k, expected):
    assert kept(keep_top_k(PROBABILITIES.log(), k)) == expected


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.01, {1}),
        (0.49, {1}),
        (0.51, {1, 3}),
        (0.79, {1, 3}),
        (0.81, {0, 1, 3}),
        (1, {0, 1, 2, 3}),
    ],
)
def test_top_p_keeps_the_fewest_that_sum_to_p(p, expected):
    assert kept(keep_top_p(PROBABILITIES.log(), p)) == expected


@pytest.mark.parametrize(
    ("p", "expected"),
    [(0.05, {0, 1, 2, 3}), (0.11, {0, 1, 3}), (0.29, {0, 1, 3}), (0.31, {1, 3}), (1, {1})],
)
def test_min_p_keeps_what_has_p_times_the_largest_probability(p, expected):
    assert kept(keep_min_p(PROBABILITIES.log() + 7, p)) == expected


def test_each_row_is_cut_by_its_own_probabilities():
    rows = torch.stack([PROBABILITIES, PROBABILITIES.flip(0)]).log()
    for cut in (keep_top_k(rows, 2), keep_top_p(rows, 0.6), keep_min_p(rows, 0.5)):
        assert [kept(row) for row in cut] == [{1, 3}, {0, 2}]


def test_draws_follow_the_distribution():
    torch.testing.assert_close(frequencies(20_000), PROBABILITIES, atol=0.015, rtol=0)


def test_draws_follow_what_is_left_of_the_distribution():
    expected = torch.tensor([0, 5 / 8, 0, 3 / 8])
    for cut in ({"top_k": 2}, {"top_p": 0.6}, {"min_p": 0.5}):
        torch.testing.assert_close(frequencies(20_000, **cut), expected, atol=0.015, rtol=0)


def test_temperature_sharpens_the_distribution_before_it_is_cut():
    expected = PROBABILITIES**2 / (PROBABILITIES**2).sum()
    torch.testing.assert_close(frequencies(20_000, temperature=0.5), expected, atol=0.015, rtol=0)
    assert kept(frequencies(1000, temperature=0.5, min_p=0.31).log()) == {1, 3}
    assert kept(frequencies(1000, temperature=0.5, min_p=0.37).log()) == {1}


def test_temperature_0_takes_the_likeliest():
    assert sample(PROBABILITIES.log().repeat(3, 1), 0.0).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature must be at least 0 and finite, but got -1.0"),
        ({"temperature": math.nan}, "temperature must be at least 0 and finite, but got nan"),
        ({"temperature": INF}, "temperature must be at least 0 and finite, but got inf"),
        ({"top_k": 0}, "top_k must be at least 1, but got 0"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\], but got 0.0"),
        ({"min_p": 1.5}, r"min_p must lie in \(0, 1\], but got 1.5"),
        ({"temperature": 0.0, "min_p": 0.5}, "give a temperature above 0 with them"),
    ],
)
def test_an_option_out_of_its_range_is_named(options, message):
    usual = {"temperature": 1.0, "top_k": None, "top_p": None, "min_p": None}
    with pytest.raises(ValueError, match=message):
        check_sampling(**(usual | options))
