"""Oracles for CatchRT: the same rule, without and with knowledge of the actions on their way."""

from collections.abc import Iterable

from fox.agents.realtime.envs.catch import LEFT, NOOP, RIGHT, moved


def plain_oracle(px: int, bx: int) -> int:
    """The action that brings a paddle at px under a ball at bx."""
    if bx > px + 10:
        return RIGHT
    return LEFT if bx < px + 4 else NOOP


def aware_oracle(px: int, bx: int, committed: Iterable[int]) -> int:
    """The same from where the paddle will be once the committed actions have been executed.

    Args:
        px, bx: paddle and ball in o_k.
        committed: a_k .. a_{k+d-1}, the actions executed before the one that is asked for.

    Returns:
        a_{k+d}.
    """
    for action in committed:
        px = moved(px, action)
    return plain_oracle(px, bx)
