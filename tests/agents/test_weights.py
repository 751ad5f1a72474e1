"""Weights by version: nothing is torn, and nobody waits."""

import importlib
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from fox.agents.weights import WeightBuffers

sys.path.append(str(Path(__file__).parent))  # child processes import it from there, too
hammers = importlib.import_module("hammers")


def published(numel=4, workers=2, shared=False):
    weights = WeightBuffers(numel, workers, shared)
    assert weights.publish(np.zeros(numel, np.float32), 0)
    return weights


def test_pinned_weights_hold_still_while_newer_ones_appear():
    weights = published()
    with weights.pinned(0) as (flat, version):
        for newer in (1, 2, 3):
            assert weights.publish(np.full(4, newer, np.float32), newer)
        assert version == 0
        np.testing.assert_array_equal(flat, 0)
    with weights.pinned(0) as (flat, version):
        assert version == 3
        np.testing.assert_array_equal(flat, 3)


def test_without_a_free_buffer_publishing_skips_and_counts():
    weights = published()
    with weights.pinned(0):
        weights.publish(np.ones(4, np.float32), 1)
        with weights.pinned(1):
            assert weights.publish(np.full(4, 2, np.float32), 2)
            assert not weights.publish(np.full(4, 3, np.float32), 3)
    assert (weights.skipped, weights.version) == (1, 2)
    assert weights.publish(np.full(4, 4, np.float32), 4)


def test_the_head_keeps_its_weights_until_it_asks_for_newer_ones():
    weights = published()
    flat, version = weights.newest(2)
    weights.publish(np.ones(4, np.float32), 1)
    weights.publish(np.full(4, 2, np.float32), 2)
    assert version == 0
    np.testing.assert_array_equal(flat, 0)
    flat, version = weights.newest(2)
    assert (version, flat[0]) == (2, 2.0)
    assert np.shares_memory(weights.newest(2)[0], flat)


def test_the_pin_of_a_dead_worker_can_be_released():
    weights = published()
    weights.newest(0)  # as a worker that died while it inferred
    weights.publish(np.ones(4, np.float32), 1)
    weights.newest(1)
    weights.publish(np.full(4, 2, np.float32), 2)
    assert not weights.publish(np.full(4, 3, np.float32), 3)
    weights.release(0)
    assert weights.publish(np.full(4, 3, np.float32), 3)


def test_a_thread_that_was_given_up_does_not_free_its_successors_pin():
    weights = published()
    given_up = weights.pinned(0)
    given_up.__enter__()
    weights.release(0)
    weights.publish(np.ones(4, np.float32), 1)
    with weights.pinned(0) as (flat, _):
        given_up.__exit__(None, None, None)
        weights.publish(np.full(4, 2, np.float32), 2)
        weights.publish(np.full(4, 3, np.float32), 3)
        np.testing.assert_array_equal(flat, 1)


def test_weights_must_be_published_before_they_are_read_and_have_their_shape():
    weights = WeightBuffers(4, 1, shared=False)
    with pytest.raises(LookupError, match="publish"):
        weights.newest(0)
    with pytest.raises(ValueError, match=r"shape \(4,\), but got \(5,\)"):
        weights.publish(np.zeros(5, np.float32), 0)


def test_no_reader_sees_torn_weights_while_a_learner_hammers():
    numel = 50_000
    weights = published(numel, shared=True)
    readers = [
        hammers.in_child(hammers.hammer_weights, weights, worker, 1.0) for worker in range(2)
    ]
    version = 1
    while not all(pipe.poll() for _, pipe in readers):
        version += weights.publish(np.full(numel, version, np.float32), version)
    for process, pipe in readers:
        versions, torn = pipe.recv()
        assert torn == 0
        assert versions > 1  # the learner was fast enough to be a danger
        process.join()


def test_the_pickle_of_unshared_weights_is_a_copy():
    weights = published()
    other = pickle.loads(pickle.dumps(weights))
    weights.publish(np.ones(4, np.float32), 1)
    assert other.version == 0
    np.testing.assert_array_equal(other.newest(0)[0], 0)
