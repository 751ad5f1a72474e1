"""Watching a run: gradients by layer, loss by position, and what the gates do.

Legend: B rows, T tokens of a row, H heads.
"""

import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from fox.figures import FOX, new_figure, plain_axes, save_figure
from fox.loss import IGNORED
from fox.observe import Observed, computed_shares, half_life, observe
from fox.train.lm import FoxLM
from fox.train.records import StepTable
from fox.train.rows import Batch

CURVES = 6  # of the loss by position, from the first validation to the last


class GradientNorms(Callback):
    """Logs gradient_norm/PART before clipping, at the log interval, of all devices' gradient.

    The parts are embeddings, layer0, layer1, ... and head; their squares add up to the square of
    gradient_norm.
    """

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Logs."""
        assert isinstance(pl_module, FoxLM)
        if (trainer.global_step + 1) % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        model, head = pl_module.network.model, pl_module.network.lm_head
        layers = {f"layer{i}": list(layer.parameters()) for i, layer in enumerate(model.layers)}
        tied = head.weight is model.embeddings.weight
        ends = [*model.norm.parameters(), *([] if tied else head.parameters())]
        parts = {"embeddings": list(model.embeddings.parameters())} | layers | {"head": ends}
        for name, parameters in parts.items():
            norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            pl_module.log(f"gradient_norm/{name}", norm)


class LossByPosition(Callback):
    """loss_by_position.csv and .png: what seeing more of a document is worth, at each validation.

    A position is the number of tokens of its document that a prediction sees in its row. Positions
    2^i to 2^(i+1) - 1 are put together: columns step, from, to (exclusive), tokens, loss.
    """

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Empties the sums."""
        assert isinstance(pl_module, FoxLM)
        self.sums = torch.zeros(pl_module.data.seq_len.bit_length(), 2, dtype=torch.float64)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Adds the losses of this device's rows."""
        self.sums += sums_by_position(outputs["token_losses"], batch, len(self.sums))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes a row for each range of positions, of all devices' rows."""
        if trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, FoxLM)
        # Devices that share rows have each added the same.
        own = self.sums.to(pl_module.device) / pl_module.context_parallel
        sums = trainer.strategy.reduce(own, reduce_op="sum")
        assert isinstance(sums, Tensor)
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        table = _losses(trainer)
        table.cut(step)
        rows = [
            {
                "step": step,
                "from": 1 << i,
                "to": 2 << i,
                "tokens": round(count),
                "loss": loss / count,
            }
            for i, (loss, count) in enumerate(sums.tolist())
            if count
        ]
        table.add(rows)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the picture."""
        table = _losses(trainer)
        if trainer.is_global_zero and table.rows() and can_draw(table.path):
            draw_losses(table)


class Gates(Callback):
    """gates.csv and .png: how many tokens it takes until the mean gate of a head leaves half.

    The network reads one row of the step's batch, the first of all devices', once more. Metrics:
    half_life_min, _median and _max over the heads, in tokens, and, where pruning is on,
    attention_computed: the share of causal attention that it leaves, mean over the heads.

    Args:
        every_n_steps: optimiser steps between two looks.
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        self.every_n_steps = every_n_steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets gates.csv go on where the checkpoint ends."""
        if trainer.is_global_zero:
            _half_lives(trainer).cut(trainer.global_step + 1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks if it is time."""
        assert isinstance(pl_module, FoxLM)
        step = trainer.global_step
        if step % self.every_n_steps or pl_module.config.fgate_type == "none":
            return
        half_lives, shares = self._look(trainer, pl_module, batch)
        if not trainer.is_global_zero:
            return
        rows = [
            {"step": step, "layer": layer, "head": head, "half_life": value}
            for layer, values in enumerate(half_lives.tolist())
            for head, value in enumerate(values)
        ]
        _half_lives(trainer).add(rows)
        metrics = {
            "half_life_min": half_lives.min().item(),
            "half_life_median": half_lives.median().item(),
            "half_life_max": half_lives.max().item(),
        }
        if shares is not None:
            metrics["attention_computed"] = shares.mean().item()
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step - 1)  # Lightning counts from 0

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the picture."""
        table = _half_lives(trainer)
        if trainer.is_global_zero and table.rows() and can_draw(table.path):
            draw_half_lives(table)

    def _look(
        self, trainer: Trainer, pl_module: FoxLM, batch: Batch
    ) -> tuple[Tensor, Tensor | None]:
        """(layers, H) each: half-lives, and shares where there is pruning."""
        # All devices read the same row: where weights are sharded, none can read alone.
        length = pl_module.data.seq_len // pl_module.context_parallel  # what one device can hold
        row = {name: batch[name][:1, :length] for name in ("input_ids", "document_starts")}
        row = trainer.strategy.broadcast(row)
        row = {name: tensor.to(pl_module.device) for name, tensor in row.items()}
        tolerance = pl_module.config.log_pruning_tolerance
        half_lives, shares = [], []

        def visit(observed: Observed) -> None:
            half_lives.append(half_life(observed))
            if tolerance is not None:
                shares.append(computed_shares(observed, tolerance))

        with trainer.precision_plugin.forward_context():
            observe(pl_module.network, row["input_ids"], visit, row["document_starts"])
        return torch.stack(half_lives), torch.stack(shares) if shares else None


def sums_by_position(token_losses: Tensor, batch: Mapping[str, Tensor], num_bins: int) -> Tensor:
    """Losses and predictions, summed over the positions 2^i to 2^(i+1) - 1: (num_bins, 2) float64.

    Args:
        token_losses: (B, T), of the prediction that is made at each token.
        batch: labels (B, T), the token itself or -100, and document_starts (B, T).
        num_bins: enough for position T.
    """
    starts, labels = batch["document_starts"], batch["labels"]
    place = torch.arange(labels.shape[1], device=labels.device)
    begin = torch.where(starts, place, 0).cummax(dim=1).values
    seen = (place - begin + 1)[:, :-1]  # (B, T - 1), at least 1
    counted = labels[:, 1:] != IGNORED
    bins = seen[counted].double().log2().floor().long().cpu()  # exact up to 2^53
    values = token_losses[:, :-1][counted].double().cpu()
    sums = torch.zeros(num_bins, 2, dtype=torch.float64)
    return sums.index_add(0, bins, torch.stack([values, torch.ones_like(values)], dim=1))


def can_draw(numbers: Path) -> bool:
    """Whether there is matplotlib; says so if not. A run must not fail for want of a picture."""
    if find_spec("matplotlib") is not None:
        return True
    print(f"{numbers} has no picture: pip install 'fox-transformer[plots]'", flush=True)
    return False


def draw_losses(table: StepTable) -> None:
    """loss_by_position.png: a curve for each of a few validations, from grey to red."""
    curves: dict[int, list[tuple[float, float]]] = {}
    for row in table.rows():
        middle = math.sqrt(int(row["from"]) * (int(row["to"]) - 1))
        curves.setdefault(int(row["step"]), []).append((middle, float(row["loss"])))
    steps = sorted(curves)
    count = min(CURVES, len(steps))
    chosen = [steps[round(i * (len(steps) - 1) / max(1, count - 1))] for i in range(count)]
    figure = new_figure(6.4, 4)
    axes = figure.add_subplot()
    for i, step in enumerate(chosen):
        colour = FOX if i == count - 1 else str(0.8 - 0.5 * i / count)  # grey, darker with time
        places, losses = zip(*curves[step], strict=True)
        axes.plot(places, losses, color=colour, marker="o", markersize=3, label=f"step {step:,}")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(frameon=False, fontsize=8)
    plain_axes(axes, "Held-out loss", "tokens of the document seen before", "nats per token")
    save_figure(figure, table.path.with_suffix(".png"))


def draw_half_lives(table: StepTable) -> None:
    """gates.png: a line of cells for each head, from the first layer down, over the steps."""
    from matplotlib.colors import LogNorm

    values: dict[int, dict[tuple[int, int], float]] = {}
    for row in table.rows():
        head = int(row["layer"]), int(row["head"])
        values.setdefault(int(row["step"]), {})[head] = float(row["half_life"])
    steps, heads = sorted(values), sorted(values[max(values)])
    cells = torch.tensor([[values[step][head] for step in steps] for head in heads])
    cells = cells.clamp(max=cells[cells.isfinite()].max() if cells.isfinite().any() else 1.0)
    figure = new_figure(7, min(12, max(3, 0.14 * len(heads))))
    axes = figure.add_subplot()
    image = axes.imshow(
        cells.numpy(), aspect="auto", cmap="magma", norm=LogNorm(), interpolation="nearest"
    )
    per_layer = len(heads) // (heads[-1][0] + 1)
    axes.set_yticks(range(0, len(heads), per_layer), [str(i) for i in range(heads[-1][0] + 1)])
    for border in range(per_layer, len(heads), per_layer):
        axes.axhline(border - 0.5, color="white", linewidth=1)
    ticks = sorted({round(i * (len(steps) - 1) / 5) for i in range(6)})
    axes.set_xticks(ticks, [f"{steps[tick]:,}" for tick in ticks])
    plain_axes(axes, "Half-life of each head's memory", "step", "layer, and its heads")
    axes.grid(visible=False)
    marks = torch.logspace(cells.min().log10(), cells.max().log10(), 5).tolist()
    bar = figure.colorbar(image, label="tokens", ticks=marks, format="{x:,.3g}")
    bar.minorticks_off()
    save_figure(figure, table.path.with_suffix(".png"))


def _losses(trainer: Trainer) -> StepTable:
    columns = ("step", "from", "to", "tokens", "loss")
    return StepTable(Path(trainer.default_root_dir) / "loss_by_position.csv", columns)


def _half_lives(trainer: Trainer) -> StepTable:
    columns = ("step", "layer", "head", "half_life")
    return StepTable(Path(trainer.default_root_dir) / "gates.csv", columns)
