"""Text: a seat's view and the moves that it may make, in words of one fixed vocabulary.

One word is one token. Every number of players and every size of game has the same words:

    <obs> players2 clues0 lives1 deck3 red=1 yellow=0
    me can:red|yellow told:2 can:red|yellow can:1 play slot0 red1 ok
    +1 red2 can:red can:1|2 yellow1 told:yellow can:1|2 tell me 2 touch:0 discards <end>

A place has a field, which says what stands there and is the same for every partner; an offset, k in
the block of the partner +k; and a clause: the header, me, each partner, the discards.

Legend: P players, C colours, N ranks, H cards in a hand, T words, R texts.
"""

from collections.abc import Sequence
from functools import cache
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np

from fox.agents.hanabi.rules import (
    COLOURS,
    MAX_CLUES,
    MAX_HAND,
    MAX_LIVES,
    MAX_PLAYERS,
    MAX_RANKS,
    Move,
    Rules,
)
from fox.agents.hanabi.view import Event, Knowledge, Seen, View

Style = Literal["full", "paper"]

PADDING, OBSERVATION, ACTION, END = "<pad>", "<obs>", "<act>", "<end>"
_NO_MOVE = ("none",) * 4
_EMPTY = "empty"
_FULL = Rules.of("full", 2)


def observation_words(view: View, style: Style = "full") -> list[str]:
    """What a seat knows, in words.

    Args:
        view: of the seat.
        style: "full", or "paper": the fields of the official release, without deck, moves,
            discards, and what hints say about the cards that they do not touch.
    """
    rules, full = view.rules, style == "full"
    words = [OBSERVATION, f"players{rules.players}", f"clues{view.clues}", f"lives{view.lives}"]
    if full:
        last = view.turns_left
        words.append(f"deck{view.deck}" if last is None else f"last{last}")
    words += [f"{COLOURS[colour]}={height}" for colour, height in enumerate(view.fireworks)]
    words.append("me")
    for knowledge in view.hand:
        words += _knowledge_words(knowledge, style)
    words += [_EMPTY] * (2 * (rules.hand_size - len(view.hand)))
    if full:
        words += _event_words(view.events[0], view.seat, rules.players)
    for k, hand in enumerate(view.partners, start=1):
        words.append(f"+{k}")
        for seen in hand:
            words += _seen_words(seen, style)
        words += [_EMPTY] * (3 * (rules.hand_size - len(hand)))
        if full:
            words += _event_words(view.events[k], view.seat, rules.players)
    if full:
        words.append("discards")
        counts: dict[str, int] = {}
        for card in sorted(view.discards):
            counts[str(card)] = counts.get(str(card), 0) + 1
        words += [f"{card}x{count}" for card, count in counts.items()]
    return [*words, END]


def action_words(move: Move) -> list[str]:
    """A move in words, as seen by the one who makes it."""
    if move.kind in ("play", "discard"):
        return [ACTION, move.kind, f"slot{move.place}", END]
    return [ACTION, "tell", f"+{move.place}", _told(move), END]


def token_ids(words: Sequence[str]) -> np.ndarray:
    """(T,) int16, the numbers of words in VOCABULARY."""
    return np.array([WORD_IDS[word] for word in words], np.int16)


@cache
def _knowledge_words(knowledge: Knowledge, style: Style) -> tuple[str, str]:
    colours = [COLOURS[colour] for colour in knowledge.colours]
    ranks = [str(rank) for rank in knowledge.ranks]
    told = (
        None if knowledge.colour is None else f"told:{COLOURS[knowledge.colour]}",
        None if knowledge.rank is None else f"told:{knowledge.rank}",
    )
    if style == "paper":
        return told[0] or "unknown", told[1] or "unknown"
    return told[0] or f"can:{'|'.join(colours)}", told[1] or f"can:{'|'.join(ranks)}"


@cache
def _seen_words(seen: Seen, style: Style) -> tuple[str, str, str]:
    return str(seen.card), *_knowledge_words(seen.knowledge, style)


def _event_words(event: Event | None, reader: int, players: int) -> tuple[str, ...]:
    """Four words for a move, whatever it was."""
    if event is None:
        return _NO_MOVE
    move = event.move
    if move.kind == "play":
        return ("play", f"slot{move.place}", str(event.card), "ok" if event.success else "miss")
    if move.kind == "discard":
        return ("discard", f"slot{move.place}", str(event.card), "done")
    k = (event.seat + move.place - reader) % players
    slots = "|".join(map(str, event.touched))
    return ("tell", f"+{k}" if k else "me", _told(move), f"touch:{slots}")


def _told(move: Move) -> str:
    return COLOURS[move.value] if move.kind == "colour" else str(move.value)


def _some(words: Sequence[str]) -> list[str]:
    """Every choice of one or more of the words, joined."""
    sizes = range(1, len(words) + 1)
    return ["|".join(chosen) for size in sizes for chosen in combinations(words, size)]


_PLAYED = ("verb", "object", "value", "result")


def _words() -> dict[str, tuple[str, ...]]:
    """By field, every word that may stand there in games of any size."""
    ranks = [str(rank) for rank in range(1, MAX_RANKS + 1)]
    slots = [str(slot) for slot in range(MAX_HAND)]
    cards = [f"{colour}{rank}" for colour in COLOURS for rank in ranks]
    partners = [f"+{k}" for k in range(1, MAX_PLAYERS)]
    deck = _FULL.deck_size - _FULL.players
    known = {
        part: (*(f"told:{word}" for word in said), *(f"can:{word}" for word in _some(said)))
        for part, said in (("colour", COLOURS), ("rank", ranks))
    }
    known = {part: (*words, "unknown", _EMPTY) for part, words in known.items()}
    placed = [f"slot{slot}" for slot in slots]
    touched = [f"touch:{some}" for some in _some(slots)]
    moves = (
        ("none", "play", "discard", "tell"),
        ("none", "me", *partners, *placed),
        ("none", *cards, *COLOURS, *ranks),
        ("none", "ok", "miss", "done", *touched),
    )
    counts = [range(1, _FULL.copies(int(card[-1])) + 1) for card in cards]
    return {
        "padding": (PADDING,),
        "observation": (OBSERVATION,),
        "players": tuple(f"players{players}" for players in range(2, MAX_PLAYERS + 1)),
        "clues": tuple(f"clues{clues}" for clues in range(MAX_CLUES + 1)),
        "lives": tuple(f"lives{lives}" for lives in range(MAX_LIVES + 1)),
        "deck": (
            *(f"deck{cards}" for cards in range(1, deck + 1)),
            *(f"last{turns}" for turns in range(MAX_PLAYERS + 1)),
        ),
        "firework": tuple(f"{colour}={n}" for colour in COLOURS for n in range(MAX_RANKS + 1)),
        "me": ("me",),
        **{f"own{slot}.{part}": words for slot in slots for part, words in known.items()},
        **{f"own.{part}": words for part, words in zip(_PLAYED, moves, strict=True)},
        "partner": tuple(partners),
        **{
            f"card{slot}.{part}": words
            for slot in slots
            for part, words in {"card": (*cards, _EMPTY), **known}.items()
        },
        **{f"partner.{part}": words for part, words in zip(_PLAYED, moves, strict=True)},
        "discards": ("discards",),
        "discarded": tuple(
            f"{card}x{n}" for card, some in zip(cards, counts, strict=True) for n in some
        ),
        "end": (END,),
        "action": (ACTION,),
        "action.verb": ("play", "discard", "tell"),
        "action.object": (*placed, *partners),
        "action.value": (*COLOURS, *ranks),
    }


WORDS = _words()
FIELDS = tuple(WORDS)
VOCABULARY = tuple(dict.fromkeys(word for words in WORDS.values() for word in words))
WORD_IDS = {word: number for number, word in enumerate(VOCABULARY)}
_FIELD_IDS = {field: number for number, field in enumerate(FIELDS)}


class Places(NamedTuple):
    """What stands where in texts, beside the words.

    Attributes:
        field, offset, clause: (..., T) int16; at padding 0, 0 and the clause before.
    """

    field: np.ndarray
    offset: np.ndarray
    clause: np.ndarray


@cache
def observation_places(rules: Rules, length: int, style: Style = "full") -> Places:
    """(T) each, of an observation that has `length` words.

    All but the discards have a fixed place for given rules; how many there are follows from the
    length.
    """
    H, full = rules.hand_size, style == "full"
    head = ["observation", "players", "clues", "lives", *["deck"] * full]
    clauses = [(0, [*head, *["firework"] * rules.colours])]
    mine = [f"own{slot}.{part}" for slot in range(H) for part in ("colour", "rank")]
    clauses.append((0, ["me", *mine, *[f"own.{part}" for part in _PLAYED] * full]))
    theirs = [f"card{slot}.{part}" for slot in range(H) for part in ("card", "colour", "rank")]
    block = ["partner", *theirs, *[f"partner.{part}" for part in _PLAYED] * full]
    clauses += [(k, block) for k in range(1, rules.players)]
    discarded = length - sum(len(fields) for _, fields in clauses) - 2
    clauses.append((0, [*["discards", *["discarded"] * discarded] * full, "end"]))
    return _places(clauses)


@cache
def action_places(move: Move) -> Places:
    """(T) each, of a move's words."""
    tells = move.kind in ("colour", "rank")
    fields = ["action", *(f"action.{part}" for part in _PLAYED[: 2 + tells]), "end"]
    return _places([(move.place if tells else 0, fields)])


def _places(clauses: Sequence[tuple[int, Sequence[str]]]) -> Places:
    rows = [
        (_FIELD_IDS[field], offset, clause)
        for clause, (offset, fields) in enumerate(clauses)
        for field in fields
    ]
    return Places(*np.array(rows, np.int16).T)


class Texts(NamedTuple):
    """Texts side by side, padded on the right.

    Attributes:
        words: (R, T) int16, 0 at padding.
        field, offset, clause: (R, T) int16, as in Places.
        length: (R,) int16, words of each text.
    """

    words: np.ndarray
    field: np.ndarray
    offset: np.ndarray
    clause: np.ndarray
    length: np.ndarray


def collate(rows: Sequence[np.ndarray], places: Sequence[Places]) -> Texts:
    """Pads texts to the longest.

    Args:
        rows: (T,) each, token ids.
        places: of each.
    """
    length = np.array([len(row) for row in rows], np.int16)
    T = int(length.max(initial=0))
    words = np.zeros((len(rows), T), np.int16)
    for row, ids in zip(words, rows, strict=True):
        row[: len(ids)] = ids
    kinds = {id(place): place for place in places}  # few: they come from a cache
    order = {key: number for number, key in enumerate(kinds)}
    which = np.array([order[id(place)] for place in places], np.int64)
    field, offset, clause = (np.zeros((len(kinds), T), np.int16) for _ in range(3))
    for number, place in enumerate(kinds.values()):
        n = len(place.field)
        field[number, :n], offset[number, :n], clause[number, :n] = place
        clause[number, n:] = place.clause[-1]
    return Texts(words, field[which], offset[which], clause[which], length)


def action_texts(moves: Sequence[Move]) -> Texts:
    """The words of moves, in their order."""
    return collate(
        [token_ids(action_words(move)) for move in moves], [action_places(move) for move in moves]
    )
