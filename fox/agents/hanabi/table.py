"""The table: players of any kind take seats, and games are played in lock step.

All games of a call have the same rules, so that the same seat moves in all of them, and a network
reads all its views at once.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from fox.agents.hanabi.game import Game
from fox.agents.hanabi.rules import Card, Rules
from fox.agents.hanabi.view import View


class Turn(NamedTuple):
    """What a seat is shown when it is to move.

    Attributes:
        game: the number of the game in the call.
        view: what the seat knows.
        hand: its own cards, for players that say sees_hand; else None.
    """

    game: int
    view: View
    hand: tuple[Card, ...] | None


class Seat(Protocol):
    """A player in one seat of several games; whatever it remembers is of this seat alone."""

    def act(self, turns: Sequence[Turn]) -> Sequence[int]:
        """The number of a legal move for each game that still goes on."""
        ...


class Player(Protocol):
    """Somebody who can take a seat.

    Attributes:
        name: in tables.
        sees_hand: whether it is shown its own cards, which the game forbids.
    """

    name: str
    sees_hand: bool

    def sit(self, rules: Rules, generators: Sequence[np.random.Generator]) -> Seat:
        """Takes a seat at the beginning of games.

        Args:
            rules: of all of them.
            generators: one for each game, for what the seat decides at random.
        """
        ...


def play_games(
    rules: Rules, seeds: Sequence[Sequence[int]], players: Sequence[Player]
) -> list[Game]:
    """Plays one game for each seed to its end.

    The deck depends on the seed alone: players are compared on the same decks.

    Args:
        rules: of all games.
        seeds: whole numbers from 0 on, such as (seed of a run, number of a game).
        players: (P), one for each seat, in order of the seats; the same player may take several.

    Returns:
        the games, over, in the order of the seeds.

    Raises:
        ValueError: there are not as many players as seats.
    """
    if len(players) != rules.players:
        raise ValueError(
            f"expected a player for each of {rules.players} seats, but got {len(players)}"
        )
    games = [Game.shuffled(rules, np.random.default_rng([*seed, 0])) for seed in seeds]
    seats = [
        player.sit(rules, [np.random.default_rng([*seed, 1 + seat]) for seed in seeds])
        for seat, player in enumerate(players)
    ]
    mover = 0
    while going := [number for number, game in enumerate(games) if not game.over]:
        cheats = players[mover].sees_hand
        turns = [
            Turn(number, games[number].view(mover), games[number].hand(mover) if cheats else None)
            for number in going
        ]
        for number, action in zip(going, seats[mover].act(turns), strict=True):
            games[number].play(action)
        mover = (mover + 1) % rules.players
    return games
