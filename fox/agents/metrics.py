"""Metrics of a run: a CSV file that grows row by row, and goes on after a kill."""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

from fox.files import write_text


@contextmanager
def table(path: Path, columns: Sequence[str]) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that appends rows of these columns to a CSV file, each at once on disk."""
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        write_text(path, text[: text.rfind("\n") + 1])  # a kill may have torn the last line
    new = not path.is_file()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if new:
            writer.writeheader()

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


def trim(path: Path, keep: Callable[[Mapping[str, str]], bool]) -> None:
    """Takes the rows from the first that is not to be kept out of a CSV file, if there is one.

    A run that was killed plays again what came after its last checkpoint.
    """
    if not path.is_file():
        return
    head, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = csv.DictReader([head, *(line for line in lines if line.endswith("\n"))])
    kept = sum(1 for _ in takewhile(keep, rows))
    write_text(path, "".join([head, *lines[:kept]]))
