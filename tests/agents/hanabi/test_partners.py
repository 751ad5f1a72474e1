"""Partners play by their conventions, see what they may, and score as in the literature."""

import pickle

import numpy as np
import pytest
from deals import after, colour, discards, plays, rank
from samples import ALL, name
from worlds import two_worlds

from fox.agents.hanabi.conventions import discard_oldest
from fox.agents.hanabi.game import Game
from fox.agents.hanabi.partners import PARTNERS, RulePlayer, partner
from fox.agents.hanabi.rules import Rules
from fox.agents.hanabi.table import Turn, play_games

pytestmark = pytest.mark.usefixtures("engine")
SMALL = Rules.of("2c3r", 2)
FULL = Rules.of("full", 2)
RED, YELLOW = 0, 1
HONEST = [name for name, player in PARTNERS.items() if not player.sees_hand]
# Mean strict scores on 2c3r with 2 and 3 players, each known to about 0.05.
SCORES = {
    "random": (0.4, 0.6),
    "flawed": (0.3, 0.5),
    "internal": (4.3, 4.6),
    "outer": (4.3, 4.6),
    "iggi": (4.6, 4.7),
    "vandenbergh": (4.6, 4.7),
    "piers": (4.9, 5.0),
    "cheater": (6.0, 6.0),
}


def self_play(player, rules, seed, games=20):
    return play_games(rules, [(seed, number) for number in range(games)], [player] * rules.players)


def moves(games):
    return [[event.move for event in game.events] for game in games]


def choice(player, game, seed=0):
    """The move of a player in the place of who is to move."""
    hand = game.hand(game.mover) if player.sees_hand else None
    seat = player.sit(game.rules, [np.random.default_rng(seed)])
    (action,) = seat.act([Turn(0, game.view(game.mover), hand)])
    return game.rules.moves[action]


def test_a_partner_is_found_by_its_name():
    assert {name: partner(name).name for name in PARTNERS} == {name: name for name in SCORES}


def test_an_unknown_partner_is_told_with_those_there_are():
    message = "expected a partner among internal, .*, random, cheater, but got 'smartbot'"
    with pytest.raises(ValueError, match=message):
        partner("smartbot")


def test_the_cheater_is_the_only_one_that_sees_its_hand():
    assert [name for name, player in PARTNERS.items() if player.sees_hand] == ["cheater"]


@pytest.mark.parametrize("name", PARTNERS)
def test_games_repeat_exactly_under_a_seed_and_no_other(name):
    rules = Rules.of("3c3r", 3)
    games = moves(self_play(partner(name), rules, seed=1))
    again = pickle.loads(pickle.dumps(partner(name)))
    assert moves(self_play(again, rules, seed=1)) == games
    assert moves(self_play(partner(name), rules, seed=2)) != games


@pytest.mark.parametrize("name", PARTNERS)
def test_a_game_does_not_depend_on_those_beside_it(name):
    together = moves(self_play(partner(name), SMALL, seed=1, games=3))
    seats = [partner(name)] * 2
    alone = [moves(play_games(SMALL, [(1, number)], seats))[0] for number in range(3)]
    assert together == alone


@pytest.mark.parametrize("name", PARTNERS)
def test_mean_scores_are_those_of_the_literatures_agents(name):
    for players, score in zip((2, 3), SCORES[name], strict=True):
        games = self_play(partner(name), Rules.of("2c3r", players), seed=1, games=150)
        mean = np.mean([game.strict_score for game in games])
        assert mean == pytest.approx(score, abs=0.35)


@pytest.mark.parametrize("rules", ALL, ids=name)
def test_partners_of_all_kinds_play_any_game_to_its_end_together(rules):
    for first in range(len(PARTNERS)):
        names = [*PARTNERS, *PARTNERS][first : first + rules.players]
        games = play_games(rules, [(first, 0)], [partner(name) for name in names])
        assert all(game.over for game in games)


@pytest.mark.parametrize("players", [2, 3, 5])
def test_no_honest_partner_minds_what_it_cannot_see(players):
    rules, different = Rules.of("full", players), 0
    for seed in range(12):
        decks, actions = two_worlds(rules, seed % players, 4 * players + seed % players, seed)
        games = [Game(rules, deck) for deck in decks]
        for action in actions:
            for game in games:
                game.play(action)
        if games[0].over:
            continue
        different += games[0].hand(seed % players) != games[1].hand(seed % players)
        for honest in HONEST:
            first, second = (choice(partner(honest), game, seed) for game in games)
            assert first == second
    assert different > 6


def choices(name, *deal):
    """The moves that it makes under many seeds, and those it might make."""
    game = after(*deal)
    found = {choice(partner(name), game, seed) for seed in range(60)}
    return found, {game.rules.moves[action] for action in game.legal}


def test_partners_differ_where_nothing_is_known_and_every_clue_is_there():
    """No hand has a 1; a slot fits in a third of all cases."""
    deal = FULL, "R3 Y3 G3 W3 B3 R2 Y2 G2 W2 B2"
    for some in ("internal", "piers"):
        found, legal = choices(some, *deal)
        assert found == {move for move in legal if move.kind != "play"}
    for some in ("iggi", "random"):
        found, legal = choices(some, *deal)
        assert found == legal
    assert choices("outer", *deal)[0] == {colour(1, RED)}
    assert choices("vandenbergh", *deal)[0] == {rank(1, 2)}
    assert choices("flawed", *deal)[0] == {plays(0)}


def test_partners_differ_where_no_card_fits():
    """Seat 1 knows that it holds 2s."""
    deal = FULL, "R3 Y3 G3 W3 B3 R2 Y2 G2 W2 B2", rank(1, 2)
    for some in ("iggi", "piers"):
        assert choices(some, *deal)[0] == {discards(0)}
    for some in ("internal", "flawed"):
        found, legal = choices(some, *deal)
        assert found == {move for move in legal if move.kind in ("colour", "rank")}
    assert choices("outer", *deal)[0] == {colour(1, RED)}
    assert choices("vandenbergh", *deal)[0] == {rank(1, 3)}


def test_piers_says_a_hail_mary_when_the_deck_is_empty():
    dealt = Rules(players=2, colours=1, ranks=5, hand_size=5, clues=8, lives=3)
    deal = dealt, "R2 R3 R3 R4 R4"
    assert choices("piers", *deal)[0] == {plays(0)}
    assert choices("vandenbergh", *deal)[0] == choices("iggi", *deal)[0] == {rank(1, 1)}


def cheats(*deal):
    return choice(partner("cheater"), after(*deal))


def test_the_cheater_plays_its_lowest_card_that_fits():
    assert cheats(SMALL, "R3 R1 Y1 Y1") == plays(1)
    assert cheats(SMALL, "R1 R2 Y3 Y2 Y1", plays(0), colour(1, RED)) == plays(1)


def test_the_cheater_discards_what_is_useless_or_else_held_twice():
    assert cheats(SMALL, "R1 Y2 Y2 R3 R1", plays(0), colour(1, YELLOW)) == discards(1)
    assert cheats(SMALL, "R2 Y2 R3 Y2", rank(1, 3)) == discards(1)
    assert cheats(SMALL, "R2 Y3 Y2 Y2", rank(1, 2)) == discards(0)


def test_the_cheater_gives_a_hint_where_its_cards_are_worth_keeping_or_every_clue_is_there():
    assert cheats(SMALL, "R2 Y2 R3 Y3", rank(1, 3)).kind in ("colour", "rank")
    assert cheats(SMALL, "R2 R2 Y3 Y2").kind in ("colour", "rank")


def test_the_cheater_without_a_clue_discards_the_highest_card_that_is_not_the_last_of_its_kind():
    hints = [rank(1, 2), rank(1, 5)] * 4
    assert cheats(FULL, "R2 R3 R4 R5 Y4 Y2 Y3 W2 W3 W4", *hints) == discards(2)
    hints = [rank(1, 2), rank(1, 3)] * 2
    assert cheats(SMALL, "Y3 R3 R2 Y2", *hints) == discards(0), "each is the last"


def test_the_first_convention_that_names_a_move_decides():
    def named(action):
        return lambda reading, generator: action

    game = Game(SMALL, SMALL.deck)
    player = RulePlayer("third", [named(None), discard_oldest, named(3), named(2)])
    assert choice(player, game) == SMALL.moves[3], "no card may be discarded now"


def test_any_legal_move_is_made_where_no_convention_names_one():
    game = Game(SMALL, SMALL.deck)
    found = {choice(RulePlayer("none", []), game, seed) for seed in range(60)}
    assert found == {SMALL.moves[action] for action in game.legal}
