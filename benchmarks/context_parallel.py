"""What does attention over a split sequence send, and what does pruning spare?

A forward and backward pass of context_parallel_attention in worlds of 1, 2 and 4 gloo processes on
this machine, in float32, H = 4, D = 64, with the gates of attention_cpu.py: remember (nothing can
be pruned), mixed (three local heads and a global one) and forget (local heads alone). Without
pruning and with log_pruning_tolerance = -10; split in zigzag and contiguously.

Bytes are counted where they are handed to the process group, over all ranks. Seconds are of the
slowest rank, the median of 3 passes: processes that share this machine's cores say nothing about
machines that do not, and a contiguous split only where the cores are as many as the ranks.

    python benchmarks/context_parallel.py --output benchmarks/results/context_parallel.json
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from attention_cpu import GATES, draw, machine
from torch import Tensor

from fox.kernels import ContextSplit, context_parallel_attention, transferred_share

REPETITIONS = 3


def measure(
    context: ContextSplit, inputs: list[Tensor], tolerance: float | None
) -> dict[str, float]:
    """Bytes that all ranks send, the share of keys that travel, and the slowest rank's seconds."""
    mine = [context.part(x).requires_grad_() for x in inputs]
    sent, seconds, travel = [0], [], dist.all_to_all_single

    def counting(arrived: Tensor, packed: Tensor, *splits: Any, **options: Any) -> None:
        sent[0] += packed.numel() * packed.element_size()
        travel(arrived, packed, *splits, **options)

    dist.all_to_all_single = counting
    for _ in range(REPETITIONS):
        sent[0] = 0
        dist.barrier()
        start = time.perf_counter()
        context_parallel_attention(*mine, context, log_pruning_tolerance=tolerance).sum().backward()
        dist.barrier()  # the slowest rank's time is everyone's
        seconds.append(time.perf_counter() - start)
    dist.all_to_all_single = travel
    total = torch.tensor(sent[0])
    dist.all_reduce(total)
    q, k, _, log_f = mine
    share = transferred_share(q, k, log_f, context, log_pruning_tolerance=tolerance)
    return {"bytes": int(total), "share": share, "seconds": statistics.median(seconds)}


def run_rank(rank: int, W: int, T: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=W)
    results = []
    for gates, zigzag, tolerance in itertools.product(GATES, (True, False), (None, -10.0)):
        context = ContextSplit(dist.group.WORLD, zigzag)
        found = measure(context, draw(T, gates, 4, 64), tolerance)
        setting = {"gates": gates, "ranks": W, "zigzag": zigzag, "tolerance": tolerance}
        results.append(setting | found)
    if rank == 0:
        (Path(folder) / "results.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096, help="of the whole sequence")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    results = []
    for W in (1, 2, 4):
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(run_rank, (W, args.tokens, folder), W)
            results += json.loads((Path(folder) / "results.json").read_text())
    for row in results:
        split = "zigzag" if row["zigzag"] else "contiguous"
        print(
            f"{row['ranks']} ranks, {split:10}, {row['gates']:8}, tolerance {row['tolerance']}: "
            f"{row['bytes'] / 2**20:6.2f} MiB, share {row['share']:.3f}, {row['seconds']:.3f} s"
        )
    if args.output:
        command = " ".join(["python", "benchmarks/context_parallel.py", *sys.argv[1:]])
        here = machine() | {"command": command, "cores": os.cpu_count()}
        report = {"machine": here, "tokens": args.tokens}
        args.output.write_text(json.dumps(report | {"results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
