"""Results on disk: a file appears whole under its name, or not at all."""

import csv
import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what was written there is renamed on success."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")  # keeps the suffix: it names a format
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, taken: str) -> Iterator[None]:
    """The folder for this process alone, until the block or the process ends.

    Windows has no such locks, and neither have some network disks, where a line says so.

    Raises:
        ValueError: another process has it; `taken` is the message.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if os.name != "posix":
        yield
        return
    import fcntl

    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise ValueError(taken) from None
            print(f"{folder} is on a disk without locks: start no second run there", flush=True)
        yield


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes have left anywhere in the folder."""
    for path in list(folder.rglob(".*-*")):
        number = path.name[1:].partition("-")[0]
        if number.isdigit() and not _is_running(int(number)):
            path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's
    return True


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON; NaN and infinities raise ValueError, since other readers reject them."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows under the keys of the first row."""
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON in {path}, but {error}") from None
