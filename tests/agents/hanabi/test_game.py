"""A game is decided by its deck and its moves, and agrees with plain rules at every turn."""

import sys
from itertools import product

import numpy as np
import pytest
from deals import cards
from oracle import Oracle
from samples import ALL, NAMED, choose, name, played, shuffled
from worlds import told

from fox.agents.hanabi import game as module
from fox.agents.hanabi.game import Game
from fox.agents.hanabi.rules import Card, Move, Rules

TWO = Rules.of("2c2r", 2)  # red1 x3, red2, yellow1 x3, yellow2; three clues, one life
DECK = cards("R1 R2 Y1 Y2 R1 Y1 R1 Y1")


def differences(game, oracle):
    """What the two disagree on."""
    ours = {
        "over": game.over,
        "mover": game.mover,
        "moves": {told(oracle, game.rules.moves[at]) for at in game.legal},
        "fireworks": game.fireworks,
        "lives": game.lives,
        "turns left": game.turns_left,
        "keep": game.keep_score,
        "strict": game.strict_score,
        "hands": [list(game.hand(seat)) for seat in range(game.rules.players)],
    }
    theirs = {
        "over": oracle.over,
        "mover": oracle.seat,
        "moves": oracle.moves(),
        "fireworks": oracle.fireworks,
        "lives": oracle.lives,
        "turns left": oracle.turns_left,
        "keep": oracle.points,
        "strict": oracle.points if oracle.lives else 0,
        "hands": [[oracle.deck[held.place] for held in hand] for hand in oracle.hands],
    }
    for seat in range(game.rules.players):
        view = game.view(seat)
        order = [(seat + k) % game.rules.players for k in range(game.rules.players)]
        ours[f"seen by {seat}"] = {
            "tokens": (view.clues, view.lives, view.deck, view.turns_left),
            "fireworks": list(view.fireworks),
            "discards": sorted(view.discards),
            "hand": list(view.hand),
            "partners": [[tuple(seen) for seen in hand] for hand in view.partners],
            "legal": view.legal,
            "turn": (view.turn, view.seat),
        }
        theirs[f"seen by {seat}"] = {
            "tokens": (
                *(oracle.clues, oracle.lives, len(oracle.deck) - oracle.drawn),
                oracle.turns_left,
            ),
            "fireworks": oracle.fireworks,
            "discards": sorted(oracle.discards),
            "hand": [held.knowledge for held in oracle.hands[seat]],
            "partners": [
                [(oracle.deck[held.place], held.knowledge) for held in oracle.hands[partner]]
                for partner in order[1:]
            ],
            "legal": tuple(game.legal) if seat == oracle.seat else (),
            "turn": (game.turn, seat),
        }
    return {key: (ours[key], theirs[key]) for key in ours if ours[key] != theirs[key]}


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("careful", [True, False], ids=["careful", "random"])
@pytest.mark.parametrize("rules", ALL, ids=name)
def test_every_turn_of_a_random_game_agrees_with_plain_rules(rules, careful):
    generator = np.random.default_rng(rules.deck_size + careful)
    for _ in range(2 if rules.deck_size > 30 else 6):
        deck = shuffled(rules, generator)
        game, oracle = Game(rules, deck), Oracle(rules, deck)
        assert not differences(game, oracle)
        while not game.over:
            action = choose(game, generator, careful)
            seat, move, points = game.mover, rules.moves[action], game.strict_score
            seen = oracle.play(told(oracle, move))
            reward = game.play(action)
            assert not differences(game, oracle)
            assert game.events[-1] == (game.turn - 1, seat, move, *seen)
            assert reward == game.rewards[-1] == game.strict_score - points
        assert len(game.events) == len(game.rewards) == game.turn <= rules.max_turns
        assert sum(game.rewards) == game.strict_score


@pytest.mark.usefixtures("engine")
def test_random_and_careful_games_end_in_all_three_ways():
    ends = {
        (game.lives == 0, game.keep_score == game.rules.max_score, game.turns_left == 0)
        for rules in NAMED
        for careful in (True, False)
        for *_, game in [played(rules, 0, careful), played(rules, 1, careful)]
    }
    assert {(True, False, False), (False, True, False), (False, False, True)} <= ends


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("rules", NAMED, ids=name)
def test_a_seed_gives_the_same_game_again(rules):
    records = []
    for seed in (3, 3, 4):
        *_, game = played(rules, seed)
        records.append((game.events, game.rewards, [game.view(0), game.view(1)]))
    assert records[0] == records[1] != records[2]
    decks = [
        [Game.shuffled(rules, np.random.default_rng(seed)).hand(s) for s in range(rules.players)]
        for seed in (3, 3, 4)
    ]
    assert decks[0] == decks[1] != decks[2]


@pytest.mark.usefixtures("engine")
def test_the_deck_is_dealt_hand_by_hand_and_then_drawn_by_those_who_moved():
    game = Game(TWO, DECK)
    assert [game.hand(0), game.hand(1)] == [tuple(DECK[:2]), tuple(DECK[2:4])]
    game.play(TWO.action_ids[Move("play", 0)])
    assert game.hand(0) == (DECK[1], DECK[4])
    game.play(TWO.action_ids[Move("play", 1)])
    assert game.hand(1) == (DECK[2],), "nothing is drawn after the last life"


@pytest.mark.usefixtures("engine")
def test_the_last_life_takes_the_strict_score_and_leaves_the_keep_score():
    game = Game(TWO, DECK)
    assert game.play(TWO.action_ids[Move("play", 0)]) == 1.0
    assert game.play(TWO.action_ids[Move("play", 1)]) == -1.0
    assert (game.over, game.lives, game.strict_score, game.keep_score) == (True, 0, 0, 1)
    assert game.rewards == [1.0, -1.0]
    assert game.legal == []


@pytest.mark.usefixtures("engine")
def test_a_deal_that_takes_the_whole_deck_leaves_one_turn_for_each():
    rules = Rules.of("2c2r", 4)
    game = Game(rules, DECK)
    for left in (4, 3, 2):
        assert (game.view(0).deck, game.turns_left) == (0, left)
        game.play(game.legal[-1])
    assert not game.view(0).clues
    game.play(rules.action_ids[Move("discard", 0)])
    assert (game.over, game.turns_left, game.hand(3)) == (True, 0, (DECK[7],))


@pytest.mark.usefixtures("engine")
def test_with_all_clues_nothing_is_discarded_and_without_any_nothing_is_told():
    game = Game(TWO, DECK)
    kinds = [{TWO.moves[action].kind for action in game.legal}]
    while game.view(0).clues:
        game.play(game.legal[-1])
    kinds.append({TWO.moves[action].kind for action in game.legal})
    assert kinds == [{"play", "colour", "rank"}, {"play", "discard"}]


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("rules", ALL, ids=name)
def test_who_tells_whenever_possible_and_else_discards_plays_the_longest_game(rules):
    order = ["play", "discard", "colour", "rank"]
    game = Game.shuffled(rules, np.random.default_rng(0))
    while not game.over:
        game.play(max(game.legal, key=lambda action: order.index(rules.moves[action].kind)))
    drawn = rules.deck_size - rules.players * rules.hand_size
    before_the_last_card = rules.clues + 2 * drawn - 1 if drawn else 0
    assert game.turn == before_the_last_card + rules.players <= rules.max_turns


@pytest.mark.parametrize(
    "deck",
    [
        DECK[:-1],
        [*DECK, Card(0, 1)],
        [*DECK[:-1], Card(0, 1)],
        [*DECK[:-1], Card(2, 1)],
        [*DECK[:-1], Card(1, 3)],
        [],
    ],
    ids=["short", "long", "four of a kind", "a third colour", "a third rank", "empty"],
)
def test_a_wrong_deck_is_refused_before_the_engine_is_asked(deck, monkeypatch):
    monkeypatch.setattr(module, "_engine", lambda rules: pytest.fail("asked"))
    with pytest.raises(ValueError, match=r"hold each of the 8 cards .* once: shuffle rules\.deck$"):
        Game(TWO, deck)


@pytest.mark.usefixtures("engine")
def test_an_illegal_move_is_refused_and_changes_nothing():
    game = Game(TWO, DECK)
    before = [game.view(seat) for seat in range(2)]
    for action in (0, 1, -1, len(TWO.moves), 10**6):
        with pytest.raises(ValueError, match=rf"make the moves \[.*\] now, but got {action}$"):
            game.play(action)
    assert [game.view(seat) for seat in range(2)] == before
    assert (game.turn, game.events, game.rewards) == (0, [], [])
    game.play(int(np.int64(game.legal[0])))


@pytest.mark.usefixtures("engine")
def test_nobody_moves_after_the_end():
    *_, game = played(TWO, 0)
    with pytest.raises(ValueError, match=r"the game is over after \d+ turns, but got move 2"):
        game.play(2)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("players", [2, 5])
def test_the_engine_takes_the_least_and_the_most_of_every_size(players):
    sizes = product((1, 5), (1, 5), (1, 5), (1, 8), (1, 3))
    for colours, ranks, hand, clues, lives in sizes:
        if players * hand > colours * (10 if ranks == 5 else 3):
            continue
        rules = Rules(players, colours, ranks, hand, clues, lives)
        assert not Game(rules, rules.deck).over


def test_a_missing_engine_is_named_with_its_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyspiel", None)
    module._engine.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fox-transformer\[hanabi\]'"):
        Game(TWO, DECK)
