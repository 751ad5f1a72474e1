"""Workers for the tests of transports, in a module that their processes can import."""

import os
import signal
import time

import numpy as np
import torch

from fox.agents.realtime.ticks import token_dtype

OBSERVATION = np.zeros((3,), np.float32)
TOKEN = token_dtype(OBSERVATION)
RAISES, DIES, SLOW, UNREADY = 666, 667, 668, 669  # observation ticks, and a worker's number


def token(k):
    row = np.zeros((), TOKEN)
    row["tick"], row["obs"], row["reward"] = k, k, k
    return row


class Echo:
    """Features (worker, the observation at the job's tick, threads, gradients); version 7."""

    def __init__(self, worker):
        if worker == UNREADY:
            raise FileNotFoundError("no such checkpoint")
        self.worker = worker

    def infer(self, job, rows):
        k = job.obs_tick
        if k == RAISES:
            raise ZeroDivisionError("of this policy")
        if k == DIES:
            os.kill(os.getpid(), signal.SIGKILL)
        if k == SLOW:
            time.sleep(0.3)
        obs = rows.read(k, k)[0]["obs"]
        features = [self.worker, obs[0], torch.get_num_threads(), torch.is_grad_enabled()]
        return np.array(features, np.float32), 7


def die_before_ready(worker):
    os._exit(3)


def hammer_ring(ring, seconds, results):
    """Reads the tokens that are overwritten next, again and again; (reads, late, torn)."""
    until, reads, late, torn = time.monotonic() + seconds, 0, 0, 0
    while time.monotonic() < until:
        first = int(ring._tags.max()) - ring.slots + 2
        try:
            rows = ring.read(first, first + 3)
        except LookupError:
            late += 1
            continue
        reads += 1
        torn += not (rows["obs"] == rows["tick"][:, None]).all()
    results.send((reads, late, torn))
