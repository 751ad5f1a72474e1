"""Board: a game of Hanabi in the terminal, as one seat sees it, or as everybody at once.

Without a terminal it is plain text; colours only repeat what the words say.
"""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from fox.agents.hanabi.rules import COLOURS, LETTERS, Card, Move
from fox.agents.hanabi.view import Event, Knowledge, View

_STYLES = ("red", "yellow", "green", "bright_white", "bright_blue")
HELP = (
    "Below each card stands what its owner knows of it by hints: [R] and [2] were told, RY and 12 "
    "are possible."
)


def board(view: View, names: Sequence[str], hand: Sequence[Card] | None = None) -> Group:
    """The table before a move, or after the last.

    Args:
        view: of the seat that looks; +1 is the next one.
        names: of the players by seat.
        hand: of that seat, if it is to be shown, too: for spectators, or after the end.
    """
    rules, P = view.rules, view.rules.players
    left = f"deck {view.deck}" if view.turns_left is None else f"turns left {view.turns_left}"
    tokens = Text(f"turn {view.turn}", "bold")
    tokens.append(
        f"   clues {view.clues} of {rules.clues}   lives {view.lives} of {rules.lives}   {left}",
        "not bold",
    )
    fireworks = Text("fireworks")
    for colour, height in enumerate(view.fireworks):
        fireworks.append(f"  {COLOURS[colour]} {height}", _STYLES[colour])
    fireworks.append(f"   points {sum(view.fireworks)} of {rules.max_score}")
    discards = Text("discards ")
    for card in sorted(set(view.discards)):
        count = view.discards.count(card)
        discards.append(f" {card}", _STYLES[card.colour])
        discards.append(f"x{count}" if count > 1 else "")
    events = sorted(event for event in view.events if event is not None)  # by turn
    last = [Text(f"{event.seat} {names[event.seat]}: {event_words(event, P)}") for event in events]
    return Group(tokens, fireworks, discards, _hands(view, names, hand), *last)


def _hands(view: View, names: Sequence[str], hand: Sequence[Card] | None) -> Table:
    P = view.rules.players
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for heading in ("", "seat", *(f"slot{slot}" for slot in range(view.rules.hand_size))):
        table.add_column(heading, overflow="fold", no_wrap=heading != "seat")
    for seat in range(P):
        k = (seat - view.seat) % P
        if k:
            slots = [_slot(seen.card, seen.knowledge) for seen in view.partners[k - 1]]
        else:
            cards: Sequence[Card | None] = hand or [None] * len(view.hand)
            slots = [_slot(card, told) for card, told in zip(cards, view.hand, strict=True)]
        slots += [Text()] * (view.rules.hand_size - len(slots))
        table.add_row(
            Text(f"+{k}" if k else "me", "bold" if k == view.mover else ""),
            Text(f"{seat} {names[seat]}", "bold" if k == view.mover else ""),
            *slots,
        )
    return table


def _slot(card: Card | None, knowledge: Knowledge) -> Text:
    """The card, or what hides it, and below it what its owner knows."""
    text = Text("?") if card is None else Text(str(card), _STYLES[card.colour])
    colours = "".join(LETTERS[colour] for colour in knowledge.colours)
    ranks = "".join(map(str, knowledge.ranks))
    colours = colours if knowledge.colour is None else f"[{colours}]"
    ranks = ranks if knowledge.rank is None else f"[{ranks}]"
    return text.append(f"\n{colours} {ranks}", "not bold dim")


def event_words(event: Event, players: int) -> str:
    """A move that was made, and what came of it, as everybody at the table tells it."""
    kind, place, _ = event.move
    if kind == "play":
        return f"play slot{place}: {event.card} {'fits' if event.success else 'misses'}"
    if kind == "discard":
        return f"discard slot{place}: {event.card}"
    seat, slots = (event.seat + place) % players, ", ".join(map(str, event.touched))
    return f"tell seat {seat} {_told(event.move)}: slot {slots}"


def move_words(move: Move) -> str:
    """A move as its mover reads it: play slot0, tell +1 red, tell +2 rank 1."""
    if move.kind in ("play", "discard"):
        return f"{move.kind} slot{move.place}"
    return f"tell +{move.place} {_told(move)}"


def _told(move: Move) -> str:
    return COLOURS[move.value] if move.kind == "colour" else f"rank {move.value}"
