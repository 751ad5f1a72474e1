"""Rules refuse what the engine would abort at, and number moves as the engine does."""

import pickle

import oracle
import pytest
from samples import ALL, NAMED, name

from fox.agents.hanabi.rules import COLOURS, LETTERS, Card, Move, Rules

SIZES = {"players": 2, "colours": 2, "ranks": 2, "hand_size": 1, "clues": 1, "lives": 1}


@pytest.mark.parametrize(
    ("size", "low", "high"),
    [
        ("players", 2, 5),
        ("colours", 1, 5),
        ("ranks", 1, 5),
        ("hand_size", 1, 5),
        ("clues", 1, 8),
        ("lives", 1, 3),
    ],
)
def test_a_size_out_of_its_range_is_refused(size, low, high):
    large_deck = {"colours": 5, "ranks": 5}
    for value in (low, high):
        assert getattr(Rules(**SIZES | large_deck | {size: value}), size) == value
    for value in (low - 1, high + 1, -1, 10**9):
        with pytest.raises(ValueError, match=f"has {low} to {high} {size}, but got {value}$"):
            Rules(**SIZES | {size: value})


def test_no_more_cards_are_dealt_than_there_are():
    assert Rules(5, 5, 1, 3, 1, 1).deck_size == 15
    with pytest.raises(ValueError, match="5 players with 4 cards each need 20 cards, but 5 colour"):
        Rules(5, 5, 1, 4, 1, 1)
    with pytest.raises(ValueError, match="have 8: take fewer players or smaller hands"):
        Rules(5, 2, 2, 2, 3, 1)


def test_an_unknown_game_or_a_wrong_number_of_players_is_refused():
    with pytest.raises(ValueError, match="a game among full, 3c3r, 2c3r, 2c2r, but got '4c4r'"):
        Rules.of("4c4r", 2)
    with pytest.raises(ValueError, match="but got 'Full'"):
        Rules.player_counts("Full")
    for players in (0, 1, 5):
        with pytest.raises(ValueError, match=f"2c2r is for 2 to 4 players, not {players}"):
            Rules.of("2c2r", players)
    with pytest.raises(ValueError, match="full is for 2 to 5 players, not 6"):
        Rules.of("full", 6)


def test_the_full_game_has_five_cards_in_small_rounds_and_four_in_large_ones():
    assert [Rules.of("full", players).hand_size for players in (2, 3, 4, 5)] == [5, 5, 4, 4]
    assert {Rules.of("full", players).deck_size for players in (2, 3, 4, 5)} == {50}
    assert Rules.of("full", 4) == Rules(4, 5, 5, 4, 8, 3)


@pytest.mark.parametrize(
    ("game", "players", "hand", "clues", "lives", "deck", "score"),
    [
        ("2c2r", (2, 3, 4), 2, 3, 1, 8, 4),
        ("2c3r", (2, 3, 4, 5), 2, 4, 2, 12, 6),
        ("3c3r", (2, 3, 4, 5), 3, 5, 3, 18, 9),
    ],
)
def test_the_small_games_have_their_sizes(game, players, hand, clues, lives, deck, score):
    assert Rules.player_counts(game) == players
    for count in players:
        rules = Rules.of(game, count)
        assert [rules.players, rules.hand_size] == [count, hand]
        assert [rules.clues, rules.lives] == [clues, lives]
        assert [rules.deck_size, rules.max_score] == [deck, score]


@pytest.mark.parametrize("rules", ALL, ids=name)
def test_the_deck_holds_three_1s_one_of_the_highest_rank_and_two_of_the_others(rules):
    assert list(rules.deck) == oracle.cards(rules.colours, rules.ranks)
    assert len(rules.deck) == rules.deck_size


def test_actions_are_numbered_discards_plays_colours_and_ranks_by_partner():
    assert Rules.of("2c2r", 3).moves == (
        Move("discard", 0),
        Move("discard", 1),
        Move("play", 0),
        Move("play", 1),
        Move("colour", 1, 0),
        Move("colour", 1, 1),
        Move("colour", 2, 0),
        Move("colour", 2, 1),
        Move("rank", 1, 1),
        Move("rank", 1, 2),
        Move("rank", 2, 1),
        Move("rank", 2, 2),
    )


@pytest.mark.parametrize("rules", ALL, ids=name)
def test_every_move_has_one_number(rules):
    assert [rules.action_ids[move] for move in rules.moves] == list(range(len(rules.moves)))
    hints = (rules.players - 1) * (rules.colours + rules.ranks)
    assert len(rules.moves) == 2 * rules.hand_size + hints


def test_the_full_game_has_20_30_38_and_48_moves():
    assert [len(Rules.of("full", players).moves) for players in (2, 3, 4, 5)] == [20, 30, 38, 48]


def test_plain_values_make_the_same_rules_again():
    for rules in NAMED:
        hash(rules), rules.deck, rules.moves  # what is kept by the way changes nothing
        assert Rules(**rules.as_dict()) == rules == pickle.loads(pickle.dumps(rules))
        assert hash(Rules(**rules.as_dict())) == hash(rules)
    assert len(set(NAMED)) == len(NAMED)


def test_a_card_reads_as_its_colour_and_rank():
    assert [str(Card(0, 1)), str(Card(4, 5))] == ["red1", "blue5"]
    assert [colour[0].upper() for colour in COLOURS] == list(LETTERS)


@pytest.mark.parametrize("players", [2, 3, 4, 5])
def test_the_full_game_is_the_one_that_the_engine_plays_by_default(engine, players):
    theirs = engine.load_game("hanabi", {"players": players})
    rules = Rules.of("full", players)
    assert theirs.num_distinct_actions() == len(rules.moves)
    assert theirs.max_chance_outcomes() >= rules.colours * rules.ranks
    state = theirs.new_initial_state()
    while state.is_chance_node():
        state.apply_action(state.legal_actions()[0])
    lives, clues, *_ = text = state.observation_string(0).split("\n")
    assert lives == f"Life tokens: {rules.lives}"
    assert clues == f"Info tokens: {rules.clues}"
    assert sum(line.startswith("XX ||") for line in text) == rules.hand_size
    left = rules.deck_size - players * rules.hand_size
    assert f"Deck size: {left}" in text
