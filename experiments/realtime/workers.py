"""How many workers does a slow policy need? The least N for 99 % coverage, 5 ms to 100 s.

The tick dispatcher in virtual time, four laws of the inference time, d one tick more than the
longest inference takes.
"""

import argparse
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from record import HERE, Line, record
from rich.progress import track

from fox.agents.realtime.delay import delay_for, workers_for
from fox.agents.realtime.sweep import (
    GAME_BOY,
    LAWS,
    SECONDS,
    Law,
    Point,
    draw_sweep,
    fit,
    sources_of,
    sweep,
)
from fox.agents.realtime.ticks import Source

LONG = 100_000  # ticks: a loss of 0.1 % is told from none


def of_law(points: list[Point], cv: float) -> list[Point]:
    return [point for point in points if point.cv == cv]


def default_coverage(law: Law, T: float) -> float:
    """What the default number of workers gives, at the least d that no inference misses."""
    durations = law.durations(T, LONG, seed=1)
    workers = workers_for(float(durations.mean()), float(durations.std()), GAME_BOY)
    d = delay_for(law.cap * T, GAME_BOY)
    return float(np.mean(sources_of(durations, workers, d, GAME_BOY)[2 * d :] == Source.POLICY))


def acceptance(points: list[Point], seconds: float) -> list[Line]:
    """Slope, fit and bound of every law, and the time it took."""
    lines = []
    for law in LAWS:
        line = fit(of_law(points, law.cv))
        ratio = line.slope * GAME_BOY
        lines += [
            Line(f"cv {law.cv:g}: slope 1/M within 3 %", round(ratio, 4), abs(ratio - 1) <= 0.03),
            Line(f"cv {law.cv:g}: R^2 at least 0.999", round(line.r2, 6), line.r2 >= 0.999),
        ]
        if law.cv <= 0.2:
            bounds = [1.15 * p.seconds / GAME_BOY + 6 - p.workers for p in of_law(points, law.cv)]
            name = f"cv {law.cv:g}: N* at most 1.15 T/M + 6 (workers to spare, least)"
            lines.append(Line(name, round(min(bounds), 2), min(bounds) >= 0))
    covered = min(default_coverage(law, T) for law in LAWS for T in SECONDS if T <= 20)
    return [
        *lines,
        Line(
            "default N, up to 20 s: coverage at least 0.9985", round(covered, 5), covered > 0.9985
        ),
        Line("sweep in less than 60 s of processor time", round(seconds, 1), seconds < 60),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    folder = parser.parse_args().results
    started = time.process_time()
    total = len(LAWS) * len(SECONDS)
    points = list(track(sweep(), "laws x inference times", total=total))
    seconds = time.process_time() - started
    fits = {f"cv {law.cv:g}": fit(of_law(points, law.cv))._asdict() for law in LAWS}
    results = {"step_seconds": GAME_BOY, "fits": fits, "points": [asdict(p) for p in points]}
    record(__file__, folder, acceptance(points, seconds), results, seconds=seconds)
    draw_sweep(folder / "workers.png", points, GAME_BOY)


if __name__ == "__main__":
    main()
