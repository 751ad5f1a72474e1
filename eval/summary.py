"""placeholder"""


def summary(run: str) -> None:
    """Summarize.

    Args:
        run: folder
    """
