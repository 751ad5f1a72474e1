"""Whose a folder is: the settings of a run, which it keeps, and which may not change under way."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fox.files import read_json, write_json


def claim(folder: Path, settings: Mapping[str, Any], free: Collection[str]) -> None:
    """Writes config.json, or checks that the one that is there is of this run.

    Args:
        folder: of the run.
        settings: nested plain values.
        free: names, such as run.folder, of what may be given anew to a run that goes on.

    Raises:
        ValueError: the folder is another run's.
    """
    path = folder / "config.json"
    if path.is_file():
        theirs = _flat(read_json(path))
        for name, value in _flat(settings).items():
            if name not in free and theirs.get(name) != value:
                raise ValueError(
                    f"{folder} holds a run with {name} = {theirs.get(name)}, but got {value}: "
                    "choose another run.folder, or remove this one"
                )
    else:
        write_json(path, settings)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat
