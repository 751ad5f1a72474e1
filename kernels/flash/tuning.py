"""Tile sizes, warps and pipeline stages: chosen from what a GPU has, not from which GPU it is.

The tiles of choose_plan were chosen by compiling: the largest that need no registers beyond those
there are, and fit in the shared memory of every GPU of their kind. tune measures instead, and
remembers.
"""

import json
import os
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """What one program works on at a time.

    Args:
        rows: query rows, a power of two.
        keys: keys, a power of two.
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
        return min(32, *(tile.rows for tile in self))


# Triton's interpreter, on a CPU: small tiles of unequal sides, so that tests meet every border.
INTERPRETED = Plan(Tile(64, 32, 4, 1), Tile(32, 64, 4, 1), Tile(32, 32, 4, 1))

# By padded head size, at most. 16-bit inputs on GPUs with 200 KB of shared memory per program
# (Hopper and its like), with 99 KB (Ampere, Ada, consumer Blackwell), with 64 KB (AMD).
LARGE = {
    64: Plan(Tile(128, 64, 8, 3), Tile(128, 64, 8, 3), Tile(64, 128, 8, 2)),
    128: Plan(Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(32, 128, 8, 3)),
    256: Plan(Tile(128, 32, 8, 2), Tile(128, 32, 8, 2), Tile(32, 64, 8, 2)),
}
MIDDLE = {
    64: Plan(Tile(128, 64, 8, 3), Tile(64, 64, 8, 2), Tile(32, 128, 8, 2)),
    128: Plan(Tile(128, 64, 8, 2), Tile(64, 64, 8, 2), Tile(64, 64, 8, 2)),
    256: Plan(Tile(64, 32, 8, 2), Tile(64, 32, 8, 2), Tile(32, 32, 8, 2)),
}


SMALL = {
    64: Plan(Tile(128, 64, 4, 1), Tile(64, 64, 4, 1), Tile(64, 64, 4, 1)),
    128: Plan(Tile(128, 32, 4, 1), Tile(64, 32, 4, 1), Tile(32, 64, 4, 1)),
    256: Plan(Tile(64, 32, 4, 1), Tile(32, 32, 4, 1), Tile(32, 32, 4, 1)),
}
FLOAT32 = {
    64: Plan(Tile(64, 32, 8, 2), Tile(64, 32, 8, 2), Tile(32, 32, 8, 2)),
    128: Plan(Tile(32, 32, 8, 2), Tile(32, 32, 8, 2), Tile(32, 16, 4, 2)),
    256: Plan(Tile(16, 16, 4, 1), Tile(16, 16, 4, 1), Tile(16, 16, 4, 1)),
}

# What tune tries.
CANDIDATES = {
    "forward": [
        Tile(128, 64, 8, 3), Tile(128, 64, 4, 3), Tile(128, 128, 8, 2), Tile(64, 64, 4, 3),
        Tile(128, 32, 4, 3), Tile(64, 32, 4, 2),
    ],
    "dq": [
        Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(128, 128, 8, 2), Tile(64, 64, 4, 2),
        Tile(128, 32, 8, 2), Tile(64, 32, 4, 2),
    ],
    "dkdv": [
        Tile(64, 128, 8, 2), Tile(32, 128, 8, 3), Tile(64, 64, 4, 2), Tile(64, 64, 8, 2),
        Tile(128, 64, 8, 2), Tile(32, 64, 4, 3),
    ],
}  # fmt: skip

# Where tune remembers what it found.
MEMORY = Path(os.path.expanduser("~/.cache/fox/tiles.json"))


def choose_plan(D: int, dtype: torch.dtype, device: torch.device) -> Plan:
    """Tiles for a head size and dtype on a device: measured ones if there are, else a default."""
    width = next(size for size in FLOAT32 if size >= D)
    plans = _remembered(MEMORY)
    plan = plans.get(_key(width, dtype, device)) if plans else None
    return plan or _default(width, dtype, device)


def _default(width: int, dtype: torch.dtype, device: torch.device) -> Plan:
    if device.type != "cuda":
        return INTERPRETED
    if dtype == torch.float32:
        return FLOAT32[width]
    memory = _shared_memory(device)
    return (LARGE if memory >= 200_000 else MIDDLE if memory >= 99_000 else SMALL)[width]


@cache
def _shared_memory(device: torch.device) -> int:
    """Bytes that one program may use."""
    from triton.runtime import driver

    index = torch.cuda.current_device() if device.index is None else device.index
    return int(driver.active.utils.get_device_properties(index)["max_shared_mem"])


def tune(
    D: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cuda",
    T: int = 8192,
    H: int = 16,
) -> Plan:
    """Measure which tiles are fastest on this GPU, use them from now on, and remember them.

    About a minute, most of it compiling. Nothing is measured unless asked for: tiles that changed
    from run to run, or from rank to rank, would change the last digits of every result.

    Args:
        D: head size; the tiles serve all that are padded to the same power of two, or to 64.
        dtype: of q, k, v.
        device: the GPU.
        T, H: tokens and heads to measure with; nothing is pruned.

    Returns:
        The fastest plan, also written to MEMORY.
    """
    from triton.runtime.errors import OutOfResources

    device = torch.empty(0, device=device).device
    width = next(size for size in FLOAT32 if size >= D)
    plan = _default(width, dtype, device)
    for kernel, tiles in CANDIDATES.items():
        times = {}
        for tile in dict.fromkeys([getattr(plan, kernel), *tiles]):
            tried = plan._replace(**{kernel: tile})
            try:
                times[tile] = _seconds(_pass(kernel, tried, D, dtype, device, T, H), device)
            except OutOfResources:
                continue
        plan = plan._replace(**{kernel: min(times, key=times.__getitem__)})
    plans = dict(_remembered(MEMORY), **{_key(width, dtype, device): plan})
    MEMORY.parent.mkdir(parents=True, exist_ok=True)
    temporary = MEMORY.with_name(f".{os.getpid()}-{MEMORY.name}")
    temporary.write_text(json.dumps(plans, indent=2), encoding="utf-8")
    temporary.replace(MEMORY)
    _remembered.cache_clear()
    return plan


def _pass(
    kernel: str, plan: Plan, D: int, dtype: torch.dtype, device: torch.device, T: int, H: int
) -> Callable[[], object]:
    """A call of the pass that holds the kernel, with everything before it done."""
    from fox.kernels.flash.backward import backward
    from fox.kernels.flash.forward import forward
    from fox.kernels.flash.layout import Batch
    from fox.kernels.flash.ranges import key_starts, split_gates

    q, k, v = (torch.randn(1, T, H, D, device=device, dtype=dtype) for _ in range(3))
    running = torch.zeros(1, H, T, device=device, dtype=torch.float64)
    batch = Batch(1, T, T, None, None, None)
    key_start = key_starts(q, k, running, batch, plan.unit, 0.1, None, None, None)
    gates = split_gates(running, plan.forward.keys, batch)
    out, lse = forward(q, k, v, gates, key_start, batch, plan.forward, plan.unit, 0.1, None)
    if kernel == "forward":
        return lambda: forward(q, k, v, gates, key_start, batch, plan.forward, plan.unit, 0.1, None)
    gates = split_gates(running, plan.dq.keys, batch)
    return lambda: backward(q, None, q, k, v, out, lse, gates, key_start, batch, plan, 0.1, None)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        from triton.testing import do_bench

        with torch.cuda.device(device):
            return float(do_bench(call, return_mode="median")) / 1000
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@cache
def _key(width: int, dtype: torch.dtype, device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name}, triton {version('triton')}, {dtype}, D <= {width}"


@cache
def _remembered(file: Path) -> dict[str, Plan]:
    if not file.exists():
        return {}
    try:
        plans = json.loads(file.read_text(encoding="utf-8"))
        return {key: Plan(*(Tile(*tile) for tile in plan)) for key, plan in plans.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} does not hold what tune wrote there ({error}): delete it, and tune again."
        ) from error
