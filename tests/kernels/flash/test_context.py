"""The Triton kernels over a sequence that is split over two processes.

The file is a test module and the script of a rank, as tests/kernels/test_context.py.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from fox.kernels import ContextSplit, context_parallel_attention, forgetting_attention

T, FIRST = 76, 9


def measurements(context: ContextSplit) -> list[float]:
    """Largest differences of output and gradients, with padding and a reset, from "blocked"."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, log_f, d_out = (
        torch.randn(1, T, *shape, generator=generator)
        for shape in ((2, 16), (1, 16), (1, 16), (2,), (2, 16))
    )
    log_f = F.logsigmoid(log_f + torch.tensor([-2.0, 4.0]))
    log_f[:, T // 2] = -torch.inf
    inputs, start = [q, k, v, log_f], torch.tensor([FIRST])
    whole = [x.requires_grad_() for x in inputs]
    out = forgetting_attention(*whole, seq_start=start)
    theirs = [out, *torch.autograd.grad(out, whole, d_out)]

    mine = [context.part(x).detach().requires_grad_() for x in inputs]
    tolerance = {"log_pruning_tolerance": -16.0, "backend": "flash"}
    out = context_parallel_attention(*mine, context, seq_start=start, **tolerance)
    ours = [out, *torch.autograd.grad(out, mine, context.part(d_out))]
    return [
        float((x - context.part(y)).abs().max().detach()) for x, y in zip(ours, theirs, strict=True)
    ]


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="runs on CPUs: set TRITON_INTERPRET=1"
)
def test_two_ranks_equal_one_process_without_triton(run_ranks: Callable[..., Any]) -> None:
    for errors in run_ranks(__file__, 2):
        assert max(errors) <= 5e-5


def main(rank: int, W: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=W)
    found = measurements(ContextSplit(dist.group.WORLD))
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
