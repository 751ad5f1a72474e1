"""Models over sequences that are split over ranks, in worlds of 2 and 4 gloo processes.

The file is a test module and the script of a rank, as tests/kernels/test_context.py.
"""

import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from fox.kernels import ContextSplit

KINDS = ("fox-pro", "fox-pro-gqa", "fox-pro-rope", "fox-pro-pruned", "fox-llama", "transformer-pro")
L = 5  # tokens of a chunk


def batch(T):
    """Two rows of packed documents; one begins with a chunk, one within, one at a chunk's end."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(31, (2, T), generator=generator)
    starts = torch.zeros(2, T, dtype=torch.bool)
    starts[0, [0, L, 2 * L - 1]] = True
    starts[1, L + 2] = True
    labels = F.pad(ids[:, 1:], (0, 1), value=-100)
    return {"input_ids": ids, "labels": labels, "document_starts": starts}


def loss_and_gradients(model, batch, context=None):
    """The mean over the predicted tokens of all ranks, and its gradients."""
    targets = (batch["labels"] != -100).sum()
    if context is not None:
        batch = {name: context.part(x) for name, x in batch.items()}
    model.zero_grad()
    summed = model(**batch, context=context, shift_labels=False, reduction="sum").loss
    loss = summed / targets
    loss.backward()
    results = [loss.detach(), *(parameter.grad for parameter in model.parameters())]
    if context is not None:
        for x in results:
            dist.all_reduce(x, group=context.group)
    return results


def difference(model, context, T):
    whole = [x.clone() for x in loss_and_gradients(model, batch(T))]
    ours = loss_and_gradients(model, batch(T), context)
    return max(float((x - y).abs().max() / y.abs().max()) for x, y in zip(ours, whole, strict=True))


def losses_of_training(config, build, T, context=None):
    model = build(config).train()
    model.model.gradient_checkpointing = context is not None and context.zigzag
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        losses.append(float(loss_and_gradients(model, batch(T), context)[0]))
        optimizer.step()
    return losses


def message(call):
    try:
        call()
    except ValueError as error:
        return str(error)
    return "nothing was raised"


def measurements(W):
    from conftest import VARIANTS, random_model  # the script's folder is on its path

    found = {}
    for layout in ("contiguous", "zigzag"):
        context = ContextSplit(dist.group.WORLD, zigzag=layout == "zigzag")
        T = W * context.per_rank * L
        models = {kind: random_model(VARIANTS[kind]).double() for kind in KINDS}
        found[layout] = {
            "differences": {kind: difference(x, context, T) for kind, x in models.items()},
            "losses": losses_of_training(VARIANTS["fox-pro-rope"], random_model, T, context),
            "one process": losses_of_training(VARIANTS["fox-pro-rope"], random_model, T),
        }
    model, ids = random_model(VARIANTS["fox-pro"]), torch.zeros(1, 4, dtype=torch.int64)
    bounds = torch.tensor([0, 4])
    with torch.no_grad():
        found["messages"] = {
            "cu_seqlens": message(lambda: model(ids, cu_seqlens=bounds, context=context)),
            "mask": message(lambda: model(ids, attention_mask=ids + 1, context=context)),
            "cache": message(lambda: model(ids, cache=model.new_cache(1), context=context)),
            "labels": message(lambda: model(ids, labels=ids, context=context)),
        }
    return found


@pytest.fixture(scope="module", params=[2, 4])
def world(request, run_ranks):
    """What every rank of a world measured."""
    return run_ranks(__file__, request.param)


@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
def test_loss_and_parameter_gradients_equal_those_of_one_process(world, layout):
    # Norms and gates compute in float32, in float64 models too.
    for found in world:
        for kind, error in found[layout]["differences"].items():
            assert error <= 5e-6, kind


@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
def test_training_steps_equal_those_of_one_process(world, layout):
    for found in world:
        alone = found[layout]["one process"]
        assert alone[-1] < alone[0] - 0.1
        assert found[layout]["losses"] == pytest.approx(alone, abs=1e-5)


def test_what_cannot_be_split_is_refused(world):
    for found in world:
        messages = found["messages"]
        assert "documents by document_starts" in messages["cu_seqlens"]
        assert "neither padding nor a cache" in messages["mask"]
        assert "neither padding nor a cache" in messages["cache"]
        assert "shift labels before they are split" in messages["labels"]


def main(rank, W, folder):
    warnings.simplefilter("error")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=W)
    (folder / f"{rank}.json").write_text(json.dumps(measurements(W)))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
