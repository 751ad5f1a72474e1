"""How regularly do actions come? The paper's two algorithms, what they improve on, and ticks.

Inference takes T = 1 s on average, a tick 16.74 ms. Every schedule runs for 400 s of virtual time,
of which the last 200 s count; the tick dispatcher for 12,000 ticks. CV is std / mean of the
intervals between deliveries; under the tick dispatcher those are the ticks that execute an action.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from record import HERE, Line, record
from rich.progress import track

from fox.agents.realtime.delay import delay_for
from fox.agents.realtime.reference import (
    Deliveries,
    ExpectedTime,
    MaximumTime,
    Schedule,
    SlotGrid,
    Unstaggered,
    ahead,
    simulate,
    variation,
)
from fox.agents.realtime.scheduler import TickDispatcher
from fox.agents.realtime.sweep import GAME_BOY, LAWS, Law, play
from fox.agents.realtime.ticks import Source
from fox.figures import FAINT, FOX, INK, TRANSFORMER, new_figure, save_figure

SECONDS, COUNTED_FROM, TICKS = 400.0, 200.0, 12_000
SEEDS = range(5)
EVEN, NARROW, WIDE, _ = LAWS
Range = tuple[float, float]


@dataclass(frozen=True)
class Case:
    """A schedule under a law, and what it has been seen to do: (lowest, highest) over seeds."""

    name: str
    schedule: Callable[[], Schedule]
    durations: Callable[[int], Iterator[float]]
    cv: Range | None
    coverage: Range | None


def drawn(law: Law) -> Callable[[int], Iterator[float]]:
    return lambda seed: itertools.cycle(law.durations(1.0, 60_000, seed).tolist())


def one_overrun(share: float) -> Callable[[int], Iterator[float]]:
    """Constant but for the 600th inference."""
    ones = itertools.repeat(1.0)
    return lambda _: itertools.chain(itertools.repeat(1.0, 600), [1 + share], ones)


def cases() -> list[Case]:
    none, all_ = (0.0, 0.0), (1.0, 1.0)
    found = []
    for share, correct, reverse in ((0.01, 0.0, 0.107), (0.5, 2.65, 3.59)):
        law, told = one_overrun(share), f"constant, one +{share:.0%} overrun, N = 60"
        found += [
            Case(f"algorithm 1, {told}", lambda: MaximumTime(60, 1.0), law, (correct,) * 2, None),
            Case(
                f"reversed, {told}", lambda: MaximumTime(60, 1.0, ahead), law, (reverse,) * 2, None
            ),
            Case(f"slot grid, {told}", lambda: SlotGrid(60, 1.0, GAME_BOY), law, none, None),
        ]
    drawn_cases: list[tuple[Law, int, float, tuple[Range, Range], tuple[Range, Range]]] = [
        (NARROW, 72, 1.0, ((0.52, 0.74), (0.77, 0.87)), ((0.76, 1.36), (0.71, 0.74))),
        (WIDE, 120, 1.0, ((0.89, 1.12), (0.61, 0.67)), ((1.64, 3.13), (0.21, 0.46))),
        (WIDE, 120, 2.0, (none, all_), (none, all_)),
    ]
    for one, N, T, correct_, reverse_ in drawn_cases:
        told, law = f"cv {one.cv:g}, N = {N}, first T = {T:g} s", drawn(one)
        found += [
            Case(f"algorithm 1, {told}", lambda N=N, T=T: MaximumTime(N, T), law, *correct_),
            Case(f"reversed, {told}", lambda N=N, T=T: MaximumTime(N, T, ahead), law, *reverse_),
            Case(f"slot grid, {told}", lambda N=N, T=T: SlotGrid(N, T, GAME_BOY), law, none, all_),
        ]
    for one in (NARROW, WIDE):
        name = f"algorithm 2, cv {one.cv:g}, N = 60"
        seen = ((0.96, 1.02), (0.63, 0.64))
        found.append(Case(name, lambda: ExpectedTime(60, 1.0), drawn(one), *seen))
    for N in (1, 60):
        name = "sequential, constant" if N == 1 else "unstaggered, constant, N = 60"
        few = (0.016, 0.016)
        found.append(Case(name, lambda N=N: Unstaggered(N), drawn(EVEN), None, few))
    return found


def measures(deliveries: Deliveries) -> dict[str, float]:
    """Of what was delivered after COUNTED_FROM."""
    counted = deliveries.after(COUNTED_FROM)
    ticks = counted.ticks(GAME_BOY)
    return {
        "coverage": len(ticks) / ((SECONDS - COUNTED_FROM) / GAME_BOY),
        "cv": counted.interval_cv(),
        "cv_of_ticks": variation(np.diff(ticks)),
        "age_seconds": float((counted.delivered - counted.observed).mean()),
    }


def run_case(case: Case) -> dict[str, Any]:
    """Its measures for every seed."""
    runs = [measures(simulate(case.schedule(), case.durations(s), SECONDS)) for s in SEEDS]
    by_measure = {key: [round(run[key], 4) for run in runs] for key in runs[0]}
    return {"case": case.name, "wanted_cv": case.cv, "wanted_coverage": case.coverage} | by_measure


def dispatched(law: Law, d: int, N: int, seed: int = 0) -> TickDispatcher:
    """The tick dispatcher after TICKS ticks."""
    dispatcher = TickDispatcher(range(N), d)
    play(dispatcher, law.durations(1.0, TICKS, seed), GAME_BOY)
    return dispatcher


def acting_ticks(dispatcher: TickDispatcher) -> np.ndarray:
    return np.array([row.tick for row in dispatcher.trace if row.source is Source.POLICY])


def tick_rows() -> list[dict[str, Any]]:
    """Coverage and CV of the tick dispatcher for d at the 99 % quantile and at the maximum."""
    cells = [
        (law, quantile, N) for law in LAWS[1:] for quantile in (0.99, 1.0) for N in (60, 63, 66, 72)
    ]
    rows = []
    for law, quantile, N in track(cells, "tick dispatcher"):
        high = np.quantile(law.durations(1.0, 100_000, 1), quantile)
        d = delay_for(float(high), GAME_BOY)
        dispatcher = dispatched(law, d, N)
        cv = variation(np.diff(acting_ticks(dispatcher)))
        coverage = dispatcher.counters.coverage
        row = {"cv_of_law": law.cv, "delay": "maximum" if quantile == 1 else "p99", "d": d, "N": N}
        rows.append(row | {"coverage": round(coverage, 4), "cv": round(cv, 4)})
    return rows


def within(values: list[float], wanted: Range, tolerance: float) -> bool:
    """Whether the mean over the seeds lies in the range, widened by the tolerance."""
    return bool(wanted[0] - tolerance <= np.mean(values) <= wanted[1] + tolerance)


def acceptance(rows: list[dict[str, Any]], ticks: list[dict[str, Any]]) -> list[Line]:
    lines = []
    for row in ticks:
        if row["delay"] == "maximum" and row["N"] == 72 and row["cv_of_law"] <= 0.2:
            name = f"ticks, cv {row['cv_of_law']}, d = maximum, N = 72"
            measured = {key: row[key] for key in ("coverage", "cv")}
            passed = row["cv"] <= 0.01 and row["coverage"] >= 0.999
            lines.append(Line(f"{name}: CV <= 0.01, coverage >= 0.999", measured, passed))
    for row in rows:
        for key, tolerance in (("cv", 0.1), ("coverage", 0.1)):
            wanted = row[f"wanted_{key}"]
            if wanted is None or "reversed" in row["case"]:
                continue
            if wanted[1] < tolerance and key == "coverage":
                tolerance = 0.001  # one worker's share of the ticks
            name = f"{row['case']}: {key} {wanted[0]:g} to {wanted[1]:g} +- {tolerance:g}"
            measured = {"mean": round(float(np.mean(row[key])), 4), "seeds": row[key]}
            lines.append(Line(name, measured, within(row[key], wanted, tolerance)))
    return lines


def compared() -> list[tuple[str, np.ndarray, dict[str, float]]]:
    """Name, ticks that execute an action, and measures of every way to interact, cv 0.2."""
    schedules: list[tuple[str, Schedule]] = [
        ("sequential, 1 worker", Unstaggered(1)),
        ("unstaggered, 60 workers", Unstaggered(60)),
        ("algorithm 2, 60 workers", ExpectedTime(60, 1.0)),
        ("algorithm 1 reversed, 120 workers,\nfirst T = mean", MaximumTime(120, 1.0, ahead)),
        ("algorithm 1, 120 workers,\nfirst T = mean", MaximumTime(120, 1.0)),
        ("algorithm 1, 120 workers,\nfirst T = longest", MaximumTime(120, 2.0)),
    ]
    found = []
    for name, schedule in schedules:
        deliveries = simulate(schedule, drawn(WIDE)(0), SECONDS)
        ticks = deliveries.after(COUNTED_FROM).ticks(GAME_BOY)
        found.append((name, ticks, measures(deliveries)))
    for told, d in (("99 % quantile", 93), ("longest", 120)):
        dispatcher = dispatched(WIDE, d, 72)
        ticks = acting_ticks(dispatcher)
        cv = variation(np.diff(ticks))
        numbers = {"coverage": dispatcher.counters.coverage, "cv": cv, "cv_of_ticks": cv}
        name = f"tick dispatcher, 72 workers,\nd = {told}"
        found.append((name, ticks, numbers | {"age_seconds": d * GAME_BOY}))
    return found


def draw(ways: list[tuple[str, np.ndarray, dict[str, float]]], path: Path) -> None:
    """Which ticks of two seconds execute an action of the policy, way by way."""
    figure = new_figure(11, 5)
    axes = figure.subplots()
    shown = 120
    for y, (name, ticks, numbers) in enumerate(ways):
        x = ticks - ticks[len(ticks) // 2]
        colour = FOX if "tick" in name else TRANSFORMER
        axes.vlines(x[(x >= 0) & (x < shown)], y - 0.32, y + 0.32, color=colour, linewidth=2.6)
        told = (
            f"{numbers['coverage']:.1%}",
            f"{numbers['cv']:.2f}",
            f"{numbers['age_seconds']:.2f} s",
        )
        for column, text in enumerate(told):
            axes.text(shown + 8 + 11 * column, y, text, va="center", ha="center", color=INK)
    for column, text in enumerate(("coverage", "CV", "mean age")):
        axes.text(shown + 8 + 11 * column, -0.85, text, ha="center", color=FAINT, fontsize=9)
    axes.set_yticks(range(len(ways)), [name for name, *_ in ways], fontsize=9)
    axes.set(xlim=(-2, shown + 36), ylim=(len(ways) - 0.4, -1.2))
    axes.set_xticks(range(0, shown + 1, 20))
    axes.set_xlabel("tick (16.74 ms each); inference takes 1 s on average, cv 0.2, 2 s at most")
    axes.xaxis.set_label_coords(0.39, -0.08)
    axes.spines["bottom"].set_bounds(0, shown)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(
        "Ticks that execute an action of the policy", loc="left", color=INK, fontweight="bold"
    )
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    folder = parser.parse_args().results
    started = time.perf_counter()
    rows = [run_case(case) for case in track(cases(), "schedules")]
    ticks, ways = tick_rows(), compared()
    seen = [{"way": name.replace("\n", " "), **numbers} for name, _, numbers in ways]
    results = {"step_seconds": GAME_BOY, "compared": seen, "ticks": ticks, "cases": rows}
    seconds = time.perf_counter() - started
    record(__file__, folder, acceptance(rows, ticks), results, seconds=seconds)
    draw(ways, folder / "regularity.png")


if __name__ == "__main__":
    main()
