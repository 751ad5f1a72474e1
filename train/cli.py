"""fox-train: pretraining from the command line, on LightningCLI."""

import difflib
import json
import logging
import sys
import traceback
import warnings
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import torch
from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from fox.train.callbacks import (
    Export,
    Interrupted,
    Interruption,
    LastCheckpoint,
    Speed,
    StepProgress,
    last_checkpoint,
)
from fox.train.data import TextData
from fox.train.lm import FoxLM
from fox.train.records import MetricsFile, RunRecord

FRONT_PAGE = """\
fox-train: pretrain FoX and Transformer language models

  fox-train fit --config preset:demo                     the demo: minutes on a CPU, no download
  fox-train fit --config my.yaml --data.files 'corpus/*.txt'
  fox-train fit --config my.yaml --ckpt_path last        go on after Ctrl-C or a crash
  fox-train validate --ckpt_path runs/demo/checkpoints/last.ckpt
  fox-train fit --config my.yaml --print_config          every setting of the run

Usual settings (in the YAML file, or on the command line, which wins):
  --trainer.default_root_dir runs/NAME   everything of the run goes there
  --trainer.max_steps N                  length of the run
  --model.config.hidden_size C           and the other fields of FoxConfig
  --model.learning_rate LR
  --data.files PATTERN                   your own text: .txt, .jsonl, .parquet
  --data.dataset NAME                    or a dataset, --data.streaming true
  --data.vocab_size V                    of the tokenizer and the model
  --data.seq_len T                       tokens of a row
  --data.batch_size B                    rows of a step
  --checkpoint.every_n_steps N

All settings, some hundred lines: fox-train fit --help
"""
PRESET = "preset:"
TRAINER_DEFAULTS: dict[str, Any] = {
    "default_root_dir": "runs/default",
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
        """One vocabulary size for data and model; checkpoints and speed."""
        parser.link_arguments("data.vocab_size", "model.config.vocab_size")
        parser.add_lightning_class_args(Speed, "speed")
        parser.add_lightning_class_args(LastCheckpoint, "checkpoint")
        FoxParser.options = {*FoxParser.options, *parser._option_string_actions}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Without LightningCLI's warning that args are for use from Python."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        # LightningCLI lets a checkpoint's settings win over the command line; here it is the other
        # way round (see checkpoint_arguments), and `fit` refuses a checkpoint that does not fit.
        config = self.config[self.config.subcommand]
        if config.ckpt_path == "last":
            config.ckpt_path = str(last_checkpoint(config.trainer.default_root_dir))
        if config.ckpt_path is not None and not Path(config.ckpt_path).is_file():
            raise FileNotFoundError(f"expected a checkpoint, but there is no {config.ckpt_path}")

    def before_instantiate_classes(self) -> None:
        """Refuses what would end badly, before anything is built."""
        if self.subcommand != "fit":
            return
        config = self.config.fit
        last = last_checkpoint(config.trainer.default_root_dir)
        if config.ckpt_path is None and last.is_file():
            raise ValueError(
                f"{last} holds a run already: go on with --ckpt_path last, or choose another "
                "--trainer.default_root_dir, or remove it"
            )
        if config.trainer.max_steps < 1:
            raise ValueError(
                f"expected trainer.max_steps, the length of the run, to be at least 1, "
                f"but got {config.trainer.max_steps}"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds what every run has: its records, and in `fit` progress, interruption and export."""
        config = self.config_init[self.subcommand].trainer
        folder = config.default_root_dir
        config.precision = config.precision or usual_precision(config.accelerator)
        if self.subcommand == "fit":
            # Through the defaults they come after Speed, whose numbers they show.
            callbacks = [StepProgress(), RunRecord(), Interruption(), Export()]
            self.trainer_defaults = self.trainer_defaults | {"callbacks": callbacks}
            if config.logger in (None, True):
                board = TensorBoardLogger(folder, name="", version="")
                config.logger = [MetricsFile(folder), board]
        else:
            self.save_config_callback = None
            config.logger = False
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
        with TemporaryDirectory() as scratch:
            args = checkpoint_arguments(preset_paths(args), Path(scratch))
            FoxCLI(
                FoxLM,
                TextData,
                args=args,
                parser_class=FoxParser,
                trainer_defaults=TRAINER_DEFAULTS,
                seed_everything_default=0,
                save_config_kwargs={"overwrite": True},
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,  # it would put more than plain values there
            )
    except Interrupted as interrupted:
        print(f"{interrupted}: the same command with --ckpt_path last goes on", flush=True)
        raise SystemExit(130) from None
    except (ValueError, FileNotFoundError) as error:
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
    """Replaces preset:NAME by the path of the config that ships with the package."""
    folder = Path(str(files("fox.train.configs")))
    paths = []
    for arg in args:
        before, preset, name = arg.partition(PRESET)
        if preset and before in ("", "--config=", "-c="):
            if not (folder / f"{name}.yaml").is_file():
                known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
                raise ValueError(f"expected a preset among {known}, but got {name!r}")
            arg = f"{before}{folder / name}.yaml"
        paths.append(arg)
    return paths


def checkpoint_arguments(args: Sequence[str], scratch: Path) -> list[str]:
    """Lets `validate --ckpt_path FILE` find the model's and the data's settings in the file.

    They come first, so that what the command line says wins.
    """
    if args[0] == "fit" or "--ckpt_path" not in args[:-1]:
        return list(args)
    path = Path(args[args.index("--ckpt_path") + 1])
    if not path.is_file():
        raise FileNotFoundError(f"expected a checkpoint, but there is no {path}")
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    settings = {
        "model": checkpoint["hyper_parameters"],
        "data": checkpoint["datamodule_hyper_parameters"],
        "trainer": {"default_root_dir": str(path.parent.parent)},
    }
    del settings["model"]["config"]["vocab_size"]  # linked to data.vocab_size
    config = scratch / "checkpoint.yaml"
    config.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    return [args[0], "--config", str(config), *args[1:]]


def _raised_by_us(error: BaseException) -> bool:
    """A mistake of the user is caught by our own checks; anything else keeps its traceback."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"].startswith("fox.")


def _silence_two_notices() -> None:
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.getMessage()
