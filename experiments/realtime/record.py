"""What every experiment writes: NAME.json, with what was wanted, measured and passed."""

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from fox.files import write_json

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Student's t, two-sided 95 %, by degrees of freedom.
T95 = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


class Line(NamedTuple):
    """One line of acceptance."""

    wanted: str
    measured: Any
    passed: bool


def git(*arguments: str) -> str:
    """What git says of this checkout."""
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """Hardware, versions and commit: what a number needs beside it."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    model = re.search(r"model name\s*: (.*)", info)
    # A result that was just written makes no code dirty.
    code = ["--", ".", ":!experiments/*/results"]
    changed = git("status", "--porcelain", "--untracked-files=no", *code)
    return {
        "processor": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "commit": git("describe", "--always") + ("-dirty" if changed else ""),
    }


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval, by Student's t."""
    numbers = [float(value) for value in values]  # JSON knows no others
    middle = mean(numbers)
    half = T95[len(numbers) - 1] * stdev(numbers) / len(numbers) ** 0.5
    return middle, middle - half, middle + half


def record(
    script: str,
    folder: Path,
    lines: Sequence[Line],
    results: Mapping[str, Any],
    *,
    seconds: float,
    packages: Sequence[str] = ("numpy",),
) -> bool:
    """Writes folder/NAME.json and prints the lines; says whether all have passed.

    Args:
        script: the __file__ of the experiment, NAME.py.
        folder: of the results.
        lines: of acceptance.
        results: the numbers behind them.
        seconds: that the experiment took.
        packages: whose versions matter.
    """
    path = Path(script).resolve()
    about = {
        "command": f"python {path.relative_to(ROOT)}",
        "machine": machine(packages),
        "seconds": round(seconds, 1),
        "acceptance": [line._asdict() for line in lines],
    }
    write_json(folder / f"{path.stem}.json", about | dict(results))
    for line in lines:
        print(f"{'passed' if line.passed else 'FAILED'}: {line.wanted}; measured {line.measured}")
    return all(line.passed for line in lines)
