"""Games with chosen decks and moves."""

from collections import Counter

from fox.agents.hanabi.game import Game
from fox.agents.hanabi.rules import LETTERS, Card, Move


def cards(words):
    """R1 Y2 as cards."""
    return [Card(LETTERS.index(word[0]), int(word[1])) for word in words.split()]


def after(rules, first, *moves):
    """A game after these moves; its deck has these cards first: hands by seat, then draws."""
    rest = Counter(rules.deck)
    rest.subtract(cards(first))
    game = Game(rules, [*cards(first), *rest.elements()])
    for move in moves:
        game.play(rules.action_ids[Move(*move)])
    return game


def plays(slot):
    return Move("play", slot)


def discards(slot):
    return Move("discard", slot)


def colour(k, value):
    return Move("colour", k, value)


def rank(k, value):
    return Move("rank", k, value)
