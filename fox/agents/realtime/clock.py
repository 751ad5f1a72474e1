"""The tick's clock: absolute deadlines in virtual time or on the wall, and what a late tick means.

Legend: tick k is at t_k = t0 + k * M seconds, M the environment's step.
"""

import time
from typing import Literal, Protocol

EARLY = 0.0003  # seconds before a deadline at which the long sleep ends: sleeps last a bit longer
TOLERATED = 2  # periods by which a tick may be late before it counts as an overrun


class Clock(Protocol):
    """Tells time, and waits for ticks.

    Attributes:
        step_seconds: M.
        overruns: how often a tick came more than two periods late.
    """

    step_seconds: float
    overruns: int

    def now(self) -> float:
        """Seconds."""

    def sleep_until(self, t: float) -> None:
        """Returns when now() >= t."""

    def time_of(self, k: int) -> float:
        """t_k; known from the first tick on.

        Raises:
            RuntimeError: no tick has been waited for.
        """

    def wait(self, k: int) -> bool:
        """Waits for tick k; the first tick that is waited for is now.

        Returns:
            Whether the tick is missed: its time, and the time of the next one, have passed, and
            the world does not wait. Only after an overrun, with overrun="skip".
        """


class VirtualClock:
    """Time that passes only while somebody sleeps: proofs and simulations.

    Args:
        step_seconds: M, above 0.

    Raises:
        ValueError: step_seconds is not above 0.
    """

    def __init__(self, step_seconds: float) -> None:
        self.step_seconds = _checked(step_seconds)
        self.overruns = 0
        self._now = 0.0
        self._t0: float | None = None

    def now(self) -> float:
        """Seconds since the clock was made."""
        return self._now

    def sleep_until(self, t: float) -> None:
        """Sets the time to t, unless it has passed."""
        self._now = max(self._now, t)

    def time_of(self, k: int) -> float:
        """t_k."""
        return _time_of(self._t0, k, self.step_seconds)

    def wait(self, k: int) -> bool:
        """Goes to t_k; never misses it."""
        if self._t0 is None:
            self._t0 = self._now - k * self.step_seconds
        self.sleep_until(self.time_of(k))
        return False


class WallClock:
    """time.perf_counter with absolute deadlines, so that no lateness adds up.

    Args:
        step_seconds: M, above 0.
        overrun: what follows when a tick comes more than two periods late: "slip" moves t0, so
            that the tick is now (for worlds that wait for us, emulators); "skip" keeps t0 and
            says of every tick that has passed that it is missed (for worlds that go on alone).
        spin: whether to burn the last 0.3 ms before a deadline, for less jitter.

    Raises:
        ValueError: step_seconds is not above 0, or overrun is another word.
    """

    def __init__(
        self,
        step_seconds: float,
        *,
        overrun: Literal["slip", "skip"] = "slip",
        spin: bool = False,
    ) -> None:
        if overrun not in ("slip", "skip"):
            raise ValueError(f"overrun must be 'slip' or 'skip', but got {overrun!r}")
        self.step_seconds = _checked(step_seconds)
        self.overruns = 0
        self._overrun, self._spin = overrun, spin
        self._t0: float | None = None
        self._catching_up = False

    def now(self) -> float:
        """time.perf_counter(): one clock for all processes of this machine."""
        return time.perf_counter()

    def sleep_until(self, t: float) -> None:
        """Sleeps until t - 0.3 ms, then sleeps or burns the rest."""
        while (left := t - self.now()) > 0:
            if left > EARLY:
                time.sleep(left - EARLY)
            elif not self._spin:
                time.sleep(left)

    def time_of(self, k: int) -> float:
        """t_k, as it is now: a slip moves it."""
        return _time_of(self._t0, k, self.step_seconds)

    def wait(self, k: int) -> bool:
        """Sleeps until t_k, or says that it is missed; see Clock."""
        if self._t0 is None:
            self._t0 = self.now() - k * self.step_seconds
        late = self.now() - self.time_of(k)
        if late > TOLERATED * self.step_seconds and not self._catching_up:
            self.overruns += 1
            if self._overrun == "slip":
                self._t0 += late
            self._catching_up = self._overrun == "skip"
        self._catching_up = self._catching_up and late > self.step_seconds
        self.sleep_until(self.time_of(k))
        return self._catching_up


def _checked(step_seconds: float) -> float:
    if not step_seconds > 0:
        raise ValueError(f"step_seconds must be above 0, but got {step_seconds}")
    return step_seconds


def _time_of(t0: float | None, k: int, step_seconds: float) -> float:
    if t0 is None:
        raise RuntimeError("no tick has a time yet: the first wait(k) decides when tick k is")
    return t0 + k * step_seconds
