"""View: all that one seat knows of a game, read from the engine's text for that seat alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from fox.agents.hanabi.rules import LETTERS, Card, Move, Rules

_BETWEEN_HANDS = "-----"


class Knowledge(NamedTuple):
    """What the owner of a card knows of it by hints.

    Attributes:
        colour, rank: that were told; None if not.
        colours, ranks: plausible after all hints, those that did not touch it included; ascending.
    """

    colour: int | None
    rank: int | None
    colours: tuple[int, ...]
    ranks: tuple[int, ...]


class Seen(NamedTuple):
    """A card in a partner's hand, and what its owner knows of it."""

    card: Card
    knowledge: Knowledge


class Event(NamedTuple):
    """A move as everybody saw it.

    Attributes:
        turn: which turn of the game, from 0 on.
        seat: who moved.
        move: what, as seen from that seat.
        card: that was turned up by a play or a discard; None for a hint.
        success: a played card fitted; True for all else.
        touched: slots that a hint was about, as they were then, ascending.
    """

    turn: int
    seat: int
    move: Move
    card: Card | None
    success: bool
    touched: tuple[int, ...]


@dataclass(frozen=True)
class View:
    """What one seat knows; nothing in it depends on the cards in its own hand but through hints.

    Attributes:
        rules: of the game.
        seat: whose view it is.
        mover: k where +k is to move, or would if the game went on; 0 is this seat.
        turn: turns so far.
        clues, lives, deck: tokens, and cards to draw.
        turns_left: turns until the game ends, this one included, once the deck is empty; else None.
        fireworks: (C) heights.
        hand: what this seat knows of its own cards, oldest first.
        partners: (P - 1) hands, from +1 on.
        discards: as the engine lists them; misplayed cards are among them.
        events: (P) the last move of each seat, this one's first; None before its first.
        legal: numbers of the moves that this seat may make, ascending; () if it is not its turn.
    """

    rules: Rules
    seat: int
    mover: int
    turn: int
    clues: int
    lives: int
    deck: int
    turns_left: int | None
    fireworks: tuple[int, ...]
    hand: tuple[Knowledge, ...]
    partners: tuple[tuple[Seen, ...], ...]
    discards: tuple[Card, ...]
    events: tuple[Event | None, ...]
    legal: tuple[int, ...]


def read_view(
    rules: Rules,
    seat: int,
    text: str,
    *,
    turn: int,
    turns_left: int | None,
    events: Sequence[Event | None],
    legal: Sequence[int],
) -> View:
    """Reads the engine's observation string of a seat.

    Args:
        rules: of the game.
        seat: for which the string was written.
        text: the string.
        turn, turns_left, events, legal: of the View, which the string lacks; events by seat.
    """
    lines = text.split("\n")
    hands: list[list[str]] = [[]]
    for at in range(4, len(lines)):
        line = lines[at]
        if line == _BETWEEN_HANDS:
            hands.append([])
        elif line.startswith("Deck size: "):
            break
        elif line != "Cur player":
            hands[-1].append(line)
    return View(
        rules=rules,
        seat=seat,
        mover=(turn - seat) % rules.players,
        turn=turn,
        clues=int(lines[1][13:]),
        lives=int(lines[0][13:]),
        deck=int(lines[at][11:]),
        turns_left=turns_left,
        fireworks=_fireworks(lines[2]),
        hand=tuple(_own(line) for line in hands[0]),
        partners=tuple(tuple(_seen(line) for line in hand) for hand in hands[1:]),
        discards=_cards(lines[at + 1]),
        events=(*events[seat:], *events[:seat]),
        legal=tuple(legal),
    )


# A game has few different lines, and reading one takes longer than finding it here.
@cache
def _own(line: str) -> Knowledge:
    """`XX || YX|Y12345`: hidden, told yellow, plausible."""
    told, _, plausible = line[6:].partition("|")
    return Knowledge(
        None if told[0] == "X" else LETTERS.index(told[0]),
        None if told[1] == "X" else int(told[1]),
        tuple(LETTERS.index(letter) for letter in plausible if letter.isalpha()),
        tuple(int(letter) for letter in plausible if letter.isdigit()),
    )


@cache
def _seen(line: str) -> Seen:
    """`B1 || XX|RYWB1345`: the card, and what its owner knows."""
    return Seen(_card(line[:2]), _own(line))


@cache
def _card(word: str) -> Card:
    return Card(LETTERS.index(word[0]), int(word[1]))


@cache
def _fireworks(line: str) -> tuple[int, ...]:
    """`Fireworks: R0 Y2 `."""
    return tuple(int(word[1]) for word in line.split()[1:])


def _cards(line: str) -> tuple[Card, ...]:
    """`Discards: R1 R3`."""
    return tuple(_card(word) for word in line.split()[1:])
