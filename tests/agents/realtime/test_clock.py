"""Clocks: deadlines are absolute, lateness never adds up, and overruns slip or are skipped."""

import time

import pytest

from fox.agents.realtime.clock import VirtualClock, WallClock

M = 0.02


class Stopped(WallClock):
    """A wall clock whose wall is moved by hand."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.wall = 100.0

    def now(self):
        return self.wall

    def sleep_until(self, t):
        self.wall = max(self.wall, t)


def test_virtual_time_passes_only_while_somebody_sleeps():
    clock = VirtualClock(M)
    assert [clock.wait(k) for k in range(5)] == [False] * 5
    assert clock.now() == clock.time_of(4) == pytest.approx(4 * M)
    clock.sleep_until(0.0)
    assert clock.now() == pytest.approx(4 * M), "time never goes back"
    clock.sleep_until(1.0)
    assert clock.now() == 1.0


@pytest.mark.parametrize("make", [VirtualClock, Stopped])
def test_the_first_tick_is_now_whatever_its_number(make):
    clock = make(M)
    before = clock.now()
    clock.wait(500)
    assert clock.now() == pytest.approx(before)
    clock.wait(501)
    assert clock.now() == pytest.approx(before + M)


@pytest.mark.parametrize("overrun", ["slip", "skip"])
def test_a_little_lateness_is_made_up_for(overrun):
    clock = Stopped(M, overrun=overrun)
    clock.wait(0)
    clock.wall += 2.9 * M  # tick 1 comes 1.9 periods late
    assert [clock.wait(k) for k in range(1, 5)] == [False] * 4
    assert clock.now() == pytest.approx(100 + 4 * M)
    assert clock.overruns == 0


def test_a_slip_moves_all_later_ticks():
    clock = Stopped(M)
    clock.wait(0)
    clock.wall += 10 * M
    assert [clock.wait(k) for k in (1, 2)] == [False, False]
    assert clock.now() == pytest.approx(100 + 11 * M)
    assert clock.overruns == 1


def test_a_skip_misses_the_ticks_that_have_passed_and_keeps_the_world_s_time():
    clock = Stopped(M, overrun="skip")
    clock.wait(0)
    clock.wall += 5.5 * M
    assert [clock.wait(k) for k in range(1, 8)] == [True] * 4 + [False] * 3
    assert clock.now() == pytest.approx(100 + 7 * M)
    assert clock.overruns == 1, "one overrun, however many ticks it cost"


@pytest.mark.parametrize("spin", [False, True])
def test_a_wall_clock_never_wakes_early_and_never_drifts(spin):
    clock = WallClock(0.004, spin=spin)
    clock.wait(0)
    begun, late = clock.time_of(0), []
    for k in range(1, 60):
        clock.wait(k)
        late.append(clock.now() - clock.time_of(k))
        time.sleep(0.001)  # work: relative sleeps would add it to every period
    assert min(late) >= 0
    assert min(late[-20:]) < 0.005, "the best of them, since the machine may be busy"
    assert clock.time_of(0) == begun or clock.overruns


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="step_seconds must be above 0, but got 0"):
        VirtualClock(0)
    with pytest.raises(ValueError, match="step_seconds must be above 0, but got -1"):
        WallClock(-1)
    with pytest.raises(ValueError, match="overrun must be 'slip' or 'skip', but got 'stop'"):
        WallClock(M, overrun="stop")
    for clock in (VirtualClock(M), WallClock(M)):
        with pytest.raises(RuntimeError, match="the first wait"):
            clock.time_of(0)
