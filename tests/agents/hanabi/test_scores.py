"""Scores are means over decks, with intervals that hold what they promise."""

from types import SimpleNamespace

import numpy as np
import pytest

from fox.agents.hanabi.scores import Scores, estimate, estimate_columns


def game(strict, keep, lives, turn):
    rules = SimpleNamespace(max_score=4)
    return SimpleNamespace(
        strict_score=strict, keep_score=keep, lives=lives, turn=turn, rules=rules
    )


def test_an_interval_is_that_of_student():
    mean, error, low, high = estimate([1, 2, 3])
    assert (mean, error) == (2, pytest.approx(3**-0.5))
    assert (low, high) == pytest.approx((2 - 4.303 * error, 2 + 4.303 * error))


@pytest.mark.parametrize(
    ("freedom", "t"), [(1, 12.706), (9, 2.262), (10, 2.228), (30, 2.042), (120, 1.980)]
)
def test_it_is_wider_the_fewer_values_there_are(freedom, t):
    values = [0.0, 1.0] + [0.5] * (freedom - 1)
    mean, error, _, high = estimate(values)
    assert (high - mean) / error == pytest.approx(t, abs=1e-3)


def test_an_interval_of_95_percent_holds_the_truth_so_often():
    generator = np.random.default_rng(0)
    for n in (3, 12):
        draws = generator.normal(size=(2000, n))
        held = sum(low <= 0 <= high for _, _, low, high in map(estimate, draws))
        assert 0.93 < held / 2000 < 0.97


def test_one_game_has_no_interval():
    with pytest.raises(ValueError, match="needs 2 values or more, but got 1: play more games"):
        estimate([3.0])


def test_scores_keep_points_that_the_strict_score_loses():
    scores = Scores.of([game(4, 4, 1, 9), game(0, 3, 0, 5), game(3, 3, 1, 12)])
    assert scores.strict.tolist() == [4, 0, 3]
    assert scores.keep.tolist() == [4, 3, 3]
    assert scores.perfect_rate.tolist() == [1, 0, 0]
    assert scores.bomb_rate.tolist() == [0, 1, 0]
    assert scores.turns.tolist() == [9, 5, 12]


def test_a_deck_that_is_played_twice_is_still_one_observation():
    once = Scores.of([game(4, 4, 1, 9), game(2, 2, 1, 5)])
    twice = Scores.mean([once, once])
    assert twice.summary() == once.summary()
    other = Scores.of([game(2, 4, 1, 9), game(2, 2, 1, 7)])
    assert Scores.mean([once, other]).strict.tolist() == [3, 2]


def test_a_summary_has_mean_error_and_interval_of_everything():
    row = Scores.of([game(4, 4, 1, 8), game(0, 2, 0, 4)]).summary()
    assert (row["decks"], row["strict"], row["keep"], row["turns"]) == (2, 2, 3, 6)
    assert (row["perfect_rate"], row["bomb_rate"]) == (0.5, 0.5)
    assert row["strict_error"] == pytest.approx(2)
    assert row["strict_high"] == pytest.approx(2 + 12.706 * 2)
    assert len(row) == 1 + 4 * 5
    assert estimate_columns("gap", estimate([1, 1])) == {
        "gap": 1,
        "gap_error": 0,
        "gap_low": 1,
        "gap_high": 1,
    }
