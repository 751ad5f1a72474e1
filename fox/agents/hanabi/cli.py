"""fox-hanabi: train, evaluate and watch agents that play Hanabi with anybody."""

from collections.abc import Sequence

from fox.agents.command import run_program

FRONT_PAGE = """\
fox-hanabi: one network that reads the table as text, and plays with 2 to 5 players

  fox-hanabi train --config preset:mini          a small game with 2 and 3 players, in minutes
  fox-hanabi train --config preset:full          the whole game with 2 to 5 players, in days
  fox-hanabi train --config my.yaml              again: goes on after Ctrl-C or kill -9
  fox-hanabi train --config my.yaml --run.seed 1 --run.folder runs/b   settings win over the file
  fox-hanabi train --config my.yaml --print_config         every setting of the run
  fox-hanabi evaluate runs/mini                  with itself, other seeds and rule agents
  fox-hanabi play runs/mini --seat 0             a game in the terminal, and a seat for you
  fox-hanabi transcripts --output runs/games     games of rule agents, to pretrain on

All options of a command: fox-hanabi COMMAND --help
"""
# Each a module with a function of its name.
COMMANDS = ("train", "evaluate", "play", "transcripts")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run fox-hanabi with these arguments, or with those of the process.

    Exit status: 0, 2 after a mistake of the user (one line on stderr), 130 after Ctrl-C.
    """
    run_program("fox-hanabi", "fox.agents.hanabi", FRONT_PAGE, COMMANDS, arguments)
