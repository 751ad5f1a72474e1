"""Train a small model on a synthetic task, then test it on rows that it never saw, longer ones too.

Legend: B batch, T time.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fox.config import FoxConfig
from fox.eval.tasks import Task
from fox.loss import IGNORED
from fox.model import FoxForCausalLM

BATCH, LEARNING_RATE, ROWS_PER_CELL = 64, 3e-3, 100
ROWS_AT_ONCE = 2**15  # tokens of a test batch
SIZE = {"hidden_size": 64, "num_hidden_layers": 2, "num_heads": 4, "intermediate_size": 128}

ModelName = Literal["fox-llama", "fox-pro", "transformer-llama", "transformer-pro"]
Cell = dict[str, Any]  # length, depth, accuracy


def task_config(model: ModelName, task: Task) -> FoxConfig:
    """One of the paper's four architectures, small enough to learn the task in minutes.

    FoX starts with time constants from 2 tokens to the training length, spread over its heads; with
    biases of 0 every head starts at 1.4 tokens, and learning takes several times as long.
    """
    changes: dict[str, Any] = {"vocab_size": task.vocab_size, **SIZE}
    if model.startswith("fox"):
        changes |= {"decay_time_min": 2.0, "decay_time_max": float(task.training_length)}
    return FoxConfig.preset(f"{model}-125m", **changes)


def train_and_test(
    task: Task,
    config: FoxConfig,
    *,
    seed: int,
    steps: int,
    lengths: Sequence[int],
    device: str = "cpu",
    advance: Callable[[str], None] = lambda note: None,
) -> list[Cell]:
    """Train a new model on rows of the task's training length and test it at the given lengths.

    Args:
        task: what to learn.
        config: the model; its vocabulary holds the task's.
        seed: of the weights, the training rows and the test rows; all models see the same rows.
        steps: of training, 64 rows each.
        lengths: tokens of the test rows, each an even number.
        device: "cpu" or "cuda".
        advance: called with a note after every training step and test cell.

    Returns:
        For each length and each of task.depths {"length", "depth", "accuracy"}: the share of 100
        rows answered right; of several questions in a row each counts, but a passkey is right as a
        whole.

    Raises:
        ValueError: a length cannot hold the task, or the vocabulary is too small.
    """
    for length in lengths:
        task.check_length(length)
    if config.vocab_size < task.vocab_size:
        raise ValueError(
            f"{task.name} needs a vocabulary of {task.vocab_size} tokens, but the model has "
            f"{config.vocab_size}"
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FoxForCausalLM(config).to(device)
    train(model, task, seed, steps, advance)
    return test(model.eval(), task, seed, lengths, advance)


def train(
    model: FoxForCausalLM, task: Task, seed: int, steps: int, advance: Callable[[str], None]
) -> None:
    """AdamW on fresh rows, the loss on the answers alone."""
    device = model.lm_head.weight.device
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        ids, labels = task.rows(BATCH, task.training_length, generator)
        loss = F.cross_entropy(*answers(model, ids.to(device), labels.to(device)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        advance(f"loss {loss.item():.3f}")


@torch.no_grad()
def test(
    model: FoxForCausalLM,
    task: Task,
    seed: int,
    lengths: Sequence[int],
    advance: Callable[[str], None],
) -> list[Cell]:
    """Share of right answers per length and depth, on rows that training never drew."""
    device = model.lm_head.weight.device
    generator = torch.Generator().manual_seed(2**32 + seed)
    cells = []
    for length in lengths:
        for depth in task.depths:
            ids, labels = task.rows(ROWS_PER_CELL, length, generator, depth)
            right = []
            for rows in torch.arange(ROWS_PER_CELL).split(max(1, ROWS_AT_ONCE // length)):
                logits, wanted = answers(model, ids[rows].to(device), labels[rows].to(device))
                right.append((logits.argmax(-1) == wanted).view(len(rows), -1).cpu())
            by_row = torch.cat(right)  # (B, questions)
            if task.whole_rows:
                by_row = by_row.all(1)
            accuracy = by_row.double().mean().item()
            cells.append({"length": length, "depth": depth, "accuracy": accuracy})
            advance(f"length {length}")
    return cells


def answers(model: FoxForCausalLM, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (questions, V) where the rows ask, and the right answers (questions,)."""
    asked = labels != IGNORED
    return model.lm_head(model.model(ids)[asked]), labels[asked]
