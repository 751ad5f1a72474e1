"""What happens beside the training steps: speed, progress, records, interruption, export."""

import re
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fox.checkpoints import write_tokenizer
from fox.train.lm import FoxLM
from fox.train.resume import commit, write_next
from fox.train.sharding import gathered

# Dense 16-bit matrix products per second, summed in float32, from the makers' data sheets. The
# first pattern that is found in the device's name counts.
PEAK_FLOPS = {
    r"\bB200\b": 2250e12,
    r"\bG?H200\b": 989e12,
    r"\bH100 PCIe\b": 756e12,
    r"\bH100 NVL\b": 835e12,
    r"\bH100\b": 989e12,
    r"\bA100\b": 312e12,
    r"\bL40S\b": 362e12,
    r"\bL40\b": 181e12,
    r"\bL4\b": 121e12,
    r"\bA10\b": 125e12,
    r"\bRTX 4090$": 165e12,
    r"\bRTX 3090$": 71e12,
    r"\bV100-SXM": 125e12,
    r"\bV100-PCIE": 112e12,
    r"\bT4\b": 65e12,
}


class Interrupted(Exception):
    """Training was stopped by a signal, after a checkpoint was written."""


class Speed(Callback):
    """Logs tokens_per_second without the time of validation, and mfu where the peak is known.

    mfu is the share of the devices' 16-bit peak that the model's own arithmetic amounts to
    (FoxLM.flops_per_token).

    Args:
        peak_flops: of one device at the run's precision; if None, looked up by the device's name
            for 16-bit precision.
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        self.peak_flops = peak_flops

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks the device up and starts the clock."""
        half = "16" in str(trainer.precision)
        if self.peak_flops is None and half and trainer.strategy.root_device.type == "cuda":
            name = torch.cuda.get_device_name(trainer.strategy.root_device)
            self.peak_flops = known_peak(name)
        self.steps, self.since = 0, time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock."""
        self.paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock again."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self.since += time.perf_counter() - self.paused

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs at the trainer's log interval."""
        assert isinstance(pl_module, FoxLM)
        self.steps += 1
        if not _is_time_to_log(trainer):
            return
        float(trainer.callback_metrics["train_loss"])  # waits for the device
        now = time.perf_counter()
        tokens = self.steps * pl_module.data.tokens_per_batch
        tokens_per_second = tokens / (now - self.since)
        pl_module.log("tokens_per_second", tokens_per_second)
        if self.peak_flops is not None:
            flops = tokens_per_second * pl_module.flops_per_token()
            pl_module.log("mfu", flops / (self.peak_flops * trainer.world_size))
        self.steps, self.since = 0, now


class StepProgress(Callback):
    """One bar over the whole run; lines instead of a bar where stdout is no terminal."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells the size of the run."""
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, FoxLM)
        parameters = sum(parameter.numel() for parameter in pl_module.parameters())
        tokens = trainer.max_steps * pl_module.tokens_per_step
        print(
            f"{parameters:,} parameters, {trainer.max_steps:,} steps of "
            f"{pl_module.tokens_per_step:,} tokens: {tokens:,}; all in {trainer.default_root_dir}",
            flush=True,
        )
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            disable=not sys.stdout.isatty(),
        )
        self.task = self.bar.add_task("", total=trainer.max_steps)
        self.bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar; tells the metrics at the log interval."""
        step = trainer.global_step
        if not trainer.is_global_zero:
            return
        self.bar.update(self.task, completed=step)
        if _is_time_to_log(trainer):
            names = {"train_loss": "loss", "learning_rate": "lr", "tokens_per_second": "tokens/s"}
            values = trainer.callback_metrics
            told = [f"{short} {values[name]:.4g}" for name, short in names.items()]
            self._tell(" ".join(told), f"step {step}/{trainer.max_steps}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells the validation loss."""
        if trainer.is_global_zero and trainer.state.fn == "fit":
            loss, rate = (trainer.callback_metrics[f"val_{x}"] for x in ("loss", "bits_per_byte"))
            line = f"step {trainer.global_step}: validation loss {loss:.4f}, {rate:.4f} bits/byte"
            self.bar.console.print(line, soft_wrap=True, highlight=False)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leaves the terminal as it was."""
        if stage == "fit" and trainer.is_global_zero and hasattr(self, "bar"):
            self.bar.stop()

    def _tell(self, metrics: str, step: str) -> None:
        if self.bar.disable:
            print(f"{step} {metrics}", flush=True)
        self.bar.update(self.task, description=metrics)


class Interruption(Callback):
    """Ctrl-C or SIGTERM: finish the step, write checkpoints/last.ckpt, stop.

    Raises Interrupted from Trainer.fit. A second Ctrl-C stops at once, without a checkpoint.
    """

    def __init__(self) -> None:
        self.asked = self.saved = False
        self.before: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over the two signals."""
        if threading.current_thread() is threading.main_thread():  # only there Python allows it
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._ask)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes the checkpoint if any process was asked to stop."""
        asked = trainer.strategy.reduce_boolean_decision(self.asked, all=False)
        if asked:
            write_next(trainer)
            self.saved = True

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stops, once the checkpoint is written."""
        # Not earlier: after on_train_batch_end come the step's metrics and its validation.
        if self.saved:
            commit(trainer)
            raise Interrupted(f"stopped after step {trainer.global_step}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the signals back."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        print("\nfinishing this step; Ctrl-C again stops at once", flush=True)


class Export(Callback):
    """At the end of the run: the model and its tokenizer as a folder, model/."""

    # Not on_train_end, which does not come when a finished run is started again: a kill may have
    # come between the last checkpoint and the export.
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes config.json, model.safetensors, tokenizer.json and tokenizer_config.json."""
        assert isinstance(pl_module, FoxLM)
        network = gathered(pl_module.network)  # which needs every process
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir) / "model"
            network.save_pretrained(folder)
            text = pl_module.data.tokenizer.to_str(pretty=True)
            write_tokenizer(text, network.config, folder)


def known_peak(name: str) -> float | None:
    """Of a device by its name, at 16-bit precision; None if the table has none."""
    found = (peak for pattern, peak in PEAK_FLOPS.items() if re.search(pattern, name))
    return next(found, None)


def _is_time_to_log(trainer: Trainer) -> bool:
    return trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
