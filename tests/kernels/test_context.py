"""Attention over sequences that are split over ranks, in worlds of 2 and 4 gloo processes.

The file is a test module and the script of a rank: each world is started once, makes all the
measurements, and the tests look at what its ranks found.
"""

import itertools
import json
import math
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from fox.kernels import (
    ContextSplit,
    context_parallel_attention,
    forgetting_attention,
    transferred_share,
)

NAMES = ("out", "lse", "dq", "dk", "dv", "dlog_f")
LAYOUTS = ("contiguous", "zigzag")
L = 13  # tokens of a chunk
TOLERANCE = -5.0


def drawn(T: int, **options: Any) -> list[Tensor]:
    from conftest import draw  # the script's folder is on its path

    return draw(T, **{"B": 2, "H": 4, "H_kv": 2, "dtype": torch.float64} | options)


def passes(attention: Callable[..., Any], inputs: list[Tensor], upstream: list[Tensor]) -> Any:
    """Output, lse and the gradient of every input."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    results = attention(*inputs, return_lse=True)
    gradients = torch.autograd.grad(results, inputs, upstream)
    return [x.detach() for x in (*results, *gradients)]


def differences(
    context: ContextSplit, inputs: list[Tensor], options: dict[str, Any], pruning: dict[str, Any]
) -> list[float]:
    """Of this rank's rows from those of one process, which does not prune."""
    shape = inputs[0].shape
    upstream = [torch.randn(shape), torch.randn(shape[0], shape[2], shape[1])]
    upstream = [x.to(inputs[0].dtype) for x in upstream]
    whole = passes(partial(forgetting_attention, **options), inputs, upstream)
    mine = passes(
        partial(context_parallel_attention, context=context, **options, **pruning),
        [context.part(x) for x in inputs],
        [context.part(upstream[0]), context.part(upstream[1], 2)],
    )
    dims = (1, 2, 1, 1, 1, 1)
    theirs = [context.part(x, dim) for x, dim in zip(whole, dims, strict=True)]
    apart = [(x - y).masked_fill(x == y, 0.0) for x, y in zip(mine, theirs, strict=True)]
    return [float(x.double().abs().max()) for x in apart]  # lse may be -inf in both


def exact_differences(context: ContextSplit, T: int) -> dict[str, list[float]]:
    start = torch.tensor([T // 3, 0])
    narrow = {"H_kv": 1, "dtype": torch.float32}
    cases: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "open": ({"gates": "open"}, {}),
        "mixed resets": ({"gates": "mixed resets"}, {}),
        "steep": ({"gates": "steep"}, {}),
        "every head its keys": ({"H_kv": 4}, {"softmax_scale": 0.7}),
        "window": ({}, {"window_size": L + 5}),
        "padding": ({"gates": "mixed resets"}, {"seq_start": start}),
        "float32": (narrow | {"gates": "mixed resets"}, {}),
        "bfloat16": ({"dtype": torch.bfloat16}, {}),
    }
    return {
        name: differences(context, drawn(T, **shape), options, {})
        for name, (shape, options) in cases.items()
    }


def adversarial(T: int) -> list[Tensor]:
    """Late queries are aligned with the oldest key, and opposed to their own."""
    q, k, v, log_f = drawn(T, gates="mixed", H_kv=4)
    q[:, T // 2 :] = 4 * k[:, :1]
    k[:, -T // 4 :] = -k[:, :1]
    return [q, k, v, log_f]


def lost_weight(context: ContextSplit, T: int) -> float:
    """The largest share of attention that a row of this rank loses by pruning."""
    inputs = adversarial(T)
    _, lse = forgetting_attention(*inputs, return_lse=True)
    _, mine = context_parallel_attention(
        *map(context.part, inputs), context, log_pruning_tolerance=TOLERANCE, return_lse=True
    )
    return float((1 - (mine - context.part(lse, 2)).exp()).max())


def sent(context: ContextSplit, T: int, gates: str) -> dict[str, float]:
    """Numbers that this rank sends in a forward and backward pass, and the share it should be."""
    inputs = drawn(T, gates="open")
    if gates == "shut":
        inputs[3][:, ::L] = -math.inf
    elif gates == "steep":
        inputs[3] -= 60.0 / L
    elif gates == "steep in one group":
        inputs[3][..., :2] -= 60.0 / L
    mine = [context.part(x).requires_grad_() for x in inputs]
    pruning = {"log_pruning_tolerance": TOLERANCE, "logit_bound": 1.0}
    counts, travel = [], dist.all_to_all_single

    def counting(arrived: Tensor, packed: Tensor, *splits: Any, **options: Any) -> None:
        counts.append(packed.numel())
        travel(arrived, packed, *splits, **options)

    dist.all_to_all_single = counting
    context_parallel_attention(*mine, context, **pruning).sum().backward()
    dist.all_to_all_single = travel
    share = transferred_share(mine[0], mine[1], mine[3], context, **pruning)
    return {"numbers": sum(counts), "share": share}


def kept(context: ContextSplit, T: int) -> dict[str, int]:
    """Numbers kept for the backward pass, and those of this rank's own tensors."""
    mine = [context.part(x).requires_grad_() for x in drawn(T, gates="open")]
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()), lambda x: x):
        results = context_parallel_attention(*mine, context, return_lse=True)
    return {"kept": sum(saved), "own": sum(x.numel() for x in (*mine, *results))}


def message(error: type[Exception], call: Callable[[], Any]) -> str:
    try:
        call()
    except error as caught:
        return str(caught)
    return "nothing was raised"


def messages(context: ContextSplit, rank: int) -> dict[str, str]:
    q, k, v, log_f = drawn(2 * L)
    attention = partial(context_parallel_attention, context=context)
    odd = [x[:, : 2 * L - 1] for x in (q, k, v, log_f)]
    unequal = [x[:, : 2 * L - 2 * rank] for x in (q, k, v, log_f)]

    def twice() -> None:
        x = q.clone().requires_grad_()
        torch.autograd.grad(attention(x, k, v, log_f).sum(), x, create_graph=True)

    return {
        "reference": message(ValueError, lambda: attention(q, k, v, log_f, backend="reference")),
        "odd": message(ValueError, lambda: attention(*odd)),
        "unequal": message(ValueError, lambda: attention(*unequal)),
        "other keys": message(ValueError, lambda: attention(q[:, 1:], k, v, log_f)),
        "part": message(ValueError, lambda: context.part(torch.zeros(1, 8 * L + 1))),
        "twice": message(NotImplementedError, twice),
    }


def measurements(rank: int, W: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for layout in LAYOUTS:
        context = ContextSplit(dist.group.WORLD, zigzag=layout == "zigzag")
        T = W * context.per_rank * L
        found[layout] = {
            "differences": exact_differences(context, T),
            "pruned": differences(
                context, drawn(T, gates="mixed"), {}, {"log_pruning_tolerance": TOLERANCE}
            ),
            "lost": lost_weight(context, T),
            "sent": {
                gates: sent(context, T, gates)
                for gates in ("open", "steep", "steep in one group", "shut")
            },
            "kept": kept(context, T),
        }
    if W == 2:
        found["messages"] = messages(ContextSplit(dist.group.WORLD), rank)
    return found


@pytest.fixture(scope="module")
def worlds(run_ranks: Callable[..., Any]) -> dict[int, list[dict[str, Any]]]:
    """What every rank measured, in worlds of 2 and 4."""
    return {W: run_ranks(__file__, W) for W in (2, 4)}


@pytest.fixture(params=[2, 4])
def world(
    request: pytest.FixtureRequest, worlds: dict[int, list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    return worlds[request.param]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_output_and_gradients_equal_those_of_one_process(
    world: list[dict[str, Any]], layout: str
) -> None:
    limits = {"float32": 5e-5, "bfloat16": 0.15}
    for found in world:
        for case, errors in found[layout]["differences"].items():
            for name, error in zip(NAMES, errors, strict=True):
                assert error <= limits.get(case, 1e-12), (case, name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_row_loses_more_weight_than_the_tolerance(
    world: list[dict[str, Any]], layout: str
) -> None:
    share = math.exp(TOLERANCE)
    for found in world:
        assert found[layout]["lost"] <= share
        assert max(found[layout]["pruned"]) <= 6 * share
    assert max(found[layout]["pruned"][0] for found in world) > 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_pruning_would_drop_is_not_sent(world: list[dict[str, Any]], layout: str) -> None:
    W, zigzag = len(world), layout == "zigzag"
    chunks = 2 * W if zigzag else W
    owner = [min(c, chunks - 1 - c) if zigzag else c for c in range(chunks)]
    # Each rank gets every chunk before its last one that is not its own; or, where 60 nats are
    # lost within a chunk, those right before its own.
    pairs = [(c, j) for c, j in itertools.product(range(chunks), repeat=2) if owner[c] != owner[j]]
    far = len({(owner[c], j) for c, j in pairs if j < c})
    near = len({(owner[c], j) for c, j in pairs if j == c - 1})
    numbers = 2 * L * (2 * 16 + 2)  # of a chunk and key head: both batch rows; k, v and two gates
    expected = {
        "open": 2 * far, "steep": 2 * near, "steep in one group": far + near, "shut": 0,
    }  # fmt: skip
    for gates, pieces in expected.items():
        counted = [found[layout]["sent"][gates] for found in world]
        # Twice on the way there, and gradients once on the way home.
        assert sum(count["numbers"] for count in counted) == 3 * numbers * pieces, gates
        assert {count["share"] for count in counted} == {pieces / (2 * far)}, gates


@pytest.mark.parametrize("layout", LAYOUTS)
def test_between_the_passes_a_rank_keeps_its_own_tokens_alone(
    world: list[dict[str, Any]], layout: str
) -> None:
    for found in world:
        assert found[layout]["kept"]["kept"] <= found[layout]["kept"]["own"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("reference", 'runs on "flash" and "blocked", but got backend "reference"'),
        ("odd", "must hold 2 chunk(s) of equal length, at least 1, but got T = 25 tokens"),
        ("unequal", "chunks of one length, but got chunks of [13, 12, 12, 13] tokens"),
        ("other keys", "must hold the tokens of q, (B, T) = (2, 25), but got (2, 26)"),
        ("part", "cut into 4 chunks of equal length, but got 105 tokens: pad it"),
        ("twice", "has no gradient of its gradient"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(
    worlds: dict[int, list[dict[str, Any]]], call: str, words: str
) -> None:
    for found in worlds[2]:
        assert words in found["messages"][call]


def main(rank: int, W: int, folder: Path) -> None:
    warnings.simplefilter("error")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=W)
    torch.manual_seed(0)
    (folder / f"{rank}.json").write_text(json.dumps(measurements(rank, W)))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
