"""fox-realtime: play, train and measure agents in environments that do not wait."""

import argparse
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter

FRONT_PAGE = """\
fox-realtime: agents in environments that do not wait, and policies slower than a frame

  fox-realtime train --config preset:catch       staggered beside sequential, on a wall clock
  fox-realtime train --config my.yaml            again: goes on after Ctrl-C or kill -9
  fox-realtime train --config my.yaml --run.ticks 90000    a setting on the command line wins
  fox-realtime train --config my.yaml --print_config       every setting of the run
  fox-realtime play runs/catch/staggered         returns, the scheduler's counters, GIF, timeline
  fox-realtime regret runs/catch                 what learning, inaction and delay have lost
  fox-realtime simulate                          how many workers a slow policy needs
  fox-realtime bench                             what a tick, a job and an inference cost here

All options of a command: fox-realtime COMMAND --help
"""
# Each a module with a function of its name.
COMMANDS = ("train", "play", "regret", "simulate", "bench")
PRESET = "preset:"


class Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the line breaks of the description."""


class Parser(ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(f"{' '.join(message.split()).rstrip('.')}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run fox-realtime with these arguments, or with those of the process.

    Exit status: 0, 2 after a mistake of the user (one line on stderr), 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(FRONT_PAGE, end="")
        return
    try:
        command, *rest = given
        if command not in COMMANDS:
            raise ValueError(f"expected one of {', '.join(COMMANDS)}, but got {command!r}")
        function = getattr(importlib.import_module(f"fox.agents.realtime.{command}"), command)
        run(function, [preset_path(argument) for argument in rest])
    except (ValueError, OSError, ModuleNotFoundError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def run(function: Callable[..., None], arguments: Sequence[str]) -> None:
    """Calls a command's function; its arguments are the options, and --config a YAML file of them.

    What has no default needs no name: `play FOLDER`.
    """
    parser = Parser(
        prog=f"fox-realtime {function.__name__}",
        description=(inspect.getdoc(function) or "").split("\n\nArgs:")[0],
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="a YAML file, or preset:NAME")
    parser.add_function_arguments(function, as_group=False, as_positional=True)
    values = parser.instantiate(parser.parse_args(arguments)).as_dict()
    del values["config"]
    function(**values)


def preset_path(argument: str) -> str:
    """Replaces preset:NAME by the path of the file that ships with the package.

    Raises:
        ValueError: there is no such preset.
    """
    before, preset, name = argument.partition(PRESET)
    if not preset or before not in ("", "--config="):
        return argument
    folder = Path(str(files("fox.agents.realtime.configs")))
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise ValueError(f"expected a preset among {', '.join(known)}, but got {name!r}")
    return f"{before}{folder / name}.yaml"


def fail(message: str) -> NoReturn:
    """One line on stderr, exit status 2."""
    print(f"fox-realtime: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)
