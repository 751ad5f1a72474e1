"""Catches of frozen oracles against action delay: sequential and staggered play of CatchRT.

Sequential play decides at tick k, lands at k + d and decides next at k + max(d, 1); in between it
does nothing, or repeats its last action. Staggered play decides at every tick, knowing the actions
on their way or not. The numbers to be met were counted once: exactly in NumPy, and within 0.05 on
our Game Boy ROM, where only 62 balls fall.
"""

import argparse
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from record import HERE, Line, record
from rich.progress import track

from fox.agents.realtime.envs.catch import NOOP, CatchRT
from fox.agents.realtime.envs.gameboy import GameBoyEnv
from fox.agents.realtime.envs.oracles import aware_oracle, plain_oracle
from fox.agents.realtime.plots import Curve, draw_curves

DELAYS = (0, 1, 5, 8, 16, 30, 60, 70, 100, 128, 200, 596)
CATCHES = {  # of 625 balls
    "sequential, noop": (625, 625, 505, 401, 282, 203, 160, 156, 153, 146, 144, 149),
    "sequential, repeat": (625, 625, 620, 400, 210, 172, 124, 96, 74, 99, 63, 50),
    "staggered, unaware": (625, 625, 625, 625, 348, 242, 141, 155, 73, 88, 81, 56),
    "staggered, aware": (625, 625, 625, 625, 625, 625, 624, 624, 506, 132, 132, 134),
}
ROM_RATES = {  # from delay 1 on
    "sequential, noop": (1, 0.77, 0.69, 0.44, 0.29, 0.23, 0.21, 0.18, 0.16, 0.21, 0.21),
    "sequential, repeat": (1, 1, 0.77, 0.40, 0.32, 0.27, 0.23, 0.11, 0.08, 0.05, 0.03),
    "staggered, unaware": (1, 1, 1, 0.55, 0.29, 0.23, 0.34, 0.13, 0.13, 0.08, 0.11),
    "staggered, aware": (1, 1, 1, 1, 1, 1, 1, 0.76, 0.23, 0.23, 0.21),
}
IDLE, TICKS, BALLS = 200, 80_000, 625
ROM_IDLE, ROM_TICKS, ROM_BALLS = 132, 8000, 62  # IDLE decides at which heights decisions fall


class World(Protocol):
    """CatchRT, wherever it runs."""

    def look(self) -> tuple[int, int]:
        """px, bx."""

    def act(self, action: int) -> bool:
        """One tick; whether it brought a catch."""


class Numbers:
    """CatchRT in NumPy, after its idle ticks."""

    def __init__(self, gusts: float = 0.0, wind_seed: int = 0) -> None:
        self.env = CatchRT(gusts=gusts)
        self.env.reset(wind_seed)
        self.env.seed = CatchRT().seed  # the balls of seed 0, whatever the wind's seed
        for _ in range(IDLE):
            self.env.step(NOOP)

    def look(self) -> tuple[int, int]:
        return self.env.px, self.env.bx

    def act(self, action: int) -> bool:
        return self.env.step(action)[1] > 0


class Rom:
    """CatchRT on the Game Boy, after its idle ticks; the console is switched on once."""

    def __init__(self, env: GameBoyEnv) -> None:
        self.env = env
        env.reset(0)
        for _ in range(ROM_IDLE):
            env.step(NOOP)

    def look(self) -> tuple[int, int]:
        return self.env.read(0xC0AA), self.env.read(0xC0A8)

    def act(self, action: int) -> bool:
        return self.env.step(action)[1] > 0  # the game goes on after its tenth miss


def sequential(world: World, d: int, ticks: int, *, repeat: bool) -> int:
    """Catches of one worker that begins anew when its action has landed."""
    catches, executed, due = 0, NOOP, dict[int, int]()
    for k in range(ticks):
        if k % max(d, 1) == 0:
            due[k + d] = plain_oracle(*world.look())
        executed = due.pop(k, executed if repeat else NOOP)
        catches += world.act(executed)
    return catches


def staggered(world: World, d: int, ticks: int, *, aware: bool) -> int:
    """Catches of as many workers as it takes to decide at every tick."""
    catches, committed = 0, deque(d * [NOOP])
    for _ in range(ticks):
        known = committed if aware else ()
        committed.append(aware_oracle(*world.look(), known))
        catches += world.act(committed.popleft())
    return catches


def play(kind: str, world: World, d: int, ticks: int) -> int:
    """Catches of one of the four ways to play, named as in the tables."""
    if kind.startswith("sequential"):
        return sequential(world, d, ticks, repeat=kind.endswith("repeat"))
    return staggered(world, d, ticks, aware=kind.endswith(", aware"))


def cells(
    world: Callable[[], World], delays: tuple[int, ...], ticks: int, name: str
) -> dict[str, list[int]]:
    """Catches of every way to play at every delay."""
    return {
        kind: [play(kind, world(), d, ticks) for d in track(delays, f"{name}, {kind}")]
        for kind in CATCHES
    }


def draw(path: Path, rates: dict[str, list[float]], where: str, balls: int) -> None:
    """Catch rate against delay, from delay 1 on."""
    draw_curves(
        path,
        [Curve(kind, DELAYS[1:], rates[kind][-len(DELAYS[1:]) :]) for kind in CATCHES],
        title=f"Catches against delay: CatchRT {where}",
        xlabel="action delay d, in ticks; a ball falls for 128",
        ylabel="share of balls caught",
        log_x=True,
        about=f"frozen oracles, {balls} balls per point",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    folder = parser.parse_args().results
    started = time.perf_counter()
    catches = cells(Numbers, DELAYS, TICKS, "NumPy")
    console = GameBoyEnv()
    on_rom = cells(lambda: Rom(console), DELAYS[1:], ROM_TICKS, "ROM")
    console.close()
    rates = {kind: [n / BALLS for n in row] for kind, row in catches.items()}
    rom_rates = {kind: [n / ROM_BALLS for n in row] for kind, row in on_rom.items()}
    counts = [
        (n, wanted)
        for kind, row in CATCHES.items()
        for n, wanted in zip(catches[kind], row, strict=True)
    ]
    right = sum(n == wanted for n, wanted in counts)
    apart = max(
        abs(rate - wanted)
        for kind, row in ROM_RATES.items()
        for rate, wanted in zip(rom_rates[kind], row, strict=True)
    )
    measured = f"{right} of {len(counts)}"
    lines = [
        Line("NumPy: every count as in the table", measured, right == len(counts)),
        Line("ROM: every rate within 0.05 of the table", f"{apart:.3f} apart", apart <= 0.05),
    ]
    record(
        __file__,
        folder,
        lines,
        {
            "numpy": {"delays": DELAYS, "balls": BALLS, "catches": catches},
            "rom": {"delays": DELAYS[1:], "balls": ROM_BALLS, "catches": on_rom},
        },
        seconds=time.perf_counter() - started,
        packages=("numpy", "pyboy"),
    )
    draw(folder / "delay.png", rates, "in NumPy", BALLS)
    draw(folder / "delay_rom.png", rom_rates, "on the Game Boy", ROM_BALLS)


if __name__ == "__main__":
    main()
