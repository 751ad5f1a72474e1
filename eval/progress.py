"""Progress bars; plain lines where the output is no terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[str], None]]:
    """Show a bar of `total` steps and yield advance(note), to be called after each step."""
    console = Console()
    if not console.is_terminal:
        yield _plain_lines(console, description, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=total, note="")
        yield lambda note: bar.update(task, advance=1, note=note)


def _plain_lines(console: Console, description: str, total: int) -> Callable[[str], None]:
    done, start = 0, time.monotonic()
    next_line = start + SECONDS_BETWEEN_LINES

    def advance(note: str) -> None:
        nonlocal done, next_line
        done, now = done + 1, time.monotonic()
        if done == total or now >= next_line:
            next_line = now + SECONDS_BETWEEN_LINES
            line = f"{description}: {done}/{total} after {now - start:.0f} s {note}".rstrip()
            console.print(line, markup=False, highlight=False)

    return advance
