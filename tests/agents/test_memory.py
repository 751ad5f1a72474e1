"""Memory: shared, without a name, and with a lock that nobody can keep."""

import importlib
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fox.agents.memory import Memory

sys.path.append(str(Path(__file__).parent))  # child processes import it from there, too
hammers = importlib.import_module("hammers")


def test_a_process_that_dies_with_the_lock_does_not_keep_it():
    memory = Memory(8, shared=True)
    process, pipe = hammers.in_child(hammers.die_with_lock, memory)
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
        hammers.in_child(hammers.die_with_lock, Memory(8, shared=False))
