"""The command `fox-realtime simulate`: how many workers a slow policy needs, in virtual time.

Legend: M environment's step in seconds, T mean duration of an inference, d delay in ticks, N
workers, N* the least that give the wanted coverage.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fox.agents.realtime.delay import delay_for
from fox.agents.realtime.plots import draw_regularity
from fox.agents.realtime.reference import variation
from fox.agents.realtime.sweep import (
    LAWS,
    SECONDS,
    Law,
    Point,
    draw_sweep,
    sources_of,
    sweep,
)
from fox.agents.realtime.ticks import Source
from fox.files import write_csv, write_json

SPARE = (0.9, 1.0, 1.05, 1.1, 1.2, 1.4)  # N as a multiple of T / M
QUANTILES = (0.9, 0.99, 1.0)  # of the durations that d waits for
TICKS = 12_000  # at least, of which the first 2 d are not counted


def simulate(
    output: str = "runs/simulate",
    *,
    seconds: list[float] = list(SECONDS),  # noqa: B006 (not changed)
    fps: float = 59.7275,
    wanted: float = 0.99,
    grid_seconds: float = 1.0,
    seed: int = 0,
) -> None:
    """How many workers a slow policy needs so that an action lands on every tick, in virtual time.

    For every mean inference time and four laws of its spread: the least number of workers, and what
    the rules for choosing it say (workers.csv, workers.png). For one inference time: coverage, and
    how regularly actions come, by number of workers and delay (grid.csv, grid.png). All of it is in
    simulate.json.

    Args:
        output: folder for the files.
        seconds: mean inference times.
        fps: ticks per second of the environment.
        wanted: share of ticks with an action in time.
        grid_seconds: the mean inference time of the grid.
        seed: of the durations.

    Raises:
        ValueError: a value is out of its range.
    """
    if not min(seconds, default=0) > 0:
        raise ValueError(f"seconds must be one or more times above 0, but got {seconds}")
    for name, value in (("fps", fps), ("grid_seconds", grid_seconds)):
        if not value > 0:
            raise ValueError(f"{name} must be above 0, but got {value}")
    if not 0 < wanted <= 1:
        raise ValueError(f"wanted is a share of ticks, above 0 and at most 1, but got {wanted}")
    step_seconds, folder = 1 / fps, Path(output)
    total = len(LAWS) * len(seconds)
    points = list(
        track(
            sweep(sorted(seconds), LAWS, step_seconds, wanted=wanted, seed=seed),
            "laws x inference times",
            total=total,
            console=Console(stderr=True),
        )
    )
    cells = list(grid(grid_seconds, step_seconds, seed))
    rows = [asdict(point) for point in points]
    write_csv(folder / "workers.csv", rows)
    write_csv(folder / "grid.csv", cells)
    about = {"fps": fps, "wanted": wanted, "grid_seconds": grid_seconds, "seed": seed}
    write_json(folder / "simulate.json", {**about, "workers": rows, "grid": cells})
    report(points, wanted)
    draw_sweep(folder / "workers.png", points, step_seconds)
    draw_regularity(folder / "grid.png", cells, grid_seconds, step_seconds)
    print(f"all in {folder}")


def grid(seconds: float, step_seconds: float, seed: int) -> Iterator[dict[str, Any]]:
    """Coverage and regularity of each law by N and d.

    gap_cv is std / mean of the ticks between two policy actions.
    """
    for law in LAWS:
        d_longest = delay_for(law.cap * seconds, step_seconds)
        durations = law.durations(seconds, max(TICKS, 6 * d_longest), seed)
        for quantile in QUANTILES if law.cv else (1.0,):
            d = delay_for(float(np.quantile(durations, quantile, method="higher")), step_seconds)
            for N in sorted({math.ceil(spare * seconds / step_seconds) for spare in SPARE}):
                sources = sources_of(durations, N, d, step_seconds)[2 * d :]
                gaps = np.diff(np.flatnonzero(sources == Source.POLICY))
                yield {
                    "cv": law.cv,
                    "cap": law.cap,
                    "quantile": quantile,
                    "d": d,
                    "workers": N,
                    "coverage": float(np.mean(sources == Source.POLICY)),
                    "gap_cv": variation(gaps),
                }


def report(points: Sequence[Point], wanted: float) -> None:
    """N* and d by inference time and law, on the console."""
    laws = [Law(cv, cap) for cv, cap in dict.fromkeys((p.cv, p.cap) for p in points)]
    table = Table(title=f"workers for {wanted:.0%} coverage (delay in ticks)")
    table.add_column("inference")
    for law in laws:
        table.add_column(f"cv {law.cv:g}, ≤ {law.cap:g} T", justify="right")
    for seconds in sorted({point.seconds for point in points}):
        cells = [f"{p.workers} ({p.d})" for p in points if p.seconds == seconds]
        table.add_row(f"{seconds:.4g} s", *cells)
    Console().print(table)
