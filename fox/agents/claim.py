"""Whose a folder is: of one run, whose settings it keeps, and of one process at a time."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from fox.files import locked, read_json, remove_leftovers, write_json

Config = TypeVar("Config")


@contextmanager
def claimed(folder: Path, settings: Mapping[str, Any], free: Collection[str]) -> Iterator[None]:
    """The folder is this run's, and this process's alone; config.json holds its settings.

    Args:
        folder: of the run; it is made if it is not there.
        settings: nested plain values.
        free: names, such as run.folder, of what may be given anew to a run that goes on.

    Raises:
        ValueError: the folder is another run's, or another process has claimed it.
    """
    with locked(folder, f"another process is at the run in {folder}: stop it first"):
        path = folder / "config.json"
        if path.is_file():
            _check(folder, _flat(settings), _flat(read_json(path)), free)
        remove_leftovers(folder)
        write_json(path, settings)  # what was free may be new
        yield


def read_config(folder: Path, program: str, of: Callable[[dict[str, Any]], Config]) -> Config:
    """The config of the run in a folder.

    Args:
        folder: of the run.
        program: that trains such runs.
        of: makes a config from nested plain values.

    Raises:
        ValueError: there is no run of this program.
    """
    path = folder / "config.json"
    if not path.is_file():
        inside = ", ".join(sorted(str(below.parent) for below in folder.glob("*/config.json")))
        cure = f": choose one of {inside}" if inside else ""
        raise ValueError(
            f"expected a run of {program} train in {folder}, but found no {path}{cure}"
        )
    try:
        return of(read_json(path))
    except (TypeError, KeyError) as error:  # names that its parts do not have
        raise ValueError(
            f"expected a run of {program} train in {folder}, but its config.json is of another "
            f"program or version: {error}"
        ) from error


def _check(
    folder: Path, ours: Mapping[str, Any], theirs: Mapping[str, Any], free: Collection[str]
) -> None:
    for name, value in ours.items():
        if name not in free and theirs.get(name) != value:
            raise ValueError(
                f"{folder} holds a run with {name} = {theirs.get(name)}, but got {value}: "
                "choose another run.folder, or remove this one"
            )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat
