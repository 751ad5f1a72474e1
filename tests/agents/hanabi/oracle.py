"""The rules of Hanabi in plain Python: the engine, and our reading of it, must agree with them.

A move is ("play", slot), ("discard", slot), ("colour", seat, colour) or ("rank", seat, rank). Seats
are counted from the first player, slots from the oldest card, colours from 0 and ranks from 1.
"""

from dataclasses import dataclass


@dataclass
class Held:
    """A card in a hand: its place in the deck, and what hints have told its owner."""

    place: int
    colours: list[int]
    ranks: list[int]
    colour_told: bool = False
    rank_told: bool = False

    @property
    def knowledge(self):
        """The colour and the rank that were told, and those that are possible."""
        colour = self.colours[0] if self.colour_told else None
        rank = self.ranks[0] if self.rank_told else None
        return colour, rank, tuple(self.colours), tuple(self.ranks)


def cards(colours, ranks):
    """Of each colour three 1s, one of the highest rank, and two of every rank between."""
    numbers = [3, *[2] * (ranks - 2), *[1] * (ranks > 1)]
    return [
        (colour, rank)
        for colour in range(colours)
        for rank, number in enumerate(numbers, start=1)
        for _ in range(number)
    ]


class Oracle:
    """A game; `rules` gives nothing but its sizes, and the deck is drawn from its beginning."""

    def __init__(self, rules, deck):
        self.rules, self.deck = rules, [tuple(card) for card in deck]
        self.clues, self.lives = rules.clues, rules.lives
        self.fireworks = [0] * rules.colours
        self.discards = []
        self.drawn, self.turns_left = 0, None
        self.seat = 0
        self.hands = [[] for _ in range(rules.players)]
        for hand in self.hands:
            for _ in range(rules.hand_size):
                self._draw(hand)

    @property
    def points(self):
        return sum(self.fireworks)

    @property
    def over(self):
        """By the last life, by complete fireworks, or a turn each after the last card."""
        complete = self.points == self.rules.colours * self.rules.ranks
        return self.lives == 0 or complete or self.turns_left == 0

    def moves(self):
        """The moves that are allowed: a hint must be about a card, and not every clue be there."""
        if self.over:
            return set()
        slots = range(len(self.hands[self.seat]))
        moves = {("play", slot) for slot in slots}
        if self.clues < self.rules.clues:
            moves |= {("discard", slot) for slot in slots}
        partners = [seat for seat in range(self.rules.players) if seat != self.seat]
        for seat in partners if self.clues else []:
            for held in self.hands[seat]:
                colour, rank = self.deck[held.place]
                moves |= {("colour", seat, colour), ("rank", seat, rank)}
        return moves

    def play(self, move):
        """Makes a move; returns what all see: a card, whether it fits, and the slots touched."""
        kind, place, *value = move
        hand, last_round = self.hands[self.seat], self.turns_left is not None
        card, fits, touched = None, True, ()
        if kind in ("colour", "rank"):
            touched = self._tell(self.hands[place], kind, *value)
        else:
            card = self.deck[hand.pop(place).place]
            fits = self._put(*card) if kind == "play" else self._discard(card)
        if last_round:
            self.turns_left -= 1
        if not self.over and card and self.drawn < len(self.deck):
            self._draw(hand)
        self.seat = (self.seat + 1) % self.rules.players
        return card, fits, touched

    def _draw(self, hand):
        """A card that nobody knows anything of; with the last one the last round begins."""
        colours, ranks = range(self.rules.colours), range(1, self.rules.ranks + 1)
        hand.append(Held(self.drawn, list(colours), list(ranks)))
        self.drawn += 1
        if self.drawn == len(self.deck):
            self.turns_left = self.rules.players

    def _put(self, colour, rank):
        fits = self.fireworks[colour] == rank - 1
        if fits:
            self.fireworks[colour] = rank
            if rank == self.rules.ranks:
                self._clue_back()
        else:
            self.lives -= 1
            self.discards.append((colour, rank))
        return fits

    def _discard(self, card):
        self.discards.append(card)
        self._clue_back()
        return True

    def _clue_back(self):
        self.clues = min(self.clues + 1, self.rules.clues)

    def _tell(self, hand, kind, value):
        """All cards of this colour or rank are pointed out; so the others are known not to be."""
        self.clues -= 1
        touched = []
        for slot, held in enumerate(hand):
            possible = held.colours if kind == "colour" else held.ranks
            if value == self.deck[held.place][kind == "rank"]:
                touched.append(slot)
                possible[:] = [value]
                setattr(held, f"{kind}_told", True)
            elif value in possible:
                possible.remove(value)
        return tuple(touched)
