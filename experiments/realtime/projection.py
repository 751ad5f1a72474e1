"""Projection: the largest model that 1, 8, 64 or 512 workers with one thread each keep at 60 Hz.

Times one inference of IMPALA networks and of FoX trunks on one thread, and divides by the tick. It
assumes a core and the memory bandwidth of this one for every worker: nothing was run with them.
"""

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from record import HERE, Line, record
from rich.progress import track

from fox.agents.realtime.timing import TrunkTimes, largest, time_impala, time_trunk
from fox.config import FoxConfig
from fox.figures import FAINT, PALETTE, new_figure, plain_axes, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEP_SECONDS = 1 / 59.7275
WORKERS = (1, 8, 64, 512)
WINDOW, CONTEXT = 64, 1024  # ticks
# (width, depth) -> millions of parameters, and seconds measured earlier on one of two cores.
IMPALA = {
    (1, 1): (0.90, 0.0053),
    (7, 1): (10.4, 0.0788),
    (29, 1): (104.7, 0.979),
    (98, 1): (1008.0, 13.3),
}
# (hidden_size, layers, heads) -> the same for a FoX: T_W, T_1, T_w and c.
FOX = {
    (128, 5, 4): TrunkTimes(983_040, 0.0051, 0.0027, 0.0013, 0.00027),
    (384, 6, 6): TrunkTimes(10_616_832, 0.035, 0.012, 0.011, 0.00087),
    (512, 8, 8): TrunkTimes(25_165_824, 0.092, 0.023, 0.031, 0.0012),
    (768, 14, 12): TrunkTimes(99_090_432, 0.271, 0.058, 0.074, 0.0044),
    (1024, 26, 16): TrunkTimes(327_155_712, 0.849, 0.133, 0.310, 0.0123),
}
COLOURS = dict(zip(("impala", "window", "catchup", "wavefront"), PALETTE, strict=False))
NAMES = {
    "impala": "IMPALA, last frame",
    "window": f"FoX, window of {WINDOW} ticks",
    "catchup": "FoX, catch-up",
    "wavefront": "FoX, wavefront",
}


@dataclass(frozen=True)
class Size:
    """A model, and the workers that it needs.

    Attributes:
        model: "impala", or a cache mode of FoX.
        shape: (width, depth), or (hidden_size, layers, heads).
        parameters: of the trunk.
        workers: N before rounding up; None where no number is enough.
        measured: here and now, or else taken from an earlier measurement.
    """

    model: str
    shape: tuple[int, ...]
    parameters: float
    workers: float | None
    measured: bool


def blocks(shape: tuple[int, int, int]) -> FoxConfig:
    """A FoX (LLaMA) of 12 hidden_size^2 parameters per layer."""
    hidden_size, layers, heads = shape
    return FoxConfig.preset(
        "fox-llama-125m",
        vocab_size=1,
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_heads=heads,
        intermediate_size=8 * hidden_size // 3,
    )


def measure(up_to: float) -> tuple[list[Size], list[dict[str, Any]]]:
    """Every size, timed if it has at most so many million parameters; and the trunks' times."""
    sizes, times = [], []
    jobs: list[tuple[int, ...]] = [*IMPALA, *FOX]
    for shape in track(jobs, "models"):
        if shape in IMPALA:
            millions, seconds = IMPALA[shape]
            parameters, measured = millions * 1e6, millions <= up_to
            if measured:
                parameters, seconds = time_impala(*shape)
            sizes.append(Size("impala", shape, parameters, seconds / STEP_SECONDS, measured))
            continue
        trunk = FOX[shape]
        measured = trunk.parameters <= up_to * 1e6
        if measured:
            trunk = time_trunk(blocks(shape), WINDOW, CONTEXT)
        times.append({"shape": shape, "measured": measured} | asdict(trunk))
        for model, workers in trunk.workers(STEP_SECONDS).items():
            finite = workers if math.isfinite(workers) else None
            sizes.append(Size(model, shape, trunk.parameters, finite, measured))
    return sizes, times


def project(sizes: Sequence[Size]) -> list[dict[str, Any]]:
    """By model and number of workers: the largest that they keep at 60 Hz."""
    rows = []
    for model in NAMES:
        mine = [size for size in sizes if size.model == model]
        needs = [math.inf if size.workers is None else size.workers for size in mine]
        for N in WORKERS:
            found, inside = largest([size.parameters for size in mine], needs, N)
            millions = None if found is None else round(found / 1e6, 2)
            rows.append({"model": model, "workers": N, "millions": millions, "or_more": not inside})
    return rows


def acceptance(sizes: Sequence[Size], rows: Sequence[dict[str, Any]], seconds: float) -> list[Line]:
    """What the projection should say."""
    needs = {size.shape: size.workers or math.inf for size in sizes if size.model == "impala"}
    about = {(29, 1): ("105 million", 64), (98, 1): ("1 billion", 800)}
    lines = [
        Line(
            f"projection: IMPALA of {name} parameters needs {wanted} workers, within a factor 3",
            round(needs[shape]),
            wanted / 3 <= needs[shape] <= 3 * wanted,
        )
        for shape, (name, wanted) in about.items()
    ]
    of = {(row["model"], row["workers"]): row["millions"] for row in rows}
    ratio = of["wavefront", 8] / of["window", 8]
    name = "projection: 8 workers carry a larger FoX in a wavefront than with windows (ratio)"
    lines.append(Line(name, round(ratio, 2), ratio > 1))
    return [*lines, Line("less than 10 minutes", round(seconds), seconds < 600)]


def curve(axes: "Axes", points: Sequence[tuple[Any, Any, bool]], colour: str, name: str) -> None:
    """A line through points (x, y, filled)."""
    axes.plot([x for x, _, _ in points], [y for _, y, _ in points], color=colour, label=name)
    for x, y, filled in points:
        axes.plot(x, y, "o", color=colour, markerfacecolor=colour if filled else "white")


def draw(sizes: Sequence[Size], rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Workers that sizes need, and sizes that workers carry."""
    figure = new_figure(11, 4.2)
    figure.suptitle(
        "A projection from inferences on one thread, not a run: one core for each worker at 60 Hz",
        fontsize=10,
    )
    left, right = figure.subplots(1, 2)
    for model, name in NAMES.items():
        mine = [size for size in sizes if size.model == model and size.workers is not None]
        needs = [(size.parameters / 1e6, size.workers, size.measured) for size in mine]
        curve(left, needs, COLOURS[model], name)
        found = [row for row in rows if row["model"] == model]
        points = [(r["workers"], r["millions"], not r["or_more"]) for r in found if r["millions"]]
        curve(right, points, COLOURS[model], name)
    left.axhline(1, color=FAINT, linewidth=0.8)
    plain_axes(
        left, "Workers that a size needs", "million parameters", "workers (inference / tick)"
    )
    plain_axes(right, "Size that workers carry", "workers", "million parameters")
    left.legend(frameon=False, fontsize=8)
    for axes, hollow in (
        (left, "taken from an earlier measurement"),
        (right, "or more; none larger was timed"),
    ):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.text(0.98, 0.03, f"hollow: {hollow}", transform=axes.transAxes, ha="right", fontsize=8)
    right.set_xticks(WORKERS, [str(N) for N in WORKERS])
    right.minorticks_off()
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument(
        "--up-to", type=float, default=1100, help="millions of parameters that are still timed here"
    )
    options = parser.parse_args()
    started = time.perf_counter()
    sizes, times = measure(options.up_to)
    seconds = time.perf_counter() - started
    rows = project(sizes)
    results = {
        "projection": "One inference was timed on one thread; that N workers keep up assumes a "
        "core and its memory bandwidth for each of them, and nothing was run with them.",
        "step_seconds": STEP_SECONDS,
        "fox": {"window": WINDOW, "context": CONTEXT, "times": times},
        "sizes": [asdict(size) for size in sizes],
        "largest": rows,
    }
    lines = acceptance(sizes, rows, seconds)
    record(__file__, options.results, lines, results, seconds=seconds, packages=("torch",))
    draw(sizes, rows, options.results / "projection.png")


if __name__ == "__main__":
    main()
