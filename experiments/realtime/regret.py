"""Where two learners of one size lose their rewards: by delay, by inaction, by learning.

The preset catch with gusts, in virtual time, once sequential and once staggered; then both runs are
parted against the aware oracle. A run that was stopped goes on. Learning is that of one seed: the
script tests the decomposition, and no claim about which agent learns better.
"""

import argparse
import csv
import shutil
import time
from pathlib import Path

import numpy as np
from record import HERE, Line, record

from fox.agents.realtime.cli import main as fox_realtime
from fox.files import read_json

GUSTS = 0.005
TRAIN = ["train", "--config", "preset:catch", "--schedule.clock", "virtual"]
PARTS = ("delay", "inaction", "learning")


def curves(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """The columns of regret.csv by run."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    runs = sorted({row["run"] for row in rows})
    names = [name for name in rows[0] if name != "run"]
    return {
        run: {
            name: np.array([float(row[name]) for row in rows if row["run"] == run])
            for name in names
        }
        for run in runs
    }


def acceptance(runs: dict[str, dict[str, np.ndarray]], summaries: dict[str, dict]) -> list[Line]:
    """What must hold of the parts, whatever the agents have learnt."""
    sums = [sum(run[part] for part in PARTS) - run["total"] for run in runs.values()]
    apart = max(float(np.abs(difference).max()) for difference in sums)
    sequential, staggered = runs["sequential"], runs["staggered"]
    idle = float(np.abs(staggered["inaction"]).max())
    about = summaries["sequential"]
    share = abs(about["beta_share"] - about["predicted_beta_share"])
    r2 = float(np.corrcoef(sequential["tick"], sequential["inaction"])[0, 1] ** 2)
    lowest = float(sequential["inaction_low"][-1])
    equal = bool(np.array_equal(sequential["delay"], staggered["delay"]))
    return [
        Line("the parts sum to the regret (largest difference)", apart, apart == 0),
        Line("staggered: no inaction part (rewards)", idle, idle == 0),
        Line(
            "sequential: beta has (tau_I - tau_M) / tau_I of the ticks, +-0.01",
            round(share, 4),
            share < 0.01,
        ),
        Line("sequential: inaction grows linearly, R^2 at least 0.98", round(r2, 4), r2 >= 0.98),
        Line("sequential: inaction above 0 (end of the 95 % band)", lowest, lowest > 0),
        Line("the delay part is the same in both", equal, equal),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--runs", type=Path, default=HERE.parents[1] / "runs" / "regret")
    parser.add_argument("--ticks", type=int, default=18_000)
    options = parser.parse_args()
    started = time.perf_counter()
    settings = ["--env.gusts", str(GUSTS), "--run.ticks", str(options.ticks)]
    fox_realtime([*TRAIN, *settings, "--run.folder", str(options.runs)])
    fox_realtime(["regret", str(options.runs)])
    result = read_json(options.runs / "regret.json")
    lines = acceptance(curves(options.runs / "regret.csv"), result["runs"])
    seconds = time.perf_counter() - started
    about = {"gusts": GUSTS, "ticks": options.ticks, **result}
    record(__file__, options.results, lines, about, seconds=seconds, packages=("numpy", "torch"))
    for suffix in ("csv", "png"):
        shutil.copy(options.runs / f"regret.{suffix}", options.results / f"regret.{suffix}")


if __name__ == "__main__":
    main()
