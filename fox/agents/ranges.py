"""Checks of settings, which are named part.setting as on the command line.

Each raises a ValueError for the first setting that is out of its range; None is no setting.
"""

from collections.abc import Sequence
from typing import Any


def at_least(part: str, settings: Any, **bounds: float) -> None:
    """Each setting named is its bound, or above."""
    for name, bound in bounds.items():
        value = getattr(settings, name)
        if value is not None and not value >= bound:
            raise ValueError(f"{part}.{name} must be at least {bound}, but got {value}")


def above_zero(part: str, settings: Any, *names: str) -> None:
    """Each setting named is above 0."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise ValueError(f"{part}.{name} must be above 0, but got {value}")


def within_one(part: str, settings: Any, *names: str) -> None:
    """Each setting named lies between 0 and 1, both included."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{part}.{name} must lie in [0, 1], but got {value}")


def one_of(part: str, settings: Any, **choices: Sequence[Any]) -> None:
    """Each setting named is among its choices."""
    for name, values in choices.items():
        value = getattr(settings, name)
        if value not in values:
            raise ValueError(f"{part}.{name} must be one of {tuple(values)}, but got {value!r}")
