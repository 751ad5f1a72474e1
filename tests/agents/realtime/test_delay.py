"""Delay and number of workers from durations."""

import numpy as np
import pytest

from fox.agents.realtime.delay import (
    Change,
    DelayController,
    delay_for,
    size_for,
    ticks_for,
    workers_for,
    workers_for_maximum,
)
from fox.agents.realtime.sweep import GAME_BOY, Law, sources_of
from fox.agents.realtime.ticks import Source

M = 0.01


def test_a_duration_of_exactly_n_ticks_takes_n_ticks_whatever_the_rounding():
    assert [ticks_for(n * 0.1, 0.1) for n in range(1, 100)] == list(range(1, 100))
    assert ticks_for(0.1001, 0.1) == 2
    assert ticks_for(0.0, 0.1) == 1, "an action cannot be due at the tick of its observation"


def test_the_delay_leaves_room_for_the_way_and_the_head():
    assert delay_for(0.095, M, 0.004) == 10
    assert delay_for(0.095, M, 0.006) == 11


def test_the_rules_for_workers_follow_their_formulas():
    assert workers_for(1.0, 0.0, GAME_BOY) == 61
    assert workers_for(1.0, 0.2, GAME_BOY) == 67  # 59.73 + 1 + 2.4 sqrt(6.737)
    assert workers_for_maximum(2.0, GAME_BOY) == 120


@pytest.mark.parametrize(("cv", "cap"), [(0.0, 1.0), (0.05, 1.2), (0.2, 2.0), (0.5, 3.0)])
def test_the_default_number_of_workers_covers_nearly_every_tick(cv, cap):
    law = Law(cv, cap)
    for seconds in (0.05, 0.5, 2.0):
        durations = law.durations(seconds, 30_000, seed=1)
        workers = workers_for(float(durations.mean()), float(durations.std()), GAME_BOY)
        d = delay_for(cap * seconds, GAME_BOY)
        sources = sources_of(durations, workers, d, GAME_BOY)
        assert np.mean(sources[d:] == Source.POLICY) >= 0.9985


def test_a_size_takes_the_quantile_that_is_asked_for():
    durations = [0.05] * 99 + [0.5]
    assert size_for(durations, M).d == 5
    assert size_for(durations, M, quantile=1.0).d == 50
    assert size_for(durations, M, overhead_seconds=0.011).d == 7
    assert size_for(durations, M).workers == workers_for(np.mean(durations), np.std(durations), M)


def test_no_durations_are_refused():
    with pytest.raises(ValueError, match="expected at least one measured duration, but got none"):
        size_for([], M)


def controller(d=10):
    return DelayController(d, M, d_max=64)


def fed(control, seconds, evaluations):
    """The evaluations at which d has changed, counted from 1."""
    changes = [control.add(seconds) for _ in range(control.EVERY * evaluations)]
    return [1 + n // control.EVERY for n, changed in enumerate(changes) if changed]


def test_the_delay_rises_after_two_agreeing_evaluations_and_falls_after_sixteen():
    control = controller()
    assert fed(control, 0.0995, 20) == []
    assert fed(control, 0.1995, 3) == [2]
    assert control.d == 20
    # 512 / 64 = 8 evaluations until nothing but short durations is in the window
    assert fed(control, 0.0995, 30) == [8 + 16 - 1]
    assert control.d == 10
    assert [(change.before, change.after) for change in control.changes] == [(10, 20), (20, 10)]
    assert control.changes[0] == Change(22 * 64, 10, 20)


def test_one_pause_never_inflates_the_delay():
    control = controller()
    fed(control, 0.0995, 8)
    control.add(5.0)
    fed(control, 0.0995, 40)
    assert control.d == 10
    assert control.changes == []


def test_an_evaluation_that_disagrees_begins_the_count_again():
    class Forgetful(DelayController):
        WINDOW = DelayController.EVERY

    control = Forgetful(10, M, d_max=64)
    for seconds in (0.1995, 0.0995, 0.1995, 0.0495, 0.1995, 0.0995):
        assert fed(control, seconds, 1) == []
    assert fed(control, 0.1995, 2) == [2]


def test_the_delay_changes_by_as_much_as_all_agreeing_evaluations_ask():
    control = controller()
    fed(control, 0.1495, 1)
    fed(control, 0.1995, 1)
    assert control.d == 15


def test_the_delay_stays_within_what_the_head_knows():
    control = controller()
    fed(control, 5.0, 2)
    assert control.d == 64
    with pytest.raises(ValueError, match=r"must be in 1 .. d_max = 8 ticks, but got 9"):
        DelayController(9, M, d_max=8)
