"""Rules: the sizes of a game of Hanabi, checked, and the numbering of its moves.

Colours are numbered from 0 in the order of COLOURS, ranks are 1..N as they are spoken, slots are
0.. from the oldest card to the newest, and partners are +1.. in the order of play.
"""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

COLOURS = ("red", "yellow", "green", "white", "blue")
LETTERS = "RYGWB"  # the engine's names of the same
MAX_RANKS = 5
MAX_HAND = 5
MAX_PLAYERS = 5
MAX_CLUES = 8
MAX_LIVES = 3

# Name -> colours, ranks, clues, lives, and cards in a hand by the number of players.
_GAMES: dict[str, tuple[int, int, int, int, dict[int, int]]] = {
    "full": (5, 5, 8, 3, {2: 5, 3: 5, 4: 4, 5: 4}),
    "3c3r": (3, 3, 5, 3, dict.fromkeys((2, 3, 4, 5), 3)),
    "2c3r": (2, 3, 4, 2, dict.fromkeys((2, 3, 4, 5), 2)),
    "2c2r": (2, 2, 3, 1, dict.fromkeys((2, 3, 4), 2)),
}
GAMES = tuple(_GAMES)


class Card(NamedTuple):
    """A card: the number of its colour, and its rank from 1 on."""

    colour: int
    rank: int

    def __str__(self) -> str:
        return f"{COLOURS[self.colour]}{self.rank}"


class Move(NamedTuple):
    """What a player may do.

    Attributes:
        kind: what.
        place: the slot that is played or discarded, or k of the partner +k who is told.
        value: the colour or the rank that is told; 0 for a play or a discard.
    """

    kind: Literal["discard", "play", "colour", "rank"]
    place: int
    value: int = 0


@dataclass(frozen=True, order=True)
class Rules:
    """The sizes of a game.

    Args:
        players: P, 2 to 5.
        colours: C, 1 to 5.
        ranks: N, 1 to 5.
        hand_size: H, cards that a hand begins with, 1 to 5.
        clues: the most clue tokens, with which a game begins, 1 to 8.
        lives: life tokens, 1 to 3.

    Raises:
        ValueError: a size is out of its range, or there are too few cards to deal.
    """

    players: int
    colours: int
    ranks: int
    hand_size: int
    clues: int
    lives: int

    def __post_init__(self) -> None:
        bounds = {
            "players": (2, MAX_PLAYERS),
            "colours": (1, len(COLOURS)),
            "ranks": (1, MAX_RANKS),
            "hand_size": (1, MAX_HAND),
            "clues": (1, MAX_CLUES),
            "lives": (1, MAX_LIVES),
        }
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(
                    f"a game of Hanabi has {low} to {high} {name}, but got {getattr(self, name)}"
                )
        if self.players * self.hand_size > self.deck_size:
            raise ValueError(
                f"{self.players} players with {self.hand_size} cards each need "
                f"{self.players * self.hand_size} cards, but {self.colours} colours of "
                f"{self.ranks} ranks have {self.deck_size}: take fewer players or smaller hands"
            )

    @classmethod
    def of(cls, game: str, players: int) -> "Rules":
        """A game by its name: full, or small ones of so many colours and ranks: 3c3r, 2c3r, 2c2r.

        Raises:
            ValueError: there is no such game, or not for so many players.
        """
        if game not in _GAMES:
            raise ValueError(f"expected a game among {', '.join(_GAMES)}, but got {game!r}")
        colours, ranks, clues, lives, hands = _GAMES[game]
        if players not in hands:
            raise ValueError(f"{game} is for {min(hands)} to {max(hands)} players, not {players}")
        return cls(players, colours, ranks, hands[players], clues, lives)

    @classmethod
    def player_counts(cls, game: str) -> tuple[int, ...]:
        """The numbers of players that a named game is for."""
        if game not in _GAMES:
            raise ValueError(f"expected a game among {', '.join(_GAMES)}, but got {game!r}")
        return tuple(_GAMES[game][4])

    def copies(self, rank: int) -> int:
        """Cards of one colour with this rank: three 1s, one of the highest, else two."""
        if rank == 1:
            return 3
        return 1 if rank == self.ranks else 2

    @property
    def deck_size(self) -> int:
        """Cards in all."""
        return self.colours * sum(self.copies(rank) for rank in range(1, self.ranks + 1))

    @property
    def max_score(self) -> int:
        """Points of complete fireworks."""
        return self.colours * self.ranks

    @property
    def max_turns(self) -> int:
        """No game has more: each card is drawn once, hints are paid for, and then a last round.

        A hint costs a clue: those at the start, one for each discard, one for each firework that is
        completed.
        """
        drawn = self.deck_size - self.players * self.hand_size
        return self.clues + 2 * drawn + self.colours + self.players

    @cached_property
    def deck(self) -> tuple[Card, ...]:
        """Every card, sorted by colour and rank."""
        return tuple(
            Card(colour, rank)
            for colour in range(self.colours)
            for rank in range(1, self.ranks + 1)
            for _ in range(self.copies(rank))
        )

    @cached_property
    def moves(self) -> tuple[Move, ...]:
        """Every move, by the number that the engine gives it, from the mover's seat."""
        slots, partners = range(self.hand_size), range(1, self.players)
        return (
            *(Move("discard", slot) for slot in slots),
            *(Move("play", slot) for slot in slots),
            *(Move("colour", k, colour) for k in partners for colour in range(self.colours)),
            *(Move("rank", k, rank) for k in partners for rank in range(1, self.ranks + 1)),
        )

    @cached_property
    def action_ids(self) -> dict[Move, int]:
        """The inverse of `moves`."""
        return {move: number for number, move in enumerate(self.moves)}

    def as_dict(self) -> dict[str, Any]:
        """Plain values; Rules(**values) makes it the same again."""
        return asdict(self)
