"""The paper's algorithms do what they are pinned to, after one overrun and at random durations."""

import itertools

import numpy as np
import pytest

from fox.agents.realtime.reference import (
    Deliveries,
    ExpectedTime,
    MaximumTime,
    SlotGrid,
    Unstaggered,
    ahead,
    behind,
    capped_lognormal,
    simulate,
    variation,
)

M = 1 / 59.7275


def constant(overrun=1.0):
    return itertools.chain(itertools.repeat(1.0, 600), [overrun], itertools.repeat(1.0))


def drawn(cv, cap, seed=0):
    values = capped_lognormal(np.random.default_rng(seed), 1.0, cv, cap, 60_000)
    return itertools.cycle(values.tolist())


def measured(schedule, durations, seconds=400.0):
    """CV of the intervals, coverage, and mean age, over the second half."""
    counted = simulate(schedule, durations, seconds).after(seconds / 2)
    coverage = len(counted.ticks(M)) * M / (seconds / 2)
    return counted.interval_cv(), coverage, float((counted.delivered - counted.observed).mean())


def test_dist_counts_the_slots_by_which_a_worker_comes_behind_another():
    np.testing.assert_array_equal(behind(1, 4), [3, 0, 1, 2])
    np.testing.assert_array_equal(ahead(1, 4), [1, 0, 3, 2])


def test_capped_lognormal_durations_have_the_mean_the_deviation_and_the_cap_they_are_given():
    taus = capped_lognormal(np.random.default_rng(0), 3.0, 0.2, 2.0, 100_000)
    assert taus.mean() == pytest.approx(3.0, rel=0.005)
    assert taus.std() / taus.mean() == pytest.approx(0.2, rel=0.02)
    wide = capped_lognormal(np.random.default_rng(0), 3.0, 0.5, 1.5, 10_000)
    assert wide.max() == pytest.approx(4.5)
    np.testing.assert_allclose(capped_lognormal(np.random.default_rng(0), 3.0, 0, 1, 9), 3.0)


@pytest.mark.parametrize(
    ("overrun", "correct", "reversed_"), [(1.01, 0.0, 0.107), (1.5, 2.65, 3.59)]
)
def test_one_overrun_is_repaired_if_it_is_smaller_than_a_slot(overrun, correct, reversed_):
    cv = [
        measured(schedule, constant(overrun))[0]
        for schedule in (
            MaximumTime(60, 1.0),
            MaximumTime(60, 1.0, ahead),
            SlotGrid(60, 1.0, M),
        )
    ]
    assert cv == pytest.approx([correct, reversed_, 0.0], abs=0.01)


@pytest.mark.parametrize(
    ("cv", "cap", "N", "cvs", "coverages", "reversed_cvs"),
    [
        (0.05, 1.2, 72, (0.52, 0.74), (0.77, 0.87), (0.76, 1.36)),
        (0.2, 2.0, 120, (0.89, 1.12), (0.61, 0.67), (1.64, 3.13)),
    ],
)
def test_algorithm_1_loses_its_phases_if_it_begins_with_the_mean(
    cv, cap, N, cvs, coverages, reversed_cvs
):
    runs = [measured(MaximumTime(N, 1.0), drawn(cv, cap, seed)) for seed in range(3)]
    found_cv, found_coverage, age = np.mean(runs, axis=0)
    assert cvs[0] - 0.1 <= found_cv <= cvs[1] + 0.1
    assert coverages[0] - 0.1 <= found_coverage <= coverages[1] + 0.1
    assert age == pytest.approx(cap, rel=1e-3), "every cycle lasts the maximum"
    runs = [measured(MaximumTime(N, 1.0, ahead), drawn(cv, cap, seed)) for seed in range(3)]
    assert reversed_cvs[0] - 0.1 <= np.mean(runs, axis=0)[0] <= reversed_cvs[1] + 0.1
    grid = measured(SlotGrid(N, 1.0, M), drawn(cv, cap))
    assert grid[:2] == pytest.approx((0.0, 1.0), abs=0.01)


def test_algorithm_1_is_exact_if_it_begins_with_the_maximum():
    for dist in (behind, ahead):
        cv, coverage, age = measured(MaximumTime(120, 2.0, dist), drawn(0.2, 2.0))
        assert (cv, coverage, age) == pytest.approx((0.0, 1.0, 2.0), abs=1e-3)


@pytest.mark.parametrize(("cv", "cap"), [(0.05, 1.2), (0.2, 2.0)])
def test_algorithm_2_ends_as_a_poisson_process(cv, cap):
    found = measured(ExpectedTime(60, 1.0), drawn(cv, cap))
    assert found == pytest.approx((1.0, 1 - np.exp(-1), 1.0), abs=0.05)


def test_algorithm_2_keeps_a_negative_balance_and_pays_out_a_positive_one():
    schedule = ExpectedTime(2, 1.0)
    schedule.finished(0, 0.45)  # g = -0.55 / 11: the balance of worker 1 becomes -0.05 / 2
    assert schedule.wait(1, 0.0) == 0.0
    schedule.finished(0, 2.15)  # g = 1.2 / 12
    assert pytest.approx(1 - 0.05 + 0.1) == schedule.T
    assert schedule.wait(1, 0.0) == pytest.approx((0.1 - 0.05) / 2)
    assert schedule.wait(1, 0.0) == 0.0, "paid once"


def test_corrections_posted_during_a_wait_survive_it():
    schedule = MaximumTime(4, 1.0)
    schedule.finished(0, 1.2)
    assert schedule.wait(3, 0.0) == pytest.approx(3 * 0.2 / 4)
    schedule.finished(1, 1.6)  # while worker 3 waits
    assert schedule.wait(3, 0.0) == pytest.approx(2 * 0.4 / 4)


def test_observations_are_read_after_the_inserted_wait():
    schedule = MaximumTime(2, 1.0)
    found = simulate(schedule, itertools.chain([1.0, 1.1], itertools.repeat(1.0)), 40.0)
    ages = found.delivered - found.observed
    assert ages[3:] == pytest.approx(np.full(len(ages) - 3, 1.1)), "waits do not age observations"


@pytest.mark.parametrize("N", [1, 60])
def test_one_worker_or_unstaggered_ones_act_once_per_inference(N):
    assert measured(Unstaggered(N), constant())[1] == pytest.approx(M, abs=1e-3)


def test_of_several_deliveries_in_one_tick_only_one_is_executed():
    found = Deliveries(np.zeros(4), np.array([0.5, 1.1, 1.9, 2.0]))
    np.testing.assert_array_equal(found.ticks(1.0), [1, 2])
    assert variation(np.array([1.0, 3.0])) == pytest.approx(0.5)
    assert variation(np.array([])) == 0.0
