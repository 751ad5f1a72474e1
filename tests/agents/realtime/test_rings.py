"""Rings and mailboxes: nothing is torn, and nobody waits."""

import importlib
import sys
from copy import copy
from pathlib import Path

import numpy as np
import pytest

from fox.agents.realtime.processes import PRELOAD
from fox.agents.realtime.rings import Mailboxes, ObservationRing, Overwritten
from fox.agents.realtime.ticks import token_dtype

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent)]  # child processes import from there, too
echo = importlib.import_module("echo_workers")
hammers = importlib.import_module("hammers")
hammers.FORKSERVER.set_forkserver_preload(PRELOAD)


def ring_of(d=2, history=1, shared=False):
    return ObservationRing(echo.TOKEN, d, history, shared)


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
    readers = [hammers.in_child(echo.hammer_ring, ring, 1.0) for _ in range(2)]
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


def test_an_unshared_ring_does_not_go_to_a_child_where_it_would_be_a_copy():
    with pytest.raises(ValueError, match="shared=True"):
        hammers.in_child(echo.hammer_ring, ring_of(shared=False), 0.0)
