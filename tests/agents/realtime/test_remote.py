"""Workers on other hosts, here two actors on this one: what they need travels to them."""

import os
import sys
import time

import numpy as np
import pytest

from fox.agents.realtime.clock import WallClock
from fox.agents.realtime.remote import RayTransport
from fox.agents.realtime.rings import ObservationRing
from fox.agents.realtime.ticks import Job, token_dtype
from fox.agents.realtime.transport import WorkerError
from fox.agents.weights import WeightBuffers

RAISES, DIES, SLOW = 50, 60, 70  # observation ticks
HISTORY = 3


class Summing:
    """Features (worker, sum of the last ticks, a weight), and the weights' version."""

    def __init__(self, weights, worker):
        self.weights, self.worker = weights, worker

    def infer(self, job, rows):
        if job.obs_tick == RAISES:
            raise ZeroDivisionError("of this policy")
        if job.obs_tick == DIES:
            os._exit(1)
        if job.obs_tick == SLOW:
            time.sleep(1.0)
        ticks = rows.read(job.obs_tick - HISTORY, job.obs_tick)["tick"]
        with self.weights.pinned(self.worker) as (flat, version):
            return np.array([self.worker, ticks.sum(), flat[0]], np.float32), version


class Factory:
    def __init__(self, weights):
        self.weights = weights

    def __call__(self, worker):
        return Summing(self.weights, worker)


class Stage:
    def __init__(self):
        dtype = token_dtype(np.zeros((), np.float32))
        self.ring = ObservationRing(dtype, d=64, history=HISTORY, shared=False)
        row = np.zeros((), dtype)
        for k in range(100):
            row["tick"] = k
            self.ring.publish(row)
        self.weights = WeightBuffers(2, 2, shared=False)
        self.weights.publish(np.full(2, 0.5, np.float32), 0)
        self.clock = WallClock(0.01)
        factory = Factory(self.weights)
        self.transport = RayTransport(factory, self.ring, HISTORY, self.weights)
        self.jobs = 0

    def send(self, worker, obs_tick):
        self.jobs += 1
        job = Job(self.jobs, worker, obs_tick, obs_tick + 1, 0)
        self.transport.send(job, self.clock.now())
        return job

    def events(self, number):
        told, until = [], self.clock.now() + 30
        while len(told) < number:
            assert self.clock.now() < until, told
            told += self.transport.poll(self.clock.now())
            time.sleep(0.002)
        return told


@pytest.fixture(scope="module")
def stage():
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import tests
    opened = Stage()
    opened.transport.start([0, 1])
    yield opened
    opened.transport.close()
    opened.transport.close()
    assert not ray.is_initialized()


def test_tokens_and_weights_travel_to_the_actors(stage):
    assert stage.transport.poll(stage.clock.now()) == []  # starting announces nobody
    job = stage.send(worker=1, obs_tick=10)
    (done,) = stage.events(1)
    assert (done.worker, done.job_id, done.version) == (1, job.id, 0)
    assert done.features.tolist() == [1, 7 + 8 + 9 + 10, 0.5]
    assert done.at - done.seconds == done.start
    stage.weights.publish(np.full(2, 0.25, np.float32), 1)
    stage.send(worker=1, obs_tick=11)
    (done,) = stage.events(1)
    assert done.version == 1
    assert done.features.tolist() == [1, 8 + 9 + 10 + 11, 0.25]


def test_a_killed_actor_is_lost_and_joins_again_with_all_that_it_needs(stage):
    stage.transport.kill(1)
    stage.transport.kill(1)
    lost, joined = stage.events(2)
    assert (type(lost).__name__, lost.worker) == ("Lost", 1)
    assert (type(joined).__name__, joined.worker) == ("Joined", 1)
    assert joined.at - lost.at > 0.099
    stage.send(worker=1, obs_tick=20)
    (done,) = stage.events(1)
    assert done.features.tolist() == [1, 17 + 18 + 19 + 20, 0.25]


def test_an_actor_that_dies_in_an_inference_is_lost_and_joins_again(stage):
    stage.send(worker=0, obs_tick=DIES)
    lost, joined = stage.events(2)
    assert (type(lost).__name__, lost.worker) == ("Lost", 0)
    assert "died" in lost.reason
    assert (type(joined).__name__, joined.worker) == ("Joined", 0)


def test_an_exception_in_an_actor_reaches_the_caller_with_its_traceback(stage):
    stage.send(worker=0, obs_tick=RAISES)
    with pytest.raises(WorkerError) as caught:
        stage.events(1)
    for words in ("worker 0 raised", "in infer", "ZeroDivisionError", "of this policy"):
        assert words in str(caught.value)


def test_sending_and_polling_wait_for_no_actor(stage):
    started = stage.clock.now()
    stage.send(worker=0, obs_tick=SLOW)
    assert stage.transport.poll(stage.clock.now()) == []
    assert stage.clock.now() - started < 0.5  # the inference lasts a second
    assert len(stage.events(1)) == 1


def test_without_ray_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"fox-transformer\[ray\]"):
        RayTransport(Factory(None), None, HISTORY)
