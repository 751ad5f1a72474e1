"""A program of several commands: each is a function whose arguments are its options."""

import argparse
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter

PRESET = "preset:"


class Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the line breaks of the description."""


class Parser(ArgumentParser):
    """An ArgumentParser of a program's command, whose errors are one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        program = self.prog.partition(" ")[0]
        fail(program, f"{' '.join(message.split()).rstrip('.')}; see {self.prog} --help")


def run_program(
    program: str,
    package: str,
    front_page: str,
    commands: Sequence[str],
    arguments: Sequence[str] | None,
) -> None:
    """Runs a command with the arguments given, or with those of the process.

    Exit status: 0, 2 after a mistake of the user (one line on stderr), 130 after Ctrl-C.

    Args:
        program: its name.
        package: holds a module for each command, with a function of its name, and the presets in
            its folder configs.
        front_page: what is printed where no command is given.
        commands: their names.
        arguments: the command, and its options.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(front_page, end="")
        return
    try:
        command, *rest = given
        if command not in commands:
            raise ValueError(f"expected one of {', '.join(commands)}, but got {command!r}")
        function = getattr(importlib.import_module(f"{package}.{command}"), command)
        run_command(program, function, [preset_path(package, argument) for argument in rest])
    except (ValueError, OSError, ModuleNotFoundError) as error:
        fail(program, str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def run_command(program: str, function: Callable[..., None], arguments: Sequence[str]) -> None:
    """Calls a command's function; its arguments are the options, and --config a YAML file of them.

    What has no default needs no name: `play FOLDER`.
    """
    parser = Parser(
        prog=f"{program} {function.__name__}",
        description=(inspect.getdoc(function) or "").split("\n\nArgs:")[0],
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="a YAML file, or preset:NAME")
    parser.add_function_arguments(function, as_group=False, as_positional=True)
    values = parser.instantiate(parser.parse_args(arguments)).as_dict()
    del values["config"]
    function(**values)


def as_list(names: Sequence[str] | str) -> list[str]:
    """What an option that takes one name, or a list of names, was given."""
    return [names] if isinstance(names, str) else list(names)


def preset_path(package: str, argument: str) -> str:
    """Replaces preset:NAME by the path of the file that ships with the package.

    Raises:
        ValueError: there is no such preset.
    """
    before, preset, name = argument.partition(PRESET)
    if not preset or before not in ("", "--config="):
        return argument
    folder = Path(str(files(f"{package}.configs")))
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise ValueError(f"expected a preset among {', '.join(known)}, but got {name!r}")
    return f"{before}{folder / name}.yaml"


def fail(program: str, message: str) -> NoReturn:
    """One line on stderr, exit status 2."""
    print(f"{program}: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)
