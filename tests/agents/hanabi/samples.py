"""Games of all sizes to test with."""

import numpy as np

from fox.agents.hanabi.game import Game
from fox.agents.hanabi.rules import GAMES, Rules

NAMED = [Rules.of(game, players) for game in GAMES for players in Rules.player_counts(game)]
ODD = [
    Rules(players=2, colours=1, ranks=1, hand_size=1, clues=1, lives=1),
    Rules(players=5, colours=5, ranks=1, hand_size=3, clues=2, lives=2),  # the deal takes all
    Rules(players=2, colours=1, ranks=5, hand_size=5, clues=8, lives=3),  # here, too
    Rules(players=3, colours=1, ranks=5, hand_size=3, clues=8, lives=3),
    Rules(players=2, colours=3, ranks=4, hand_size=5, clues=3, lives=2),
    Rules(players=2, colours=5, ranks=5, hand_size=1, clues=8, lives=3),  # the largest deck
    Rules(players=5, colours=5, ranks=5, hand_size=5, clues=1, lives=1),
]
ALL = NAMED + ODD


def name(rules):
    """For a test's id: 3p-2c3r-h2-i4-l2."""
    sizes = (rules.players, rules.colours, rules.ranks, rules.hand_size, rules.clues, rules.lives)
    return "{}p-{}c{}r-h{}-i{}-l{}".format(*sizes)


def shuffled(rules, generator):
    return [rules.deck[place] for place in generator.permutation(rules.deck_size)]


def choose(game, generator, careful):
    """A random move; a careful player looks at its cards, plays those that fit and no others."""
    moves, hand = game.rules.moves, game.hand(game.mover)
    plays = [action for action in game.legal if moves[action].kind == "play"]
    others = [action for action in game.legal if action not in plays]
    fitting = [
        action
        for action in plays
        if hand[moves[action].place].rank == game.fireworks[hand[moves[action].place].colour] + 1
    ]
    choice = game.legal
    if careful and fitting and generator.random() < 0.5:
        choice = fitting
    elif careful and others:
        choice = others
    return int(generator.choice(choice))


def played(rules, seed, careful=True):
    """Yields a game before each move, and when it is over."""
    generator = np.random.default_rng(seed)
    game = Game(rules, shuffled(rules, generator))
    while not game.over:
        yield game
        game.play(choose(game, generator, careful))
    yield game
