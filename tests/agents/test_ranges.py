"""Ranges of settings: what lies on a bound is taken, and what is beyond gets one clear message."""

from types import SimpleNamespace

import pytest

from fox.agents.ranges import above_zero, at_least, one_of, within_one


def test_settings_on_their_bounds_and_those_not_given_are_taken():
    given = SimpleNamespace(games=1, seed=0, rate=1e-9, low=0, high=1.0, kind="b", fps=None)
    at_least("run", given, games=1, seed=0, fps=1)
    above_zero("run", given, "rate", "fps")
    within_one("run", given, "low", "high", "fps")
    one_of("run", given, kind=("a", "b"))


@pytest.mark.parametrize(
    ("check", "told"),
    [
        (lambda it: at_least("run", it, games=2, x=3), "run.x must be at least 3, but got 2.5"),
        (lambda it: at_least("run", it, nan=0), "run.nan must be at least 0, but got nan"),
        (lambda it: above_zero("run", it, "games", "zero"), "run.zero must be above 0, but got 0"),
        (lambda it: within_one("run", it, "x"), r"run.x must lie in \[0, 1\], but got 2.5"),
        (lambda it: within_one("run", it, "less"), r"run.less must lie in \[0, 1\], but got -0.1"),
        (lambda it: one_of("run", it, kind=["a"]), r"must be one of \('a',\), but got 'c'"),
    ],
)
def test_a_setting_out_of_its_range_is_told(check, told):
    given = SimpleNamespace(games=2, x=2.5, nan=float("nan"), zero=0, less=-0.1, kind="c")
    with pytest.raises(ValueError, match=told):
        check(given)
