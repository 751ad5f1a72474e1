"""Game: one game of Hanabi, played by OpenSpiel's engine with a deck that was shuffled here."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from fox.agents.hanabi.rules import Card, Move, Rules
from fox.agents.hanabi.view import Event, View, read_view


class Game:
    """A game that goes on move by move; who plays in it is shown the view of their seat.

    Seat 0 is dealt its whole hand first, then seat 1, and seat 0 moves first.

    Args:
        rules: of the game.
        deck: every card once, in the order in which they are drawn.

    Attributes:
        turn: turns so far.
        lives: life tokens.
        fireworks: (C) heights.
        turns_left: turns until the game ends, once the deck is empty; else None.
        events: every move so far.
        rewards: by turn, how each changed the strict score: 1 for a card that fits, minus the
            points so far where the last life is lost.

    Raises:
        ValueError: the deck is not that of the rules.
        ModuleNotFoundError: OpenSpiel is not installed.
    """

    def __init__(self, rules: Rules, deck: Sequence[Card]) -> None:
        if sorted(deck) != list(rules.deck):
            raise ValueError(
                f"the deck must hold each of the {rules.deck_size} cards of {rules} once: shuffle "
                "rules.deck"
            )
        self.rules = rules
        self.turn, self.lives = 0, rules.lives
        self.fireworks = [0] * rules.colours
        self.turns_left: int | None = None
        self.events: list[Event] = []
        self.rewards: list[float] = []
        self._deck = list(reversed(deck))
        self._hands: list[list[Card]] = [[] for _ in range(rules.players)]
        self._last: list[Event | None] = [None] * rules.players
        self._state = _engine(rules).new_initial_state()
        for hand in self._hands:
            for _ in range(rules.hand_size):
                self._draw(hand)

    @classmethod
    def shuffled(cls, rules: Rules, generator: np.random.Generator) -> "Game":
        """A game whose deck the generator shuffles."""
        return cls(rules, [rules.deck[place] for place in generator.permutation(rules.deck_size)])

    @property
    def over(self) -> bool:
        """Whether nobody moves any more."""
        return bool(self._state.is_terminal())

    @property
    def mover(self) -> int:
        """The seat whose turn it is."""
        return self.turn % self.rules.players

    @property
    def legal(self) -> list[int]:
        """Numbers of the moves that the mover may make, ascending."""
        return [] if self.over else self._state.legal_actions()

    @property
    def keep_score(self) -> int:
        """The fireworks as they stand."""
        return sum(self.fireworks)

    @property
    def strict_score(self) -> int:
        """The fireworks as they stand; 0 after the last life."""
        return self.keep_score if self.lives else 0

    def play(self, action: int) -> float:
        """Makes the move with this number; returns how the strict score changed.

        Raises:
            ValueError: the move is not legal now, or the game is over.
        """
        if self.over:
            raise ValueError(f"the game is over after {self.turn} turns, but got move {action}")
        if action not in self.legal:
            raise ValueError(
                f"seat {self.mover} may make the moves {self.legal} now, but got {action}"
            )
        seat, move = self.mover, self.rules.moves[action]
        self._state.apply_action(action)
        event, reward = self._happens(seat, move)
        self._last[seat] = event
        self.events.append(event)
        self.rewards.append(reward)
        self.turn += 1
        if self.turns_left is not None:
            self.turns_left -= 1
        elif event.card is not None:
            self._draw(self._hands[seat])
        return reward

    def view(self, seat: int) -> View:
        """What a seat knows now."""
        return read_view(
            self.rules,
            seat,
            self._state.observation_string(seat),
            turn=self.turn,
            turns_left=self.turns_left,
            events=self._last,
            legal=self.legal if seat == self.mover else (),
        )

    def hand(self, seat: int) -> tuple[Card, ...]:
        """The cards that a seat holds, which it does not know: for spectators and cheaters."""
        return tuple(self._hands[seat])

    def _happens(self, seat: int, move: Move) -> tuple[Event, float]:
        """What the move turns up or touches, and how the strict score changes."""
        if move.kind in ("colour", "rank"):
            hand = self._hands[(seat + move.place) % self.rules.players]
            told = [card.colour if move.kind == "colour" else card.rank for card in hand]
            touched = tuple(slot for slot, value in enumerate(told) if value == move.value)
            return Event(self.turn, seat, move, None, True, touched), 0.0
        card = self._hands[seat].pop(move.place)
        fits = card.rank == self.fireworks[card.colour] + 1
        if move.kind == "discard":
            return Event(self.turn, seat, move, card, True, ()), 0.0
        if fits:
            self.fireworks[card.colour] += 1
            return Event(self.turn, seat, move, card, True, ()), 1.0
        self.lives -= 1
        lost = 0.0 if self.lives else -float(self.keep_score)
        return Event(self.turn, seat, move, card, False, ()), lost

    def _draw(self, hand: list[Card]) -> None:
        """The next card of the deck; after the last one, each seat has one more turn."""
        if self._state.is_terminal():
            return
        card = self._deck.pop()
        self._state.apply_action(card.colour * self.rules.ranks + card.rank - 1)
        hand.append(card)
        if not self._deck:
            self.turns_left = self.rules.players


@cache
def _engine(rules: Rules) -> Any:
    try:
        import pyspiel
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Hanabi is played by OpenSpiel: pip install 'fox-transformer[hanabi]', on Python 3.11 "
            "or newer"
        ) from error
    return pyspiel.load_game(
        "hanabi",
        {
            "players": rules.players,
            "colors": rules.colours,
            "ranks": rules.ranks,
            "hand_size": rules.hand_size,
            "max_information_tokens": rules.clues,
            "max_life_tokens": rules.lives,
        },
    )
