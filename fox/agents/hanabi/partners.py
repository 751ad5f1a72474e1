"""Partners: players of the literature, who follow rules and learn nothing.

The first convention of a partner that names a move decides; if none does, any legal move is made.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from fox.agents.hanabi.conventions import (
    Convention,
    Reading,
    discard_oldest,
    discard_random,
    discard_useless,
    hail_mary,
    osawa_discard,
    play_certain,
    play_likely,
    play_safe,
    tell_dispensable,
    tell_most,
    tell_playable,
    tell_random,
    tell_unknown,
    tell_useless,
)
from fox.agents.hanabi.rules import Card, Rules
from fox.agents.hanabi.table import Player, Turn
from fox.agents.hanabi.view import View


class RulePlayer:
    """Plays by conventions; it sees what its seat sees, and remembers nothing.

    Args:
        name: in tables.
        conventions: in the order in which they are asked.
    """

    sees_hand = False

    def __init__(self, name: str, conventions: Sequence[Convention]) -> None:
        self.name = name
        self.conventions = tuple(conventions)

    def choose(self, turn: Turn, generator: np.random.Generator) -> int:
        """The number of the move that it makes."""
        reading = Reading(turn.view)
        for convention in self.conventions:
            if (action := convention(reading, generator)) is not None:
                return action
        legal = turn.view.legal
        return legal[int(generator.integers(len(legal)))]

    def sit(self, rules: Rules, generators: Sequence[np.random.Generator]) -> "PartnerSeat":
        """Takes a seat."""
        return PartnerSeat(self, generators)


class PartnerSeat:
    """A partner in one seat of several games."""

    def __init__(
        self, player: "RulePlayer | Cheater", generators: Sequence[np.random.Generator]
    ) -> None:
        self.player, self.generators = player, generators

    def act(self, turns: Sequence[Turn]) -> list[int]:
        """A legal move for each game."""
        return [self.player.choose(turn, self.generators[turn.game]) for turn in turns]


class Cheater:
    """Looks at its own cards, which the game forbids: what players could do who knew them.

    It plays the lowest card that fits. Else it discards, if a clue can be won back, the first
    useless card, or else the first that it or a partner also holds. Else it gives any hint, and
    without a clue discards the highest card of which another copy is left; the highest of all if
    each is the last of its kind.
    """

    name = "cheater"
    sees_hand = True

    def choose(self, turn: Turn, generator: np.random.Generator) -> int:
        """The number of the move that it makes with the hand that it is shown."""
        view, hand = turn.view, turn.hand
        assert hand is not None, "a Cheater is shown its hand"
        reading, slots = Reading(view), range(len(hand))
        if fitting := [slot for slot in slots if reading.fits(hand[slot])]:
            action = reading.play(min(fitting, key=lambda slot: hand[slot].rank))
            assert action is not None, "a card that is held may be played"
            return action
        held = [*hand, *(seen.card for _, seen in reading.partners_cards())]
        useless = [slot for slot in slots if reading.is_useless(hand[slot])]
        twice = [slot for slot in slots if held.count(hand[slot]) > 1]
        spare = [*useless, *twice]
        if spare and (action := reading.discard(spare[0])) is not None:
            return action
        if (action := tell_random(reading, generator)) is not None:
            return action
        others = [slot for slot in slots if not _last_copy(view, hand[slot])]
        action = reading.discard(max(others or slots, key=lambda slot: hand[slot].rank))
        assert action is not None, "without a clue one may discard"
        return action

    def sit(self, rules: Rules, generators: Sequence[np.random.Generator]) -> "PartnerSeat":
        """Takes a seat."""
        return PartnerSeat(self, generators)


def _last_copy(view: View, card: Card) -> bool:
    """Whether no other copy of a card that was not played is left."""
    return view.rules.copies(card.rank) - view.discards.count(card) == 1


_OSAWA = (play_safe, osawa_discard, tell_playable)
_GAMBLE = partial(play_likely, at_least=0.6, spare_life=True)

_RULE_PLAYERS: Mapping[str, Sequence[Convention]] = {
    "internal": (*_OSAWA, tell_random, discard_random),
    "outer": (*_OSAWA, tell_unknown, discard_random),
    "iggi": (play_certain, play_safe, tell_playable, osawa_discard, discard_oldest),
    "piers": (
        hail_mary,
        play_safe,
        _GAMBLE,
        tell_playable,
        tell_dispensable,
        osawa_discard,
        discard_oldest,
        tell_random,
        discard_random,
    ),
    "vandenbergh": (
        _GAMBLE,
        play_safe,
        partial(discard_useless, at_least=0.99),
        tell_playable,
        tell_useless,
        tell_most,
        partial(discard_useless, at_least=0),
    ),
    "flawed": (
        play_safe,
        partial(play_likely, at_least=0.25, spare_life=False),
        tell_random,
        osawa_discard,
        discard_oldest,
        discard_random,
    ),
    "random": (),
}
PARTNERS: Mapping[str, Player] = {
    **{name: RulePlayer(name, conventions) for name, conventions in _RULE_PLAYERS.items()},
    Cheater.name: Cheater(),
}


def partner(name: str) -> Player:
    """A partner by its name.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in PARTNERS:
        raise ValueError(f"expected a partner among {', '.join(PARTNERS)}, but got {name!r}")
    return PARTNERS[name]
