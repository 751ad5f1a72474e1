"""The sweep over inference times stands on the tick dispatcher itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fox.agents.realtime.scheduler import TickDispatcher
from fox.agents.realtime.sweep import (
    GAME_BOY,
    LAWS,
    Law,
    draw_sweep,
    fit,
    least_workers,
    play,
    sources_of,
    sweep,
)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 12),
    st.integers(1, 12),
    st.sampled_from(LAWS),
    st.floats(0.05, 1.0),
    st.integers(0, 999),
)
def test_the_fast_path_plays_every_tick_as_the_dispatcher_does(workers, d, law, share, seed):
    longest = 3 * d * GAME_BOY / law.cap  # what the watchdog allows
    durations = law.durations(share * longest, 120, seed)
    dispatcher = TickDispatcher(range(workers), d)
    play(dispatcher, durations, GAME_BOY)
    fast = sources_of(durations, workers, d, GAME_BOY)
    assert [row.source for row in dispatcher.trace] == fast.tolist()


@pytest.mark.parametrize("law", LAWS)
def test_workers_grow_with_inference_time_at_one_per_step(law):
    points = list(sweep((0.05, 0.2, 1.0, 2.0, 5.0), [law]))
    line = fit(points)
    assert line.slope * GAME_BOY == pytest.approx(1, abs=0.03)
    assert line.r2 >= 0.999
    for point in points:
        assert point.coverage >= 0.99
        assert point.workers <= point.default_rule <= point.maximum_rule + 1
        if law.cv <= 0.2:
            assert point.workers <= 1.15 * point.seconds / GAME_BOY + 6


@pytest.mark.parametrize(("seconds", "workers"), [(0.005, 1), (0.1, 8), (1.0, 64), (5.0, 306)])
def test_the_least_number_of_workers_is_the_pinned_one(seconds, workers):
    law = Law(0.2, 2.0)
    point = least_workers(law, seconds, GAME_BOY)
    assert point.workers == pytest.approx(workers, rel=0.02)
    if point.workers > 1:
        durations = law.durations(seconds, point.ticks, 0)
        fewer = sources_of(durations, point.workers - 1, point.d, GAME_BOY)
        assert np.mean(fewer[2 * point.d :] == 0) < 0.99, "one worker less would do"


def test_the_figure_of_a_sweep_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    points = list(sweep((0.05, 0.2), LAWS[:2]))
    draw_sweep(tmp_path / "workers.png", points, GAME_BOY)
    assert (tmp_path / "workers.png").stat().st_size > 10_000
