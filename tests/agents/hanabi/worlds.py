"""Two worlds that a seat cannot tell apart: its hidden cards and the deck are mixed."""

import numpy as np
from oracle import Oracle
from samples import choose, shuffled

from fox.agents.hanabi.game import Game
from fox.agents.hanabi.rules import Card


def told(oracle, move):
    """The same move in the oracle's names."""
    seat = (oracle.seat + move.place) % oracle.rules.players
    return (move.kind, seat, move.value) if move.value or move.kind == "colour" else move[:2]


def another_deck(oracle, seat, generator):
    """A deck that this seat cannot tell from the true one: what it holds and what is not yet drawn
    are mixed, so that the hand still agrees with every hint."""
    held = {card.place: card for card in oracle.hands[seat]}
    deck, hidden = list(oracle.deck), [*held, *range(oracle.drawn, len(oracle.deck))]

    def fits(place, card):
        if place not in held:
            return True
        return card[0] in held[place].colours and card[1] in held[place].ranks

    for one, other in generator.choice(hidden, (4 * len(hidden), 2)):
        if fits(one, deck[other]) and fits(other, deck[one]):
            deck[one], deck[other] = deck[other], deck[one]
    return [Card(*card) for card in deck]


def two_worlds(rules, seat, turns, seed):
    """A game up to a turn, and a game with other cards in this seat's hand and in the deck."""
    generator = np.random.default_rng(seed)
    deck = shuffled(rules, generator)
    game, oracle, actions = Game(rules, deck), Oracle(rules, deck), []
    while len(actions) < turns and not game.over:
        actions.append(choose(game, generator, careful=True))
        oracle.play(told(oracle, rules.moves[actions[-1]]))
        game.play(actions[-1])
    return [deck, another_deck(oracle, seat, generator)], actions
