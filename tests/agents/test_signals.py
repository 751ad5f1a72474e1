"""Ctrl-C asks once and then insists; processes that are spared never get it."""

import os
import signal
import subprocess
import sys

import pytest

from fox.agents.signals import asked_to_stop, spared_ctrl_c


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_and_its_handler_is_given_back(number):
    before = signal.getsignal(number)
    with asked_to_stop() as asked:
        assert not asked.is_set()
        os.kill(os.getpid(), number)
        assert asked.is_set()
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_stops_at_once():
    with asked_to_stop():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_second_sigterm_only_asks():
    with asked_to_stop() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.is_set()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_what_is_started_while_spared_does_not_get_ctrl_c():
    code = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    with spared_ctrl_c():
        spared = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (spared.stdout, other.stdout) == ("True\n", "False\n")
