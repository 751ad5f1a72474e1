"""What a run writes down: metrics.csv row by row, validation.json and ngram.json."""

import csv
import json
import math
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from fox.files import whole_file, write_json, write_text
from fox.train.lm import FoxLM
from fox.train.ngram import ngram_losses


class MetricsFile(Logger):
    """metrics.csv in a folder: one row per logged step, kept over a resume.

    Lightning's own CSVLogger deletes the file of an earlier call. This one keeps the rows up to
    the step that a resumed run begins with, so that the file is that of an unbroken run.

    Args:
        folder: where metrics.csv goes.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.file = Path(folder) / "metrics.csv"
        self.rows: list[dict[str, Any]] = []
        self.columns = ["step"]

    @property
    def name(self) -> str:
        """Lightning asks for one; the folder says it all."""
        return ""

    @property
    def version(self) -> str:
        """Lightning asks for one; the folder says it all."""
        return ""

    @property
    def save_dir(self) -> str:
        """Where Lightning's CLI puts config.yaml."""
        return str(self.file.parent)

    @rank_zero_only
    def start(self, step: int) -> None:
        """Keeps what an earlier call wrote about the first `step` steps, and forgets the rest."""
        if self.file.is_file() and step:
            with self.file.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) < step]
            self.columns = list(rows[0]) if rows else self.columns
            self.rows = rows
        self._rewrite()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Appends a row, and flushes it to the disk."""
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        row = {"step": step} | values
        new = [name for name in row if name not in self.columns]
        self.columns += new
        self.rows.append(row)
        if new:
            self._rewrite()
            return
        with self.file.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """config.yaml holds them."""

    def _rewrite(self) -> None:
        with (
            whole_file(self.file) as scratch,
            scratch.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)


class RunRecord(Callback):
    """metrics.csv over a resume, and validation.json: what every validation of the run found.

    Its rows are step, tokens, loss, perplexity and bits_per_byte; the first is the validation
    before the first step: the loss at initialisation.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets metrics.csv and validation.json go on where the checkpoint ends."""
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.start(trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds a row."""
        if trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, FoxLM)
        path = Path(trainer.default_root_dir) / "validation.json"
        step = trainer.global_step
        rows = json.loads(path.read_text(encoding="utf-8")) if step and path.is_file() else []
        row: dict[str, float] = {"step": step, "tokens": step * pl_module.tokens_per_step}
        for name in ("loss", "perplexity", "bits_per_byte"):
            row[name] = float(trainer.callback_metrics[f"val_{name}"])
        rows = [*(row for row in rows if row["step"] < step), row]
        write_text(path, json.dumps(rows, indent=2) + "\n")  # a loss may be nan: that is news, too


class NgramBaseline(Callback):
    """ngram.json: the losses of n-gram models on exactly the tokens that validation predicts."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts, which takes seconds; a resumed run has them already."""
        if not trainer.is_global_zero or trainer.global_step:
            return
        assert isinstance(pl_module, FoxLM)
        data = pl_module.data
        num_batches = trainer.num_val_batches[0]
        batches = islice(data.validation_batches(0, 1), int(num_batches))
        losses = ngram_losses(data.ready.train, batches, data.vocab_size)
        to_bits = 1 / math.log(2) / data.bytes_per_token
        path = Path(trainer.default_root_dir) / "ngram.json"
        write_json(
            path,
            {
                name: {"loss": loss, "bits_per_byte": loss * to_bits}
                for name, loss in losses.items()
            },
        )
