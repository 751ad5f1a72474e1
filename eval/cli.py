"""The command fox-eval: one subcommand per question that one can put to a model."""

import argparse
import difflib
import inspect
import json
import re
import sys
import typing
from collections.abc import Callable, Sequence
from typing import NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter
from rich.console import Console

from fox.eval.gates import inspect_model
from fox.eval.harness import harness
from fox.eval.needle import needle
from fox.eval.per_token_loss import per_token_loss
from fox.eval.recall import recall
from fox.eval.ruler import ruler
from fox.eval.samples import samples
from fox.eval.speed import speed
from fox.eval.summary import summary

COMMANDS: dict[str, Callable[..., None]] = {
    "per-token-loss": per_token_loss,
    "needle": needle,
    "ruler": ruler,
    "recall": recall,
    "inspect": inspect_model,
    "harness": harness,
    "speed": speed,
    "samples": samples,
    "summary": summary,
}
DESCRIPTION = """Evaluate language models: our folders, .ckpt files of fox-train, official and fla
checkpoints, and any causal model that transformers can load, all by the same code.

  fox-eval per-token-loss --model runs/demo/model --output runs/demo
  fox-eval needle --model runs/demo/model --output runs/demo --modes assignment
  fox-eval ruler --model runs/demo/model my-llama --output runs/demo --samples 50
  fox-eval recall --output runs/demo
  fox-eval inspect --model runs/demo/model --output runs/demo
"""


class Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the line breaks of the description."""


class Parser(ArgumentParser):
    """An ArgumentParser whose errors are one line, with a guess at what was meant."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = " ".join(message.split()).rstrip(".")
        message = re.sub(rf"\b({'|'.join(COMMANDS)})\.", "--", message)  # needle.output -> --output
        known = [*COMMANDS, *(f"--{name}" for f in COMMANDS.values() for name in options_of(f))]
        word = re.search(r"(?<=arguments: )--\w+|(?<=choice: ')[^']+", message)
        guess = difflib.get_close_matches(word.group(), known, 1) if word else []
        hint = f" (did you mean {guess[0]}?)" if guess else ""
        fail(f"{message}{hint}; see {self.prog.replace(' [options]', '')} --help")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run fox-eval with these arguments, or with those of the process.

    A mistake of the user ends in one line on stderr and exit status 2.
    """
    parser = Parser(prog="fox-eval", description=DESCRIPTION, formatter_class=Formatter)
    subcommands = parser.add_subcommands(required=True, dest="command")
    for name, function in COMMANDS.items():
        meaning = (inspect.getdoc(function) or "").splitlines()[0]
        subparser = Parser(description=meaning)
        one_folder = name == "summary"  # fox-eval summary runs/demo
        subparser.add_function_arguments(function, as_group=False, as_positional=one_folder)
        subcommands.add_subcommand(name, subparser, help=meaning)
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(joined_lists(given))
    values = options[options.command].as_dict()
    try:
        COMMANDS[options.command](**values)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("stopped; the same command goes on with what is left")


def fail(message: str) -> NoReturn:
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(
        f"fox-eval: {message}"
    )
    sys.exit(2)


def options_of(function: Callable[..., None]) -> dict[str, object]:
    """Names and annotations of a command's options."""
    return {
        name: hint for name, hint in typing.get_type_hints(function).items() if name != "return"
    }


def joined_lists(arguments: Sequence[str]) -> list[str]:
    """Join what follows an option that takes several values: --lengths 1 2 -> --lengths [1, 2]."""
    if not arguments or arguments[0] not in COMMANDS:
        return list(arguments)
    several = {
        f"--{name}": hint
        for name, hint in options_of(COMMANDS[arguments[0]]).items()
        if re.search(r"list|tuple", str(hint))
    }
    joined: list[str] = []
    rest = list(arguments)
    while rest:
        joined.append(rest.pop(0))
        if joined[-1] in several:
            values = []
            while rest and not re.match("--|-h$", rest[0]):
                values.append(rest.pop(0))
            texts = "str" in str(several[joined[-1]])
            joined.append(json.dumps(values) if texts else f"[{', '.join(values)}]")
    return joined
