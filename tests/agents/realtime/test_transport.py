"""Every transport keeps the same promises: virtual, inline, threads, processes."""

import importlib
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fox.agents.realtime.clock import VirtualClock, WallClock
from fox.agents.realtime.processes import ProcessTransport
from fox.agents.realtime.rings import ObservationRing
from fox.agents.realtime.ticks import Done, Job, Joined, Lost
from fox.agents.realtime.transport import (
    InlineTransport,
    Padded,
    ThreadTransport,
    VirtualTransport,
    WorkerError,
)

sys.path.append(str(Path(__file__).parent))  # workers in processes import it from there, too
echo = importlib.import_module("echo_workers")
KINDS = ("virtual", "inline", "thread", "process")
TOKENS = 6


@dataclass
class Stage:
    """A started transport, its clock, and what has been told so far."""

    transport: Any
    clock: Any
    ring: ObservationRing
    jobs: int = 0

    def send(self, worker, obs_tick=TOKENS - 1):
        job = Job(self.jobs, worker, obs_tick, obs_tick + 2, 0)
        self.jobs += 1
        self.transport.send(job, self.clock.now())
        return job

    def events(self, number, seconds=10.0):
        """The next `number` events; fails if they do not come in time."""
        told, until = [], self.clock.now() + seconds
        while len(told) < number:
            assert self.clock.now() < until, told
            now = self.clock.now()
            new = self.transport.poll(now)
            assert all(event.at <= now for event in new)
            told += new
            self.clock.sleep_until(now + 0.002)
        assert len(told) == number, told
        return told


def transport_of(kind, factory, ring, clock):
    if kind == "virtual":
        return VirtualTransport(
            factory, ring, lambda job: 0.3 if job.obs_tick == echo.SLOW else 0.01
        )
    if kind == "process":
        return ProcessTransport(factory, ring, features=4)
    return {"inline": InlineTransport, "thread": ThreadTransport}[kind](factory, ring, clock)


@pytest.fixture
def stage():
    """Starts a transport of a kind; closes it in the end."""
    stages = []

    def start(kind, factory=echo.Echo, workers=(0, 1)):
        ring = ObservationRing(echo.TOKEN, d=1, history=1, shared=kind == "process")
        for k in range(TOKENS):
            ring.publish(echo.token(k))
        clock = VirtualClock(0.01) if kind == "virtual" else WallClock(0.01)
        stages.append(Stage(transport_of(kind, factory, ring, clock), clock, ring))
        stages[-1].transport.start(workers)
        return stages[-1]

    yield start
    for opened in stages:
        opened.transport.close()
        opened.transport.close()


def names(events):
    return [type(event).__name__ for event in events]


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_has_its_workers_features_the_version_and_when_it_was_computed(kind, stage):
    opened = stage(kind)
    before = opened.clock.now()
    job = opened.send(worker=1, obs_tick=4)
    (done,) = opened.events(1)
    assert isinstance(done, Done)
    assert (done.worker, done.job_id, done.version) == (1, job.id, 7)
    assert done.features.dtype == np.float32
    assert done.features[:2].tolist() == [1, 4]
    assert before <= done.start <= done.at <= opened.clock.now()
    assert done.at == pytest.approx(done.start + done.seconds)


@pytest.mark.parametrize("kind", KINDS)
def test_workers_infer_with_one_thread_and_without_gradients(kind, stage):
    opened = stage(kind)
    opened.send(worker=0)
    (done,) = opened.events(1)
    assert done.features[2:].tolist() == [1, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_starting_announces_nobody(kind, stage):
    opened = stage(kind)
    assert opened.transport.poll(opened.clock.now() + 1) == []
    assert not opened.transport.counters


@pytest.mark.parametrize("kind", KINDS)
def test_what_happens_later_than_now_is_told_later(kind, stage):
    opened = stage(kind)
    now = opened.clock.now()
    opened.send(worker=0)
    if kind != "virtual":
        time.sleep(0.1)  # it is done by then
    assert opened.transport.poll(now) == []
    assert names(opened.events(1)) == ["Done"]


@pytest.mark.parametrize("kind", ["virtual", "thread", "process"])
def test_results_come_in_the_order_of_time_not_of_jobs(kind, stage):
    opened = stage(kind)
    for k in (echo.SLOW, echo.SLOW + 1):
        opened.ring.publish(echo.token(k))
    opened.send(worker=0, obs_tick=echo.SLOW)
    opened.send(worker=1, obs_tick=echo.SLOW + 1)
    assert [event.worker for event in opened.events(2)] == [1, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_worker_is_lost_and_joins_again_and_works(kind, stage):
    opened = stage(kind)
    opened.transport.kill(1)
    lost, joined = opened.events(2)
    assert isinstance(lost, Lost)
    assert isinstance(joined, Joined)
    assert lost.worker == joined.worker == 1
    job = opened.send(worker=1)
    (done,) = opened.events(1)
    assert done.job_id == job.id
    assert opened.transport.counters == {"Lost": 1, "Joined": 1, "Done": 1}


@pytest.mark.parametrize("kind", ["virtual", "thread", "process"])
def test_the_job_of_a_killed_worker_is_never_done(kind, stage):
    opened = stage(kind)
    opened.ring.publish(echo.token(echo.SLOW))
    opened.send(worker=0, obs_tick=echo.SLOW)
    opened.events(0)
    opened.transport.kill(0)
    assert names(opened.events(2)) == ["Lost", "Joined"]
    opened.clock.sleep_until(opened.clock.now() + 0.4)
    assert opened.transport.poll(opened.clock.now()) == []


@pytest.mark.parametrize("kind", ["virtual", "process"])
def test_killing_a_worker_that_is_gone_changes_nothing(kind, stage):
    opened = stage(kind)
    opened.transport.kill(0)
    (lost,) = opened.events(1)
    opened.transport.kill(0)
    (joined,) = opened.events(1)
    assert joined.at - lost.at > 0.099
    assert names((lost, joined)) == ["Lost", "Joined"]


@pytest.mark.parametrize("kind", ["virtual", "process"])
def test_the_pause_before_a_worker_returns_doubles_until_it_has_done_a_job(kind, stage):
    opened = stage(kind)

    def pause():
        opened.transport.kill(0)
        lost, joined = opened.events(2)
        return joined.at - lost.at

    for seconds in (0.1, 0.2, 0.4):
        assert pause() > 0.99 * seconds
    opened.send(worker=0)
    opened.events(1)
    assert 0.099 < pause() < 0.8


def test_the_pause_is_five_seconds_at_most(stage):
    opened = stage("virtual")
    for _ in range(8):
        opened.transport.kill(0)
        lost, joined = opened.events(2)
    assert joined.at - lost.at == pytest.approx(5)


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_an_exception_in_a_worker_reaches_the_caller_at_once_with_its_traceback(kind, stage):
    opened = stage(kind)
    opened.send(worker=1, obs_tick=echo.RAISES)
    with pytest.raises(WorkerError) as caught:
        opened.events(1)
    for words in ("worker 1 raised", "in infer", "ZeroDivisionError: of this policy"):
        assert words in str(caught.value)


@pytest.mark.parametrize("kind", ["virtual", "inline"])
def test_an_exception_in_an_inference_that_send_waits_for_is_sends_own(kind, stage):
    with pytest.raises(ZeroDivisionError, match="of this policy"):
        stage(kind).send(worker=1, obs_tick=echo.RAISES)


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_worker_that_cannot_be_made_fails_the_start_with_its_traceback(kind, stage):
    before = set(threading.enumerate())
    with pytest.raises(WorkerError, match="FileNotFoundError: no such checkpoint"):
        stage(kind, workers=(0, echo.UNREADY))
    assert set(threading.enumerate()) <= before


def test_a_process_that_ends_before_it_is_ready_fails_the_start(stage):
    with pytest.raises(WorkerError, match=r"worker [01] was not ready: .* exit code 3"):
        stage("process", factory=echo.die_before_ready)


@pytest.mark.parametrize("kind", ["inline", "thread", "process"])
def test_a_job_whose_token_is_gone_is_lost_and_counted_and_its_worker_goes_on(kind, stage):
    opened = stage(kind)
    for k in range(TOKENS, TOKENS + opened.ring.slots):
        opened.ring.publish(echo.token(k))
    opened.send(worker=0, obs_tick=0)
    lost, joined = opened.events(2)
    assert names((lost, joined)) == ["Lost", "Joined"]
    assert "not all in the ring" in lost.reason
    assert opened.transport.counters["Overwritten"] == 1
    opened.send(worker=0, obs_tick=TOKENS)
    assert names(opened.events(1)) == ["Done"]


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_sending_polling_and_killing_wait_for_no_worker(kind, stage):
    opened = stage(kind)
    opened.ring.publish(echo.token(echo.SLOW))
    started = time.perf_counter()
    opened.send(worker=0, obs_tick=echo.SLOW)
    opened.transport.poll(opened.clock.now())
    opened.transport.kill(0)
    opened.transport.poll(opened.clock.now())
    assert time.perf_counter() - started < 0.25  # the inference lasts 0.3


def test_a_process_that_crashes_is_lost_with_its_exit_code_and_respawned(stage):
    opened = stage("process")
    opened.send(worker=1, obs_tick=echo.DIES)
    lost, joined = opened.events(2)
    assert lost.reason.endswith("exit code -9")
    assert joined.worker == 1
    opened.send(worker=1)
    assert names(opened.events(1)) == ["Done"]


def test_a_job_for_a_process_that_has_just_died_is_lost_with_it(stage):
    opened = stage("process")
    os.kill(opened.transport.pids[0], signal.SIGKILL)
    time.sleep(0.05)
    opened.send(worker=0)
    assert names(opened.events(2)) == ["Lost", "Joined"]


def test_a_process_that_cannot_be_started_again_is_an_error(stage, monkeypatch):
    opened = stage("process")

    def spawn(worker):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(opened.transport, "_spawn", spawn)
    opened.transport.kill(1)
    with pytest.raises(WorkerError, match=r"worker 1 could not be started: .*Too many open files"):
        opened.events(2)


def test_the_processes_of_workers_are_known(stage):
    opened = stage("process")
    pids = opened.transport.pids
    assert sorted(pids) == [0, 1]
    opened.transport.kill(1)
    opened.events(1)
    assert opened.transport.pids == {0: pids[0]}


def test_processes_take_no_ring_that_they_would_only_have_a_copy_of():
    ring = ObservationRing(echo.TOKEN, d=1, history=1, shared=False)
    transport = ProcessTransport(echo.Echo, ring, features=4)
    with pytest.raises(ValueError, match="shared=True"):
        transport.start([0])


@pytest.mark.parametrize("seconds", [0.05, lambda job: 0.01 * job.due])
def test_a_padded_inference_lasts_as_long_as_it_is_told_to(seconds, stage):
    opened = stage("thread", factory=Padded(echo.Echo, seconds))
    opened.send(worker=0, obs_tick=3)
    (done,) = opened.events(1)
    assert done.seconds >= 0.0499
    assert done.features[1] == 3
