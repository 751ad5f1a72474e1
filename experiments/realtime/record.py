"""What every experiment here writes: NAME.json, with what was wanted, measured and passed."""

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from fox.files import write_json

HERE = Path(__file__).parent


class Line(NamedTuple):
    """One line of acceptance."""

    wanted: str
    measured: Any
    passed: bool


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """Hardware, versions and commit: what a number needs beside it."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    model = re.search(r"model name\s*: (.*)", info)
    commit = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    return {
        "processor": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "commit": subprocess.run(commit, capture_output=True, text=True).stdout.strip(),
    }


def record(
    name: str,
    folder: Path,
    lines: Sequence[Line],
    results: Mapping[str, Any],
    *,
    seconds: float,
    packages: Sequence[str] = ("numpy",),
) -> bool:
    """Writes folder/NAME.json and prints the lines; says whether all have passed.

    Args:
        name: of the experiment: experiments/realtime/NAME.py.
        folder: of the results.
        lines: of acceptance.
        results: the numbers behind them.
        seconds: that the experiment took.
        packages: whose versions matter.
    """
    about = {
        "command": f"python experiments/realtime/{name}.py",
        "machine": machine(packages),
        "seconds": round(seconds, 1),
        "acceptance": [line._asdict() for line in lines],
    }
    write_json(folder / f"{name}.json", about | dict(results))
    for line in lines:
        print(f"{'passed' if line.passed else 'FAILED'}: {line.wanted}; measured {line.measured}")
    return all(line.passed for line in lines)
