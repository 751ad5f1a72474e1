"""fox-train: pretraining from the command line, on LightningCLI."""

import difflib
import json
import logging
import sys
import traceback
import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import torch
from jsonargparse import Namespace
from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from fox.train.callbacks import (
    Export,
    Interrupted,
    Interruption,
    Speed,
    StepProgress,
)
from fox.train.data import TextData
from fox.train.lm import FoxLM
from fox.train.presets import paper_run, paper_runs
from fox.train.records import MetricsFile, RunRecord, WholeConfig
from fox.train.resume import (
    LastCheckpoint,
    WholeCheckpoints,
    claimed,
    difference,
    last_checkpoint,
    newest_checkpoint,
    read_checkpoint,
    tell,
)
from fox.train.start import setting, start_arguments
from fox.train.watch import Gates, GradientNorms, LossByPosition

FRONT_PAGE = """\
fox-train: pretrain FoX and Transformer language models

  fox-train fit --config preset:demo                     the demo: minutes on a CPU, no download
  fox-train fit --config my.yaml --data.files 'corpus/*.txt'
  fox-train fit --config my.yaml                         again: goes on after Ctrl-C or a crash
  fox-train fit --config my.yaml --trainer.max_steps 9000 --ckpt_path last    makes it longer
  fox-train validate --ckpt_path runs/demo/checkpoints/last.ckpt
  fox-train fit --config my.yaml --print_config          every setting of the run

Usual settings (in the YAML file, or on the command line, which wins):
  --trainer.default_root_dir runs/NAME   everything of the run goes there
  --trainer.max_steps N                  length of the run
  --model.config.hidden_size C           and the other fields of FoxConfig
  --model.learning_rate LR
  --model.init_from FOLDER               begin with a checkpoint's weights, and its model.config
  --data.files PATTERN                   your own text: .txt, .jsonl, .parquet
  --data.dataset NAME                    or a dataset; or --data.folder F, of fox-data prepare
  --data.vocab_size V                    of the tokenizer and the model
  --data.seq_len T                       tokens of a row
  --data.batch_size B                    rows of a step
  --checkpoint.every_n_steps N
  --gates.every_n_steps N                how often half-lives and pruning are looked at
  --speed.peak_flops F                   of a device, for mfu, where it is not known by name
  --trainer.logger WandbLogger           besides metrics.csv, in TensorBoard's place

All settings, some hundred lines: fox-train fit --help
"""
PRESET = "preset:"
RUN_FOLDER = "runs/default"
TRAINER_DEFAULTS: dict[str, Any] = {
    "default_root_dir": RUN_FOLDER,
    "max_epochs": -1,  # max_steps decides
    "num_sanity_val_steps": -1,  # the loss at initialisation is part of the record
    "check_val_every_n_epoch": None,  # val_check_interval counts steps over all epochs
    "val_check_interval": 1000,
    "log_every_n_steps": 10,
    "gradient_clip_val": 1.0,
    "use_distributed_sampler": False,  # TrainingBatches knows its rank; Lightning would shuffle
    "enable_progress_bar": False,  # StepProgress
    "enable_model_summary": False,
    "enable_autolog_hparams": False,  # config.yaml holds them
}


class FoxParser(LightningArgumentParser):
    """Says what is wrong in one line, guesses what was meant, and exits with 2."""

    options: Iterable[str] = ()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Instead of the usage of every option."""
        message = " ".join(str(message).split())
        words = message.replace("'", " ").replace('"', " ").replace("=", " ").split()
        known = {option.lstrip("-") for option in self.options}
        for word in (word.strip(".,:").lstrip("-") for word in words):
            guesses = difflib.get_close_matches(word, known, n=1, cutoff=0.8)
            if "." in word and word not in known and guesses:
                message += f" (did you mean --{guesses[0]}?)"
                break
        fail(message)


class FoxCLI(LightningCLI):
    """FoxLM on TextData: one folder per run, and checkpoints that go on exactly."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """fit and validate, with the arguments that are not settings."""
        known = LightningCLI.subcommands()
        return {name: known[name] for name in ("fit", "validate")}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Takes no abbreviations: a misspelt name must not pass for another."""
        return super().init_parser(allow_abbrev=False, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """One vocabulary size for data and model; checkpoints and what is watched."""
        parser.link_arguments("data.vocab_size", "model.config.vocab_size")
        parser.add_lightning_class_args(Speed, "speed")
        parser.add_lightning_class_args(Gates, "gates")
        parser.add_lightning_class_args(LastCheckpoint, "checkpoint")
        FoxParser.options = {*FoxParser.options, *parser._option_string_actions}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Without LightningCLI's warning that args are for use from Python."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        # LightningCLI lets a checkpoint's settings win over the command line; here it is the other
        # way round (see checkpoint_arguments), and `fit` refuses a checkpoint that does not fit.
        config = self.config[self.config.subcommand]
        last = str(last_checkpoint(config.trainer.default_root_dir))
        fit = self.config.subcommand == "fit"
        self.change_allowed = fit and config.ckpt_path in ("last", last)
        if self.change_allowed:
            config.ckpt_path = None  # config.yaml is that of a run that was never broken

    def before_instantiate_classes(self) -> None:
        """Finds where to go on; refuses what would end badly, before anything is built."""
        self.checkpoint: str | None = self.config[self.subcommand].ckpt_path
        self.first_step = 0
        if self.subcommand != "fit":
            return
        config = self.config.fit
        folder, steps = config.trainer.default_root_dir, config.trainer.max_steps
        if steps < 1:
            raise ValueError(
                f"expected trainer.max_steps, the length of the run, to be at least 1, "
                f"but got {steps}"
            )
        if "WandbLogger" in str(config.trainer.logger) and find_spec("wandb") is None:
            raise ModuleNotFoundError(
                "WandbLogger needs wandb: pip install 'fox-transformer[wandb]'"
            )
        self.settings = self._plain(config)
        self.checkpoint = self.checkpoint_to_go_on_from(folder)
        if self.checkpoint is not None:
            self.first_step = read_checkpoint(Path(self.checkpoint))["global_step"]
            at = f"after step {self.first_step:,} of {steps:,}"
            done = self.first_step >= steps
            tell(f"the run in {folder} is finished" if done else f"going on {at} in {folder}")

    def checkpoint_to_go_on_from(self, folder: str) -> str | None:
        """The newest of the run in this folder, if it is this run; else the one that was given."""
        newest = newest_checkpoint(folder)
        if newest is None and self.change_allowed:
            raise FileNotFoundError(
                f"expected a checkpoint, but there is no {last_checkpoint(folder)}"
            )
        if newest is None:
            return self.checkpoint
        theirs = read_checkpoint(newest)["settings"]
        differs = difference(theirs, self.settings, self._plain(self._parser("fit").get_defaults()))
        if differs and not self.change_allowed:
            raise ValueError(
                f"{folder} holds a run with {differs}: choose another --trainer.default_root_dir, "
                "or remove the folder, or change the run with --ckpt_path last"
            )
        return str(newest)

    def _plain(self, config: Namespace) -> dict[str, Any]:
        text = self._parser("fit").dump(
            config, format="json", skip_none=False, skip_validation=True
        )
        return json.loads(text)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return super()._prepare_subcommand_kwargs(subcommand) | {"ckpt_path": self.checkpoint}

    def _run_subcommand(self, subcommand: str) -> None:
        folder = Path(self.config[subcommand].trainer.default_root_dir)
        with claimed(folder) if subcommand == "fit" else nullcontext():
            super()._run_subcommand(subcommand)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds what every run has: its records, and in `fit` progress, interruption and export."""
        config = self.config_init[self.subcommand].trainer
        folder = config.default_root_dir
        config.precision = config.precision or usual_precision(config.accelerator)
        if self.subcommand != "fit":
            self.save_config_callback, config.logger = None, False
            return super().instantiate_trainer(**kwargs)
        # Through the defaults they come after Speed, whose numbers they show.
        callbacks = [GradientNorms(), LossByPosition(), StepProgress(), RunRecord()]
        callbacks += [Interruption(), Export()]
        self.trainer_defaults = self.trainer_defaults | {"callbacks": callbacks}
        self.config_init.fit.checkpoint.settings = self.settings
        config.plugins = [*_listed(config.plugins), WholeCheckpoints()]
        if config.logger in (None, True):
            # What a killed run has told TensorBoard about later steps is hidden.
            config.logger = TensorBoardLogger(folder, "", "", purge_step=self.first_step)
        if config.logger is not False:
            config.logger = [MetricsFile(folder), *_listed(config.logger)]
        return super().instantiate_trainer(**kwargs)


def main(args: Sequence[str] | None = None) -> None:
    """The console script fox-train.

    Exit status: 0, 2 after a wrong setting or input (one line on stderr), 130 after Ctrl-C.
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help"):
        print(FRONT_PAGE, end="")
        return
    _silence_two_notices()
    try:
        FoxCLI(
            FoxLM,
            TextData,
            args=start_arguments(checkpoint_arguments(preset_paths(args)), RUN_FOLDER),
            parser_class=FoxParser,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            save_config_callback=WholeConfig,
            save_config_kwargs={"save_to_log_dir": False},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # it would put more than plain values there
        )
    except Interrupted as interrupted:
        print(f"{interrupted}: the same command goes on", flush=True)
        raise SystemExit(130) from None
    except (KeyboardInterrupt, SystemExit) as stop:
        # From Ctrl-C before the first step, or again after it, Lightning makes a status of 1.
        if isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt):
            raise SystemExit(130) from None
        raise
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        if not _raised_by_us(error):
            raise
        fail(" ".join(str(error).split()))


def fail(message: str) -> NoReturn:
    """One line on stderr, exit status 2."""
    print(f"fox-train: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def usual_precision(accelerator: str) -> str:
    """bf16-mixed (float32 weights, bfloat16 matrix products) on CUDA devices, else 32-true."""
    cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if cuda else "32-true"


def preset_paths(args: Sequence[str]) -> list[str]:
    """Replaces preset:NAME by the config that ships with the package: a path, or settings."""
    folder = Path(str(files("fox.train.configs")))
    paths = []
    for arg in args:
        before, preset, name = arg.partition(PRESET)
        if preset and before in ("", "--config=", "-c="):
            known = [*sorted(path.stem for path in folder.glob("*.yaml")), *paper_runs()]
            if name not in known:
                raise ValueError(f"expected a preset among {', '.join(known)}, but got {name!r}")
            paper = name in paper_runs()
            arg = before + (json.dumps(paper_run(name)) if paper else f"{folder / name}.yaml")
        paths.append(arg)
    return paths


def checkpoint_arguments(args: Sequence[str]) -> list[str]:
    """Lets `validate --ckpt_path FILE` find the model's and the data's settings in the file.

    They come first, so that what the command line says wins.
    """
    file = setting(args, "ckpt_path")
    if args[0] == "fit" or file is None:
        return list(args)
    path = Path(file)
    checkpoint = read_checkpoint(path)
    settings = {
        "model": checkpoint["hyper_parameters"],
        "data": checkpoint["datamodule_hyper_parameters"],
        "trainer": {"default_root_dir": str(path.parent.parent)},
    }
    del settings["model"]["config"]["vocab_size"]  # linked to data.vocab_size
    return [args[0], "--config", json.dumps(settings), *args[1:]]  # JSON is YAML


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _raised_by_us(error: BaseException) -> bool:
    """A mistake of the user is caught by our own checks; anything else keeps its traceback."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"].startswith("fox.")


def _silence_two_notices() -> None:
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.getMessage()
