"""Metrics of a run: a CSV file that grows row by row, and goes on after a kill."""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

from fox.files import write_text


@contextmanager
def table(
    path: Path,
    columns: Sequence[str],
    keep: Callable[[Mapping[str, str]], bool] = lambda row: True,
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that appends rows of these columns to a CSV file, each at once on disk.

    Args:
        path: of the file; a run that goes on finds its rows there.
        columns: their names.
        keep: the rows from the first of which this is False are taken out: a run that was killed
            does again what came after its last checkpoint.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    whole = [line for line in lines if line.endswith("\n")]  # a kill may have torn the last
    kept = sum(1 for _ in takewhile(keep, csv.DictReader(whole)))
    write_text(path, "".join(whole[: 1 + kept]) or ",".join(columns) + "\n")
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")

        def write(row: Mapping[str, Any]) -> None:
            writer.writerow(row)
            file.flush()

        yield write


def read_table(path: Path) -> list[dict[str, float | None]]:
    """The rows of a run's metrics.csv; None where a field is empty."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {name: float(value) if value else None for name, value in row.items()}
            for row in csv.DictReader(file)
        ]
