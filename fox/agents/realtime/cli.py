"""fox-realtime: play, train and measure agents in environments that do not wait."""

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run fox-realtime with these arguments, or with those of the process."""
    raise SystemExit("fox-realtime: no command yet")
