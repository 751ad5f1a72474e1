"""Going on after a kill: checkpoints that are whole, and a folder that one run has to itself."""

import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_only

from fox.files import locked, remove_leftovers, whole_file

# What may be given anew to a run: where and how it computes changes its losses by rounding only.
FREE = {
    "trainer.default_root_dir",
    "trainer.accelerator",
    "trainer.strategy",
    "trainer.devices",
    "trainer.num_nodes",
    "data.num_workers",
    "model.micro_batch_tokens",
    "model.activation_checkpointing",
    "model.compile_blocks",
    "model.context_parallel",
}


def last_checkpoint(folder: str | Path) -> Path:
    """Where a run keeps its newest checkpoint; the one before is previous.ckpt beside it."""
    return Path(folder) / "checkpoints" / "last.ckpt"


def is_whole(path: Path) -> bool:
    """Whether every byte of a checkpoint is as it was written, by the checksums in the file."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError, struct.error):
        return False  # each is what some torn or overwritten part of a zip file leads to


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The newest whole checkpoint of a run; None if the folder holds no run.

    Raises:
        ValueError: there are checkpoints, but none is whole.
    """
    last = last_checkpoint(folder)
    there = [path for path in (last, last.with_name("previous.ckpt")) if path.is_file()]
    for path in there:
        if is_whole(path):
            return path
        tell(f"{path} is damaged: it is passed over")
    if there:
        raise ValueError(
            f"expected a whole checkpoint in {last.parent}, but each is damaged: "
            f"remove {folder} to start again"
        )
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint, its tensors still on the disk.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a checkpoint, but there is no {path}")
    if not is_whole(path):
        raise ValueError(f"expected a whole checkpoint, but {path} is damaged")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def difference(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], defaults: Mapping[str, Any]
) -> str | None:
    """The first setting in which a run differs from another, in words; None if it is the same run.

    Args:
        theirs, ours: nested settings, as a checkpoint keeps them.
        defaults: of the settings that were not there yet when a run was made.
    """
    flat_theirs, flat_ours = _flat(defaults) | _flat(theirs), _flat(ours)
    for name in flat_theirs | flat_ours:
        old, new = flat_theirs.get(name), flat_ours.get(name)
        if old != new and not any(name == free or name.startswith(f"{free}.") for free in FREE):
            return f"{name} = {old}, but got {new}"
    return None


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """The folder for this run alone, and without what a killed one left half-written.

    Raises:
        ValueError: another process trains in the folder.
    """
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        yield  # the first process claims it for all
        return
    with locked(folder, f"another process is training in {folder}: stop it first"):
        remove_leftovers(folder)
        last_checkpoint(folder).with_name("next.ckpt").unlink(missing_ok=True)
        yield


@rank_zero_only
def tell(line: str) -> None:
    """Prints a line, once for all processes."""
    print(line, flush=True)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes checkpoints beside their place and renames them when they are on the disk."""

    # Lightning's own goes through memory and /tmp, from where the file is copied into its place.

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None
    ) -> None:
        """Writes a file."""
        with whole_file(Path(path)) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())


def write_next(trainer: Trainer) -> None:
    """Writes next.ckpt, when a step ends: that is where Lightning can go on from."""
    path = last_checkpoint(trainer.default_root_dir).with_name("next.ckpt")
    trainer.save_checkpoint(path, weights_only=False)


def commit(trainer: Trainer) -> None:
    """Makes next.ckpt the last checkpoint, when the next step begins.

    By then the metrics and the validation of its step are written, and no kill can part them.
    """
    last = last_checkpoint(trainer.default_root_dir)
    if trainer.is_global_zero:
        if last.is_file():
            last.replace(last.with_name("previous.ckpt"))
        last.with_name("next.ckpt").replace(last)


class LastCheckpoint(Checkpoint):
    """Writes checkpoints/last.ckpt every so many steps and at the end; keeps the one before, too.

    Args:
        every_n_steps: optimiser steps between two checkpoints.
    """

    def __init__(self, every_n_steps: int = 500) -> None:
        self.every_n_steps = every_n_steps
        self.settings: dict[str, Any] = {}
        self.written = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the checkpoint that the run goes on from in the place of a damaged newer one."""
        last = last_checkpoint(trainer.default_root_dir)
        if trainer.is_global_zero and trainer.ckpt_path == str(last.with_name("previous.ckpt")):
            last.with_name("previous.ckpt").replace(last)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes if it is time."""
        step = trainer.global_step
        ends = step >= trainer.max_steps or trainer.should_stop
        if ends or step % self.every_n_steps == 0:
            write_next(trainer)
            self.written = True

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Makes what was written the last checkpoint."""
        if self.written:
            commit(trainer)
        self.written = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the end of the run the last checkpoint."""
        if not self.written:  # a validation has stopped the run
            write_next(trainer)
        commit(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Puts the run's settings in: only the same run goes on from them by itself."""
        checkpoint["settings"] = self.settings
