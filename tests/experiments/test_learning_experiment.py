"""The learning experiment: agents are alike but for how they interact; claims have bounds."""

from dataclasses import replace
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "realtime"


@pytest.fixture(scope="module")
def learning():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        import learning

        yield learning


def runs_of(learning, rates, seconds=100):
    """Runs of every kind: rates of the staggered agent by seed, the others always catch half."""
    return [
        {"kind": name, "seed": seed, "catch_rate": rate if name == "staggered" else 0.5}
        | {"seconds": seconds}
        | {"curve": [{"tick": 1, "catch_rate": 0.1}, {"tick": 2, "catch_rate": 0.2}]}
        for name in learning.KINDS
        for seed, rate in enumerate(rates)
    ]


def test_an_interval_is_students(learning):
    middle, low, high = learning.interval([1.0, 2.0, 3.0])
    assert (middle, low, high) == pytest.approx((2.0, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))


def test_a_win_needs_an_interval_above_nothing(learning):
    sure = learning.acceptance(runs_of(learning, (0.8, 0.82, 0.81)))
    unsure = learning.acceptance(runs_of(learning, (0.9, 0.8, 0.45)))
    assert len(sure) == len(learning.KINDS)
    assert all(line.passed for line in sure)
    assert not any(line.passed for line in unsure[:-1])


def test_all_agents_together_have_20_minutes_of_two_cores(learning):
    number = 3 * len(learning.KINDS)
    for seconds, enough in ((2400 / number, True), (2460 / number, False)):
        *_, last = learning.acceptance(runs_of(learning, (0.8, 0.82, 0.81), seconds))
        assert last.passed is enough


def test_agents_of_all_kinds_are_of_one_size_and_update_equally_often(learning, tmp_path):
    configs = [learning.config(kind, 0, 18_000, tmp_path) for kind in learning.KINDS.values()]
    first = configs[0]
    for config in configs:
        assert (config.policy, config.learner, config.env) == (
            first.policy,
            first.learner,
            first.env,
        )
        run = config.run
        assert (run.ticks - run.warmup_ticks) * run.updates_per_tick == pytest.approx(4250)
        alike = {"interaction": "staggered", "beta": "noop", "workers": learning.D}
        assert replace(config.schedule, **alike) == first.schedule


def test_workers_times_ticks_are_equal_at_equal_core_seconds(learning, tmp_path):
    configs = {
        name: learning.config(kind, 0, 18_000, tmp_path) for name, kind in learning.KINDS.items()
    }
    spent = {name: one.schedule.workers * one.run.ticks for name, one in configs.items()}
    equal = {cost for name, cost in spent.items() if "equal" in name}
    assert equal == {spent["staggered"]}


def test_the_figure_is_drawn(learning, tmp_path):
    learning.draw(tmp_path / "learning.png", runs_of(learning, (0.8, 0.82)))
    assert (tmp_path / "learning.png").stat().st_size > 10_000
