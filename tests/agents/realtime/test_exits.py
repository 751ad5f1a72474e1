"""However a dispatcher ends, its workers end with it, and no shared memory stays."""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))
sessions = importlib.import_module("sessions")
DISPATCHER = """
import signal, sys, time
import numpy as np
sys.path.append(sys.argv[1])
from echo_workers import TOKEN, Echo, token
from fox.agents.realtime.clock import WallClock
from fox.agents.realtime.processes import ProcessTransport
from fox.agents.realtime.rings import ObservationRing
from fox.agents.realtime.ticks import Job
from fox.agents.realtime.transport import Padded

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    clock = WallClock(0.01)
    ring = ObservationRing(TOKEN, d=1, history=1, shared=True)
    ring.publish(token(0))
    transport = ProcessTransport(Padded(Echo, 60.0), ring, features=4)
    try:
        transport.start([0, 1, 2])
        transport.send(Job(0, 0, 0, 1, 0), clock.now())  # busy for a minute
        transport.kill(2)  # to be respawned, or not any more
        print("ready", flush=True)
        while True:
            transport.poll(clock.now())
            time.sleep(0.01)
    finally:
        transport.close()
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc, on Linux")
@pytest.mark.parametrize("way", ["SIGKILL", "SIGTERM", "Ctrl-C"])
def test_no_process_and_no_memory_outlives_the_dispatcher(way, tmp_path):
    script = tmp_path / "dispatcher.py"
    script.write_text(DISPATCHER)
    command = [sys.executable, str(script), str(HERE)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as dispatcher:
        try:
            assert dispatcher.stdout.readline() == "ready\n"
            family = sessions.session(dispatcher.pid)
            assert len(family) >= 4  # with the two workers that live, and the server they come from
            assert "/memfd:fox" in sessions.mappings(dispatcher.pid)
            # Memory with a name would be a file in this folder.
            assert not any("/dev/shm/" in sessions.mappings(member) for member in family)
            if way == "Ctrl-C":
                os.killpg(dispatcher.pid, signal.SIGINT)  # as a terminal does: to all of them
            else:
                dispatcher.send_signal(getattr(signal, way))
            _, errors = dispatcher.communicate(timeout=20)
            until = time.monotonic() + 10
            while sessions.session(dispatcher.pid) and time.monotonic() < until:
                time.sleep(0.02)
            assert sessions.session(dispatcher.pid) == []
        finally:
            for left in sessions.session(dispatcher.pid):
                os.kill(left, signal.SIGKILL)
    assert "leaked" not in errors
    assert errors.count("Traceback") == (way == "Ctrl-C")  # the dispatcher's own
