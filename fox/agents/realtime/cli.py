"""fox-realtime: play, train and measure agents in environments that do not wait."""

from collections.abc import Sequence

from fox.agents.command import run_program

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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run fox-realtime with these arguments, or with those of the process."""
    run_program("fox-realtime", "fox.agents.realtime", FRONT_PAGE, COMMANDS, arguments)
