"""Meter: rows by hand."""

import pytest

from fox.agents.realtime.loop import Step
from fox.agents.realtime.meter import Meter
from fox.agents.realtime.ticks import Source


def step(tick, source=Source.POLICY, reward=0.0, terminated=False, delay=2, version=0):
    policy = source is Source.POLICY
    obs_tick, version = (tick - delay, version) if policy else (-1, -1)
    return Step(tick, 0, source, 0, reward, terminated, False, delay, obs_tick, version)


def test_a_row_counts_what_was_earned_and_who_acted():
    meter = Meter(0.5)
    sources = [Source.BETA_RESET, Source.BETA_RESET, Source.POLICY, Source.BETA_LATE, Source.POLICY]
    rewards = [1.0, 0.0, -2.0, 0.0, 4.0]
    for tick, (source, reward) in enumerate(zip(sources, rewards, strict=True)):
        meter.add(step(tick, source, reward), newest=3)
    row = meter.row()
    assert row["return"] == 3 / (5 * 0.5)
    assert (row["gains"], row["losses"], row["episodes"]) == (2, 1, 0)
    assert row["coverage"] == 2 / 3
    assert (row["beta_reset"], row["beta_late"], row["beta_lost"]) == (2, 1, 0)
    assert row["delay_ticks"] == 2
    assert row["weight_age"] == 3


def test_every_row_begins_anew_but_gaps_reach_back():
    meter = Meter(1.0)
    for tick in (0, 1):
        meter.add(step(tick, reward=1.0), newest=0)
    meter.row()
    for tick in (4, 5):  # gaps of 3 and 1
        meter.add(step(tick), newest=0)
    row = meter.row()
    assert row["return"] == 0
    assert row["gap_cv"] == pytest.approx(0.5)


def test_no_gap_reaches_across_an_episodes_end():
    meter = Meter(1.0)
    for tick, terminated in ((0, False), (1, True), (7, False), (8, False)):
        meter.add(step(tick, terminated=terminated), newest=0)
    row = meter.row()
    assert row["gap_cv"] == 0
    assert row["episodes"] == 1


def test_what_was_not_measured_is_none():
    meter = Meter(1.0)
    meter.add(step(0, Source.BETA_RESET), newest=0)
    row = meter.row()
    for name in ("coverage", "delay_ticks", "weight_age", "gap_cv"):
        assert row[name] is None
