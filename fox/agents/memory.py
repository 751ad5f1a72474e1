"""Memory without a name, shared with child processes: whatever ends a process, nothing is left.

A named block of shared memory stays in /dev/shm when its owner is killed. This one is a file
descriptor that travels to the children; the memory goes with the last process that holds it.
"""

import mmap
import os
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import assert_spawning
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import numpy.typing as npt


class Memory:
    """Zeroed bytes, and a lock that no killed process can keep.

    Args:
        size: in bytes.
        shared: whether child processes may have it: a pickle that goes to a child as the
            argument of a multiprocessing.Process (spawn or forkserver) is the same memory there.

    Attributes:
        shared: as above.
    """

    def __init__(self, size: int, shared: bool) -> None:
        self._map(_nameless_file(size) if shared else -1, size)

    def _map(self, file: int, size: int) -> None:
        self.size, self.shared = size, file >= 0
        self._file = file
        self._bytes = mmap.mmap(file, size)
        self._threads = threading.Lock()
        if self.shared:
            weakref.finalize(self, os.close, file)

    def array(self, shape: tuple[int, ...], dtype: npt.DTypeLike, offset: int = 0) -> np.ndarray:
        """A view of the bytes from `offset` on."""
        return np.ndarray(shape, dtype, self._bytes, offset)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Waits for the lock, which orders memory between processes; hold it for microseconds.

        It is a record lock: the system takes it from a process that dies.
        """
        with self._threads:
            if not self.shared:
                yield
                return
            import fcntl  # POSIX only, as are processes that share this memory

            fcntl.lockf(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)

    def __reduce__(self) -> tuple[Callable[..., "Memory"], tuple[Any, ...]]:
        assert_spawning(self)
        if not self.shared:
            raise ValueError(
                "a child process would get a copy of unshared memory, and see none of its changes: "
                "make what is sent to a process with shared=True"
            )
        return _attached, (DupFd(self._file), self.size)


def _nameless_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("fox")
    else:
        with tempfile.TemporaryFile() as named_for_a_moment:
            file = os.dup(named_for_a_moment.fileno())
    os.ftruncate(file, size)
    return file


def _attached(sent: Any, size: int) -> Memory:
    memory = Memory.__new__(Memory)
    memory._map(sent.detach(), size)
    return memory
