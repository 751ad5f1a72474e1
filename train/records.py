"""What a run writes down: metrics.csv row by row, validation.json and ngram.json."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from fox.files import whole_file, write_json, write_text
from fox.train.lm import FoxLM
from fox.train.ngram import ngram_losses


class StepTable:
    """A CSV file whose rows tell a step; a run that goes on cuts it back to where it does.

    Args:
        path: of the file.
        columns: those known from the start; others may come with later rows.
    """

    def __init__(self, path: Path, columns: Sequence[str] = ("step",)) -> None:
        self.path, self.columns = path, list(columns)

    def rows(self, before: float = math.inf) -> list[dict[str, str]]:
        """The rows of the steps before `before`, as text."""
        if not self.path.is_file():
            return []
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # a kill may have torn the last line
        return [row for row in csv.DictReader(whole.splitlines()) if int(row["step"]) < before]

    def cut(self, step: int) -> None:
        """Forgets the rows from this step on."""
        if not self.path.is_file():
            return
        rows = self.rows(before=step)
        self.columns = list(rows[0]) if rows else self.columns
        self._rewrite(rows)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends rows; they are with the operating system when this returns."""
        new = [name for name in dict.fromkeys(chain(*rows)) if name not in self.columns]
        if new or not self.path.is_file():
            before = self.rows()
            self.columns += new
            self._rewrite([*before, *rows])
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerows(rows)

    def _rewrite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        with (
            whole_file(self.path) as scratch,
            scratch.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


class MetricsFile(Logger):
    """metrics.csv in a folder: one row per logged step, kept over a resume.

    Lightning's own CSVLogger deletes the file of an earlier call. This one keeps the rows up to
    the step that a resumed run begins with, so that the file is that of an unbroken run.

    Args:
        folder: where metrics.csv goes.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.table = StepTable(Path(folder) / "metrics.csv")

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
        return str(self.table.path.parent)

    @rank_zero_only
    def start(self, step: int) -> None:
        """Keeps what an earlier call wrote about the first `step` steps, and forgets the rest."""
        self.table.cut(step)  # Lightning counts from 0

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Appends a row."""
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        self.table.add([{"step": step} | values])

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """config.yaml holds them."""


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


class WholeConfig(SaveConfigCallback):
    """config.yaml, whole or not at all: every setting of the run, to start another one with."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the file, when the run starts."""
        text = self.parser.dump(self.config, skip_none=False)
        write_text(Path(trainer.default_root_dir) / "config.yaml", text)


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
