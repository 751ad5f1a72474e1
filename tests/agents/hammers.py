"""Child processes that try to tear shared memory, in a module that they can import."""

import multiprocessing
import os
import signal
import time

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["fox.agents.weights"])


def in_child(function, *arguments):
    """Starts function(*arguments, pipe) in a process; the process and our end of the pipe."""
    ours, theirs = multiprocessing.Pipe()
    process = FORKSERVER.Process(target=function, args=(*arguments, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def hammer_weights(weights, worker, seconds, results):
    """Pins the newest weights again and again; (versions seen, torn)."""
    until, seen, torn = time.monotonic() + seconds, set(), 0
    while time.monotonic() < until:
        with weights.pinned(worker) as (flat, version):
            torn += not (flat == version).all()
            torn += not (flat[::-1] == version).all()
            seen.add(version)
    results.send((len(seen), torn))


def die_with_lock(memory, pipe):
    with memory.locked():
        pipe.send(None)
        os.kill(os.getpid(), signal.SIGKILL)
