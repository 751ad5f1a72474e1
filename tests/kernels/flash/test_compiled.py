"""Each kernel compiles for GPUs that need not be there, within what they have, without a spill.

The code that launches kernels runs as it would there, on tensors of real shapes without memory, and
stops where the GPU would start. Triton itself turns the arguments of each launch into a signature.
This says nothing about results or speed.
"""

import os
import re
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

from fox.kernels.flash import token_shift, tuning
from fox.kernels.flash.backward import backward
from fox.kernels.flash.decode import append_to_cache, decode_attention
from fox.kernels.flash.forward import forward
from fox.kernels.flash.layout import Batch
from fox.kernels.flash.paged import attend_pages
from fox.kernels.flash.ranges import key_starts, split_gates
from fox.kernels.flash.tuning import Plan

pytestmark = [
    pytest.mark.compiler,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1",
        reason="interpreted kernels are not compiled: unset TRITON_INTERPRET",
    ),
]

# Bytes per thread that ptxas may spill to fit one more program on a processor; Triton 3.6 and 3.9
# differ by this much.
SPILL = 32

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

# The target, and the bytes of shared memory that one block may use.
GPUS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 163 * 1024),
    "sm_90": (GPUTarget("cuda", 90, 32), 227 * 1024),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 64 * 1024),
    "gfx90a": (GPUTarget("hip", "gfx90a", 64), 64 * 1024),
}


def shift(D: int, dtype: torch.dtype = torch.bfloat16, chunked: bool = False) -> None:
    B, T, H = 4, 4096, 12
    y = torch.empty(B, T, H, D, dtype=dtype, device="meta")
    alpha = torch.empty(B, T, H, device="meta")
    state = torch.empty(B, H, D, dtype=dtype, device="meta") if chunked else None
    starts = torch.empty(B, T, dtype=torch.bool, device="meta") if chunked else None
    token_shift.forward(y, alpha, state, starts)
    token_shift.backward(y, y, alpha, state, starts)


def attend(plan: Plan, D: int, dtype: torch.dtype = torch.bfloat16, full: bool = False) -> None:
    """Forward and backward; full: with groups of heads, sequences, a window and pruning."""
    B, T, H, group = 1 if full else 2, 4096, 16, 4 if full else 1
    q, d_out = (torch.empty(B, T, H, D, dtype=dtype, device="meta") for _ in range(2))
    k, v = (torch.empty(B, T, H // group, D, dtype=dtype, device="meta") for _ in range(2))
    running = torch.empty(B, H, T, dtype=torch.float64, device="meta")
    lse = torch.empty(B, H, T, device="meta")
    cu = torch.empty(9, dtype=torch.int32, device="meta") if full else None
    batch = Batch(8, T, T, None, cu, cu) if full else Batch(B, T, T, None, None, None)
    window, tolerance, d_lse = (1000, -10.0, lse) if full else (None, None, None)
    key_start = key_starts(q, k, running, batch, plan.unit, 0.1, window, tolerance, None)
    gates = split_gates(running, plan.forward.keys, batch)
    forward(q, k, v, gates, key_start, batch, plan.forward, plan.unit, 0.1, window)
    backward(d_out, d_lse, q, k, v, q, lse, gates, key_start, batch, plan, 0.1, window)


def decode(D: int, T: int, num_splits: int) -> None:
    """One step on a cache, with everything that may be asked for."""
    B, S, H, H_kv = 4, 32768, 32, 8
    q = torch.empty(B, T, H, D, dtype=torch.bfloat16, device="meta")
    caches = [torch.empty(B, S, H_kv, D, dtype=torch.bfloat16, device="meta") for _ in range(2)]
    caches.append(torch.empty(B, S, H, dtype=torch.float64, device="meta"))
    lengths = torch.empty(B, dtype=torch.int32, device="meta")
    new = [cache[:, :T] for cache in caches[:2]]
    log_f = torch.empty(B, T, H, device="meta")
    append_to_cache(*caches, *new, log_f, lengths, lengths)
    decode_attention(
        q, *caches, lengths, 0.1, seq_start=lengths, window_size=1000, log_pruning_tolerance=-10.0,
        logit_bound=torch.empty(B, H, dtype=torch.float64, device="meta"), num_splits=num_splits,
    )  # fmt: skip


def paged(D: int, group: int, dtype: torch.dtype = torch.bfloat16) -> None:
    B, P, H_kv = 4, 1000, 8
    q = torch.empty(B, H_kv * group, D, dtype=dtype, device="meta")
    k, v = (torch.empty(P, 64, D, dtype=dtype, device="meta") for _ in range(2))
    bias = torch.empty(P, group, 64, device="meta")
    attend_pages(q, k, v, bias, torch.empty(P, dtype=torch.int64, device="meta"), 0.1)


class Entry(NamedTuple):
    """Launches to check.

    Args:
        launch: calls launch code with tensors on "meta"; it may launch several kernels.
        gpus: what to compile them for.
        wgmma: whether products of matrices, if there are any, are Hopper's own on sm_90: they need
            16-bit inputs and 64 rows for 4 warps.
        spills: whether registers may spill.
    """

    launch: Callable[[], object]
    gpus: tuple[str, ...] = ("sm_80", "sm_90", "gfx942")
    wgmma: bool = True
    spills: bool = False


TABLE = {
    "token shift D=64": Entry(partial(shift, 64)),
    "token shift D=64 chunked": Entry(partial(shift, 64, chunked=True)),
    "token shift D=128": Entry(partial(shift, 128)),
    "token shift D=256 chunked": Entry(partial(shift, 256, chunked=True)),
    "token shift D=60": Entry(partial(shift, 60)),
    "token shift D=64 float32": Entry(partial(shift, 64, torch.float32)),
}
TABLE |= {
    f"decode D={D} T={T}": Entry(partial(decode, D, T, splits), ("sm_80", "sm_90"), wgmma=False)
    for D, T, splits in [(64, 1, 7), (128, 1, 7), (128, 16, 1), (256, 1, 1)]
}
TABLE |= {
    f"pages D={D} G={group} {dtype}": Entry(partial(paged, D, group, dtype), wgmma=False)
    for D, group, dtype in [
        (64, 1, torch.bfloat16),
        (128, 8, torch.bfloat16),
        (256, 2, torch.bfloat16),
        (128, 64, torch.float16),
        (128, 1, torch.float32),
    ]
}
TABLE["attention D=64 on gfx90a"] = Entry(partial(attend, tuning.SMALL[64], 64), ("gfx90a",))
PLANS = {"sm_90": tuning.LARGE, "sm_80": tuning.MIDDLE, "gfx942": tuning.SMALL}
TABLE |= {
    f"attention D=128 on {gpu}, all options": Entry(
        partial(attend, plans[128], 128, full=True), (gpu,), spills=True
    )
    for gpu, plans in PLANS.items()
    if gpu != "sm_80"
}
TABLE |= {
    f"attention D={D} float32": Entry(
        partial(attend, plan, D, torch.float32), ("sm_80",), wgmma=False, spills=True
    )
    for D, plan in tuning.FLOAT32.items()
    if D < 256
}
TABLE |= {
    # Two accumulators of 64 keys by 256 are more than fits beside the rest.
    f"attention D={D} on {gpu}": Entry(partial(attend, plan, D), (gpu,), spills=D == 256)
    for gpu, plans in PLANS.items()
    for D, plan in plans.items()
}


class Driver:
    """As much of a Triton driver as compiling asks for; each GPU is a device of its own."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> Any:
        return self.target

    def get_current_stream(self, device: Any) -> int:
        return 0


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[Any]]:
    """compiled(launch, target): the kernels that the call would launch, compiled, with grids."""
    launched: list[tuple[Any, tuple[int, ...]]] = []
    run = triton.runtime.JITFunction.run

    def compile_only(
        kernel: Any, *arguments: Any, grid: tuple[int, ...], warmup: bool, **options: Any
    ) -> None:
        launched.append((run(kernel, *arguments, grid=grid, warmup=True, **options), grid))

    def compiled(launch: Callable[[], object], target: Any) -> list[tuple[Any, tuple[int, ...]]]:
        name = "_active" if hasattr(triton.runtime.driver, "_active") else "active"  # in 3.4
        monkeypatch.setattr(triton.runtime.driver, name, Driver(target))
        if target.backend == "hip":
            monkeypatch.setattr(torch.version, "hip", "7.0")  # as PyTorch for AMD says
        launch()
        return launched

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.JITFunction, "run", compile_only)
    return compiled


def stack_bytes(cubin: bytes, folder: Path) -> int:
    """Bytes per thread that did not fit in registers."""
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    command = [CUOBJDUMP, "--dump-resource-usage", file]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sum(int(number) for number in re.findall(r"(?:STACK|LOCAL):(\d+)", usage))


@pytest.mark.parametrize(
    ("name", "gpu"), [(name, gpu) for name in TABLE for gpu in TABLE[name].gpus]
)
def test_a_kernel_compiles_within_what_the_gpu_has(
    compiled: Callable[..., list[Any]], tmp_path: Path, name: str, gpu: str
) -> None:
    entry = TABLE[name]
    target, shared = GPUS[gpu]
    launched = compiled(entry.launch, target)
    assert launched
    for kernel, grid in launched:
        label = f"{kernel.metadata.name} for {gpu}"
        assert kernel.metadata.shared <= shared, label
        assert kernel.metadata.num_warps * target.warp_size <= 1024, label
        assert 0 < grid[0] < 2**31, label
        assert all(0 < size < 2**16 for size in grid[1:]), label
        if gpu == "sm_90" and kernel.metadata.name != "_key_starts":  # too few rows for wgmma
            uses_wgmma = "wgmma.mma_async" in kernel.asm["ptx"]
            assert uses_wgmma == (entry.wgmma and "tt.dot" in kernel.asm["ttir"]), label
    if target.backend == "cuda" and not entry.spills:
        if not CUOBJDUMP.exists():
            pytest.skip(f"spills were not looked for: there is no {CUOBJDUMP}")
        stacks = [(k.metadata.name, stack_bytes(k.asm["cubin"], tmp_path)) for k, _ in launched]
        assert [stack for stack in stacks if stack[1] > SPILL] == []
