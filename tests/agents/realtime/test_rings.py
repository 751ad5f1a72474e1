"""Rings, mailboxes and weights: nothing is torn, nobody waits, and nothing has a name."""

import importlib
import multiprocessing
import os
import pickle
import sys
import time
from copy import copy
from pathlib import Path

import numpy as np
import pytest

from fox.agents.realtime.memory import Memory
from fox.agents.realtime.processes import PRELOAD
from fox.agents.realtime.rings import Mailboxes, ObservationRing, Overwritten
from fox.agents.realtime.ticks import token_dtype
from fox.agents.realtime.weights import WeightBuffers

sys.path.append(str(Path(__file__).parent))  # child processes import it from there, too
echo = importlib.import_module("echo_workers")
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(PRELOAD)


def ring_of(d=2, history=1, shared=False):
    return ObservationRing(echo.TOKEN, d, history, shared)


def in_child(function, *arguments):
    """Starts function(*arguments, pipe) in a process; the process and our end of the pipe."""
    ours, theirs = multiprocessing.Pipe()
    process = FORKSERVER.Process(target=function, args=(*arguments, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


@pytest.mark.parametrize(
    ("d", "history", "slots"), [(1, 0, 16), (2, 0, 16), (2, 1, 32), (64, 64, 512)]
)
def test_a_ring_has_a_power_of_two_of_slots_for_four_delays_and_the_window(d, history, slots):
    assert ring_of(d, history).slots == slots


@pytest.mark.parametrize("first", [0, 1000])  # a run that is resumed begins at a later tick
def test_a_ring_gives_the_tokens_that_were_published_and_leaves_out_those_before(first):
    ring = ring_of()
    ticks = list(range(first, first + 5))
    for k in ticks:
        ring.publish(echo.token(k))
    rows = ring.read(first - 3, first + 4)
    assert rows["tick"].tolist() == ticks
    np.testing.assert_array_equal(rows["obs"][:, 2], ticks)


def test_an_empty_ring_has_nothing_to_read():
    with pytest.raises(Overwritten):
        ring_of().read(0, 0)


def test_what_was_read_does_not_change_when_the_ring_does():
    ring = ring_of()
    ring.publish(echo.token(0))
    rows = ring.read(0, 0)
    for k in range(1, 1 + ring.slots):
        ring.publish(echo.token(k))
    assert rows["tick"] == [0]


def test_a_token_that_is_gone_or_not_there_yet_is_an_error_and_counted():
    ring = ring_of()
    for k in range(ring.slots + 1):
        ring.publish(echo.token(k))
    for first, last in ((0, 1), (ring.slots, ring.slots + 1)):
        with pytest.raises(Overwritten, match="not all in the ring of 32"):
            ring.read(first, last)
    assert ring.overwritten == 2
    assert len(ring.read(1, ring.slots)) == ring.slots


def test_more_tokens_than_slots_ask_for_a_longer_history():
    with pytest.raises(ValueError, match="make it with a longer history"):
        ring_of().read(100, 200)


class Interrupted:
    """The rows of a ring, with something that happens while one is copied."""

    def __init__(self, rows, meanwhile):
        self.rows, self.meanwhile = rows, meanwhile

    def __setitem__(self, slot, row):
        self.meanwhile()
        self.rows[slot] = row

    def __getitem__(self, slots):
        self.meanwhile()
        return self.rows[slots]


def test_a_slot_that_is_being_written_holds_neither_the_old_token_nor_the_new():
    ring = ring_of()
    for k in range(ring.slots):
        ring.publish(echo.token(k))
    refused = []

    def read():
        for k in (0, ring.slots):
            with pytest.raises(Overwritten):
                ring.read(k, k)
            refused.append(k)

    writer = copy(ring)
    writer._rows = Interrupted(writer._rows, read)
    writer.publish(echo.token(ring.slots))
    assert refused == [0, ring.slots]


def test_a_token_that_is_overwritten_while_it_is_read_is_refused():
    ring = ring_of()
    ring.publish(echo.token(0))
    reader = copy(ring)
    reader._rows = Interrupted(reader._rows, lambda: ring.publish(echo.token(ring.slots)))
    with pytest.raises(Overwritten):
        reader.read(0, 0)


def test_no_reader_sees_a_torn_token_while_a_writer_hammers():
    token = np.zeros((), token_dtype(np.zeros(100_000, np.float32)))
    ring = ObservationRing(token.dtype, d=1, history=0, shared=True)
    readers = [in_child(echo.hammer_ring, ring, 1.0) for _ in range(2)]
    k = 0
    while not all(pipe.poll() for _, pipe in readers):
        for _ in range(10):
            token["tick"], token["obs"] = k, k
            ring.publish(token)
            k += 1
    for process, pipe in readers:
        reads, late, torn = pipe.recv()
        assert torn == 0
        assert reads > 0
        assert late > 0  # the writer was fast enough to be a danger
        process.join()


def test_a_mailbox_keeps_a_workers_last_two_results():
    boxes = Mailboxes(workers=2, features=3, shared=False)
    for job in (0, 1, 5):
        boxes.write(1, job, np.full(3, job, np.float32), version=job + 10, start=0.5, seconds=0.25)
        boxes.write(0, job, np.zeros(3, np.float32), version=0, start=0.0, seconds=0.0)
        features, version, start, seconds = boxes.read(1, job)
        np.testing.assert_array_equal(features, np.full(3, job))
        assert (version, start, seconds) == (job + 10, 0.5, 0.25)
    assert boxes.read(1, 1)[1] == 11
    with pytest.raises(AssertionError):
        boxes.read(1, 0)


def test_a_result_of_another_shape_is_refused():
    boxes = Mailboxes(workers=1, features=3, shared=False)
    with pytest.raises(ValueError, match=r"shape \(3,\): \(4,\)"):
        boxes.write(0, 0, np.zeros(4, np.float32), 0, 0.0, 0.0)


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
    assert weights.newest(2)[0] is not None
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
    readers = [in_child(echo.hammer_weights, weights, worker, 1.0) for worker in range(2)]
    version = 1
    while not all(pipe.poll() for _, pipe in readers):
        version += weights.publish(np.full(numel, version, np.float32), version)
    for process, pipe in readers:
        versions, torn = pipe.recv()
        assert torn == 0
        assert versions > 1  # the learner was fast enough to be a danger
        process.join()


def test_a_process_that_dies_with_the_lock_does_not_keep_it():
    memory = Memory(8, shared=True)
    process, pipe = in_child(echo.die_with_lock, memory)
    pipe.recv()
    process.join()
    assert process.exitcode == -9
    started = time.monotonic()
    with memory.locked():
        assert time.monotonic() - started < 1


@pytest.mark.parametrize("nameless", ["memfd_create", "temporary file"])
def test_shared_memory_has_no_name_that_could_be_left_behind(nameless, monkeypatch):
    if nameless == "temporary file":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    memory = Memory(4096, shared=True)
    memory.array((2,), np.int64)[:] = 5
    assert memory.array((1,), np.int64, offset=8) == [5]
    assert os.fstat(memory._file).st_nlink == 0


def test_unshared_memory_does_not_go_to_a_child_where_it_would_be_a_copy():
    with pytest.raises(ValueError, match="shared=True"):
        in_child(echo.hammer_ring, ring_of(shared=False), 0.0)


def test_the_pickle_of_unshared_weights_is_a_copy():
    weights = published()
    other = pickle.loads(pickle.dumps(weights))
    weights.publish(np.ones(4, np.float32), 1)
    assert other.version == 0
    np.testing.assert_array_equal(other.newest(0)[0], 0)
