"""Conventions: what rule agents do in a situation; each names one legal move, or none.

A convention is a function (reading, generator) -> number of a legal move | None. Partners are asked
from +1 on and slots from the oldest on, and the first wins a tie. P(.) of a slot is the share of
the remaining copies of its plausible cards; "told" is what a hint said outright.

Sources: Walton-Rivers et al., Evaluating and modelling Hanabi-playing agents, CEC 2017; van den
Bergh et al., Aspects of the cooperative card game Hanabi, BNAIC 2016; Osawa, Solving Hanabi:
estimating hands by opponent's actions in cooperative game with incomplete information, AAAI
workshop 2015.

Legend: P players, C colours, N ranks, H cards in a hand.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cache, cached_property

import numpy as np

from fox.agents.hanabi.rules import Card, Move
from fox.agents.hanabi.view import Knowledge, Seen, View


class Reading:
    """What follows from a view, reckoned once for all conventions that are asked.

    A kind of card has the number N colour + rank - 1.

    Args:
        view: of the seat that is to move.
    """

    def __init__(self, view: View) -> None:
        self.view = view

    @cached_property
    def remaining(self) -> list[int]:
        """(C N) copies of each kind that are in the deck or in this hand: seen nowhere else."""
        view, rules = self.view, self.view.rules
        N = rules.ranks
        left = [rules.copies(rank) for rank in range(1, N + 1)] * rules.colours
        for colour, height in enumerate(view.fireworks):
            for kind in range(N * colour, N * colour + height):
                left[kind] -= 1
        for colour, rank in view.discards:
            left[N * colour + rank - 1] -= 1
        for hand in view.partners:
            for (colour, rank), _ in hand:
                left[N * colour + rank - 1] -= 1
        return left

    @cached_property
    def useless_kinds(self) -> frozenset[int]:
        """Kinds that can never be played: they were, or a rank below has lost all its copies."""
        view, rules = self.view, self.view.rules
        N, reach = rules.ranks, [rules.ranks] * rules.colours
        for card in set(view.discards):
            if view.discards.count(card) == rules.copies(card.rank):
                reach[card.colour] = min(reach[card.colour], card.rank - 1)
        return frozenset(
            N * colour + rank - 1
            for colour, height in enumerate(view.fireworks)
            for rank in (*range(1, height + 1), *range(reach[colour] + 1, N + 1))
        )

    @cached_property
    def playable(self) -> list[float]:
        """(H) P(fits now) of each slot."""
        N = self.view.rules.ranks
        heights = enumerate(self.view.fireworks)
        return self._shares([N * colour + height for colour, height in heights if height < N])

    @cached_property
    def useless(self) -> list[float]:
        """(H) P(can never be played) of each slot."""
        return self._shares(self.useless_kinds)

    def plausible(self, knowledge: Knowledge) -> frozenset[int]:
        """The kinds that hints leave."""
        return _kinds(knowledge.colours, knowledge.ranks, self.view.rules.ranks)

    def _shares(self, wanted: Iterable[int]) -> list[float]:
        """(H) share of the remaining copies of plausible kinds that are of kinds wanted."""
        left, found = self.remaining, {}
        for knowledge in set(self.view.hand):
            plausible = self.plausible(knowledge)
            good = sum([left[kind] for kind in wanted if kind in plausible])
            found[knowledge] = good / sum([left[kind] for kind in plausible])  # one is the card
        return [found[knowledge] for knowledge in self.view.hand]

    def fits(self, card: Card) -> bool:
        """Whether a card can be played now."""
        return card.rank == self.view.fireworks[card.colour] + 1

    def is_useless(self, card: Card) -> bool:
        """Whether a card can never be played."""
        return self.view.rules.ranks * card.colour + card.rank - 1 in self.useless_kinds

    def partners_cards(self) -> Iterator[tuple[int, Seen]]:
        """k and a card of +k, one after the other."""
        for k, hand in enumerate(self.view.partners, start=1):
            for seen in hand:
                yield k, seen

    def legal(self, move: Move) -> int | None:
        """The number of the move, if it may be made."""
        action = self.view.rules.action_ids[move]
        return action if action in self.view.legal else None

    def play(self, slot: int) -> int | None:
        """Plays the slot."""
        return self.legal(Move("play", slot))

    def discard(self, slot: int) -> int | None:
        """Discards the slot, if a clue can be won back."""
        return self.legal(Move("discard", slot))

    def tell_colour(self, k: int, card: Card) -> int | None:
        """Tells +k the card's colour, if there is a clue."""
        return self.legal(Move("colour", k, card.colour))

    def tell_rank(self, k: int, card: Card) -> int | None:
        """Tells +k the card's rank, if there is a clue."""
        return self.legal(Move("rank", k, card.rank))


@cache
def _kinds(colours: tuple[int, ...], ranks: tuple[int, ...], N: int) -> frozenset[int]:
    return frozenset(N * colour + rank - 1 for colour in colours for rank in ranks)


Convention = Callable[[Reading, np.random.Generator], int | None]


def play_certain(reading: Reading, generator: np.random.Generator) -> int | None:
    """Plays the first slot that was told both its colour and its rank, and fits.

    Source: Walton-Rivers et al., PlayIfCertain.
    """
    for slot, (colour, rank, _, _) in enumerate(reading.view.hand):
        if colour is not None and rank is not None and reading.fits(Card(colour, rank)):
            return reading.play(slot)
    return None


def play_safe(reading: Reading, generator: np.random.Generator) -> int | None:
    """Plays the first slot with P(playable) = 1.

    Source: Walton-Rivers et al., PlaySafeCard.
    """
    return reading.play(reading.playable.index(1)) if 1 in reading.playable else None


def play_likely(
    reading: Reading,
    generator: np.random.Generator,
    *,
    at_least: float,
    spare_life: bool,
) -> int | None:
    """Plays the slot of highest P(playable), if that is at_least so much.

    With spare_life only if another life would be left.

    Source: Walton-Rivers et al., PlayProbablySafeCard; van den Bergh et al.
    """
    if spare_life and reading.view.lives < 2:
        return None
    return _likeliest(reading.playable, at_least, reading.play)


def hail_mary(reading: Reading, generator: np.random.Generator) -> int | None:
    """Plays the slot of highest P(playable) once the deck is empty, if a life can be spared.

    Source: Walton-Rivers et al., Piers.
    """
    if reading.view.deck:
        return None
    return play_likely(reading, generator, at_least=0, spare_life=True)


def osawa_discard(reading: Reading, generator: np.random.Generator) -> int | None:
    """Discards the first slot that is useless whichever of its plausible cards it is.

    Plausible is what hints alone leave, whether copies remain or not.

    Source: Osawa; Walton-Rivers et al., OsawaDiscard.
    """
    for slot, knowledge in enumerate(reading.view.hand):
        if reading.plausible(knowledge) <= reading.useless_kinds:
            return reading.discard(slot)
    return None


def discard_useless(
    reading: Reading, generator: np.random.Generator, *, at_least: float
) -> int | None:
    """Discards the slot of highest P(useless), if that is at_least so much.

    Source: van den Bergh et al.; Walton-Rivers et al., DiscardProbablyUselessCard.
    """
    return _likeliest(reading.useless, at_least, reading.discard)


def discard_oldest(reading: Reading, generator: np.random.Generator) -> int | None:
    """Discards slot 0.

    Source: Walton-Rivers et al., DiscardOldestFirst.
    """
    return reading.discard(0)


def discard_random(reading: Reading, generator: np.random.Generator) -> int | None:
    """Discards any slot.

    Source: Walton-Rivers et al., DiscardRandomly; Osawa.
    """
    return reading.discard(int(generator.integers(len(reading.view.hand))))


def tell_playable(reading: Reading, generator: np.random.Generator) -> int | None:
    """Tells of the first partner's card that fits and was not told all: its rank, else its colour.

    Source: Walton-Rivers et al., TellAnyoneAboutUsefulCard; Osawa.
    """
    for k, (card, knowledge) in reading.partners_cards():
        if reading.fits(card):
            if knowledge.rank is None:
                return reading.tell_rank(k, card)
            if knowledge.colour is None:
                return reading.tell_colour(k, card)
    return None


def tell_unknown(reading: Reading, generator: np.random.Generator) -> int | None:
    """Tells the next player of the first card that was not told all: its colour, else its rank.

    Source: Walton-Rivers et al., TellUnknown; Osawa.
    """
    for card, knowledge in reading.view.partners[0]:
        if knowledge.colour is None:
            return reading.tell_colour(1, card)
        if knowledge.rank is None:
            return reading.tell_rank(1, card)
    return None


def tell_random(reading: Reading, generator: np.random.Generator) -> int | None:
    """Tells any partner of any card, its colour or its rank as a coin falls.

    Source: Walton-Rivers et al., TellRandomly; Osawa.
    """
    hands = [(k, hand) for k, hand in enumerate(reading.view.partners, start=1) if hand]
    if not hands:  # the last cards are gone
        return None
    k, hand = hands[int(generator.integers(len(hands)))]
    card = hand[int(generator.integers(len(hand)))].card
    tell = reading.tell_rank if generator.integers(2) else reading.tell_colour
    return tell(k, card)


def tell_useless(reading: Reading, generator: np.random.Generator) -> int | None:
    """Tells of the first partner's card that is useless and was not told all: colour, else rank.

    Source: van den Bergh et al.
    """
    for k, (card, knowledge) in reading.partners_cards():
        if reading.is_useless(card):
            if knowledge.colour is None:
                return reading.tell_colour(k, card)
            if knowledge.rank is None:
                return reading.tell_rank(k, card)
    return None


def tell_most(reading: Reading, generator: np.random.Generator) -> int | None:
    """Gives the hint that tells most cards what they were not told; of equals the lowest number.

    Source: van den Bergh et al.; Walton-Rivers et al., TellMostInformation.
    """
    view = reading.view

    def newly_told(action: int) -> int:
        kind, k, value = view.rules.moves[action]
        hand = view.partners[k - 1]
        if kind == "colour":
            return sum(card.colour == value and told.colour is None for card, told in hand)
        return sum(card.rank == value and told.rank is None for card, told in hand)

    hints = [action for action in view.legal if view.rules.moves[action].kind in ("colour", "rank")]
    return max(hints, key=newly_told, default=None)


def tell_dispensable(reading: Reading, generator: np.random.Generator) -> int | None:
    """With fewer than 4 clues, tells of a card what shows its owner that it can go.

    That is its colour, if that firework is complete; its rank, if no firework is lower; else what
    is missing of a card that was played already, if one of both was told.

    Source: Walton-Rivers et al., Piers, TellDispensable.
    """
    view = reading.view
    if view.clues >= 4:
        return None
    lowest = min(view.fireworks)
    for k, (card, knowledge) in reading.partners_cards():
        height = view.fireworks[card.colour]
        if knowledge.colour is None and height == view.rules.ranks:
            return reading.tell_colour(k, card)
        if knowledge.rank is None and card.rank <= lowest:
            return reading.tell_rank(k, card)
        if card.rank <= height and _told_half(knowledge):
            tell = reading.tell_colour if knowledge.colour is None else reading.tell_rank
            return tell(k, card)
    return None


def _told_half(knowledge: Knowledge) -> bool:
    return (knowledge.colour is None) != (knowledge.rank is None)


def _likeliest(
    shares: list[float], at_least: float, move: Callable[[int], int | None]
) -> int | None:
    """The move with the first slot of the highest share."""
    highest = max(shares)
    return move(shares.index(highest)) if highest >= at_least else None
