"""Gusts times delay: what the aware oracle cannot know is what it loses.

Between landings the likeliest next state of CatchRT has probability 1 - g, so (1 - g)^d is that of
the likeliest path over the delay; the catch rate of staggered, aware play is linear in it.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from delay import Numbers, staggered
from record import HERE, Line, record
from rich.progress import track

from fox.agents.realtime.plots import Curve, draw_curves

GUSTS = (0.002, 0.005, 0.01, 0.02, 0.05)
DELAYS = (1, 2, 4, 8, 16, 32, 48)
SEEDS = (1, 2, 3)
TICKS, BALLS = 30_000, 234


def fit(gusts: np.ndarray, delays: np.ndarray, rates: np.ndarray) -> dict[str, float]:
    """Least squares of the rates on (1 - g)^d: slope, intercept and R^2. All (n,)."""
    x = (1 - gusts) ** delays
    slope, intercept = np.polyfit(x, rates, 1)
    r2 = np.corrcoef(x, rates)[0, 1] ** 2
    return {"slope": float(slope), "intercept": float(intercept), "r2": float(r2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    folder = parser.parse_args().results
    started = time.perf_counter()
    rows = [
        {"seed": seed, "gusts": g, "d": d, "catches": 0}
        for seed in SEEDS
        for g in GUSTS
        for d in DELAYS
    ]
    for row in track(rows, "gusts x delays x seeds"):
        row["catches"] = staggered(Numbers(row["gusts"], row["seed"]), row["d"], TICKS, aware=True)
    seed, g, d, catches = np.array([list(row.values()) for row in rows]).T
    rates = catches / BALLS
    fits = {"pooled": fit(g, d, rates)}
    fits |= {str(s): fit(g[seed == s], d[seed == s], rates[seed == s]) for s in SEEDS}
    r2 = fits["pooled"]["r2"]
    record(
        __file__,
        folder,
        [Line("pooled R^2 of the line in (1 - g)^d at least 0.9", round(r2, 4), r2 >= 0.9)],
        {"balls": BALLS, "fits": fits, "rows": rows},
        seconds=time.perf_counter() - started,
    )
    draw(folder / "gusts.png", g, d, rates, r2)


def draw(path: Path, gusts: np.ndarray, delays: np.ndarray, rates: np.ndarray, r2: float) -> None:
    """Mean catch rate against (1 - g)^d, a curve for every g."""
    curves = []
    for g in GUSTS:
        longest_first = DELAYS[::-1]
        mean = [float(rates[(gusts == g) & (delays == d)].mean()) for d in longest_first]
        curves.append(Curve(f"g = {g:g}", [(1 - g) ** d for d in longest_first], mean))
    draw_curves(
        path,
        curves,
        title="What the wind takes from an aware oracle",
        xlabel="(1 - g)^d: gusts g per tick, delay d in ticks",
        ylabel="share of balls caught",
        about=f"means over {len(SEEDS)} seeds; a line through all has R^2 = {r2:.3f}",
    )


if __name__ == "__main__":
    main()
