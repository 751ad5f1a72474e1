"""A view tells a seat what it may know, and nothing of the cards in its own hand."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import NAMED, name, played, shuffled
from worlds import two_worlds

from fox.agents.hanabi.game import Game
from fox.agents.hanabi.rules import Card, Move, Rules
from fox.agents.hanabi.text import observation_words
from fox.agents.hanabi.view import Knowledge, View, read_view

pytestmark = pytest.mark.usefixtures("engine")
some = settings(max_examples=40, deadline=None)

UNKNOWN = Knowledge(None, None, (0, 1), (1, 2, 3))


def seen(rules, deck, actions, seat):
    """Everything that a seat is shown in the course of a game."""
    game = Game(rules, deck)
    views = [game.view(seat)]
    for action in actions:
        game.play(action)
        views.append(game.view(seat))
    return game, views


def in_words(views):
    return [observation_words(view, style) for view in views for style in ("full", "paper")]


@some
@given(data=st.data(), rules=st.sampled_from(NAMED), seed=st.integers(0, 2**32))
def test_no_seat_is_shown_anything_that_depends_on_its_hidden_cards(data, rules, seed):
    seat = data.draw(st.integers(0, rules.players - 1))
    turns = data.draw(st.integers(0, rules.max_turns // 2))
    decks, actions = two_worlds(rules, seat, turns, seed)
    (game, views), (other, others) = (seen(rules, deck, actions, seat) for deck in decks)
    assert views == others
    assert repr(views) == repr(others)
    assert in_words(views) == in_words(others)
    assert game.events == other.events, "the second world is possible"


@pytest.mark.parametrize("players", [2, 3, 4, 5])
def test_the_two_worlds_of_that_test_differ_and_a_partner_tells_them_apart(players):
    rules, apart = Rules.of("full", players), 0
    for seed in range(10):
        decks, actions = two_worlds(rules, 1, 12, seed)
        games = [seen(rules, deck, actions, 0) for deck in decks]
        (game, (*_, view)), (other, (*_, another)) = games
        hands = [game.hand(1), other.hand(1)]
        assert (hands[0] != hands[1]) == (in_words([view]) != in_words([another]))
        apart += hands[0] != hands[1]
    assert apart >= 8


@pytest.mark.parametrize("players", [3, 4, 5])
def test_partners_who_swap_their_hands_are_told_apart(players):
    rules = Rules.of("full", players)
    deck, H = shuffled(rules, np.random.default_rng(1)), rules.hand_size
    swapped = [*deck[:H], *deck[2 * H : 3 * H], *deck[H : 2 * H], *deck[3 * H :]]
    assert Game(rules, deck).hand(1) == Game(rules, swapped).hand(2)
    words, others = (observation_words(Game(rules, cards).view(0)) for cards in (deck, swapped))
    assert words != others
    assert sorted(words) == sorted(others)


def test_a_view_has_these_fields_and_no_others():
    (view, *_) = (game.view(1) for game in played(Rules.of("2c3r", 3), 0))
    names = {field.name for field in fields(View)}
    assert set(vars(view)) == names
    assert names == {
        *("rules", "seat", "mover", "turn", "clues", "lives", "deck", "turns_left"),
        *("fireworks", "hand", "partners", "discards", "events", "legal"),
    }
    assert Knowledge._fields == ("colour", "rank", "colours", "ranks")


@pytest.mark.parametrize("rules", NAMED, ids=name)
def test_a_seat_sees_its_partners_in_the_order_of_play_and_who_of_them_moves(rules):
    for game in played(rules, 1):
        for seat in range(rules.players):
            view = game.view(seat)
            for k, hand in enumerate(view.partners, start=1):
                partner = (seat + k) % rules.players
                assert tuple(card for card, _ in hand) == game.hand(partner)
                assert view.events[k] == last_of(game, partner)
                if not game.over:
                    assert (view.mover == k) == (partner == game.mover)
            assert view.events[0] == last_of(game, seat)
            assert game.over or (view.mover == 0) == (seat == game.mover)


def last_of(game, seat):
    return next((event for event in reversed(game.events) if event.seat == seat), None)


def test_only_who_is_to_move_is_told_what_is_legal():
    for game in played(Rules.of("3c3r", 3), 2):
        for seat in range(3):
            legal = tuple(game.legal) if seat == game.mover else ()
            assert game.view(seat).legal == legal


def test_a_hint_tells_of_the_cards_that_it_does_not_touch_and_moves_with_the_slots():
    rules = Rules.of("2c3r", 2)  # red 1 1 1 2 2 3 and the same in yellow
    deck = [Card(*card) for card in [(0, 1), (0, 3), (1, 2), (0, 2), (1, 1), (1, 3)]]
    deck += [Card(*card) for card in [(0, 1), (0, 1), (0, 2), (1, 1), (1, 1), (1, 2)]]
    game = Game(rules, deck)

    def play(*move):
        game.play(rules.action_ids[Move(*move)])

    play("rank", 1, 2)  # both
    assert game.view(1).hand == (Knowledge(None, 2, (0, 1), (2,)),) * 2
    assert game.view(0).hand == (UNKNOWN,) * 2
    play("rank", 1, 3)  # slot 1, so that slot 0 is no 3
    assert game.view(0).hand == (
        Knowledge(None, None, (0, 1), (1, 2)),
        Knowledge(None, 3, (0, 1), (3,)),
    )
    play("colour", 1, 1)  # slot 0, so that slot 1 is red, though nobody said so
    assert game.view(1).hand == (Knowledge(1, 2, (1,), (2,)), Knowledge(None, 2, (0,), (2,)))
    play("discard", 0)
    assert game.view(1).hand == (Knowledge(None, 2, (0,), (2,)), UNKNOWN)
    play("discard", 0)
    assert game.view(0).hand == (Knowledge(None, 3, (0, 1), (3,)), UNKNOWN)
    assert [event.touched for event in game.events] == [(0, 1), (1,), (0,), (), ()]
    assert [event.card for event in game.events[2:]] == [None, Card(1, 2), Card(0, 1)]
    assert game.view(1).discards == (Card(1, 2), Card(0, 1))


def test_hands_shrink_in_the_last_round():
    sizes = set()
    for seed in range(20):
        *_, game = played(Rules.of("2c3r", 3), seed)
        if game.turns_left == 0:
            view = game.view(0)
            sizes.add((len(view.hand), *map(len, view.partners)))
    assert {2, 1} == {size for hands in sizes for size in hands}


def test_the_string_of_the_engine_is_read_line_by_line():
    text = "\n".join(
        [
            "Life tokens: 2",
            "Info tokens: 0",
            "Fireworks: R0 Y3 ",
            "Hands:",
            "XX || YX|Y12",
            "XX || X3|RY3",
            "-----",
            "Cur player",
            "R1 || XX|R12",
            "-----",
            "Deck size: 11",
            "Discards: Y1 R3",
        ]
    )
    rules = Rules(3, 2, 3, 2, 4, 2)
    view = read_view(rules, 2, text, turn=6, turns_left=None, events=["a", "b", "c"], legal=[])
    assert view == View(
        rules=rules,
        seat=2,
        mover=1,
        turn=6,
        clues=0,
        lives=2,
        deck=11,
        turns_left=None,
        fireworks=(0, 3),
        hand=(Knowledge(1, None, (1,), (1, 2)), Knowledge(None, 3, (0, 1), (3,))),
        partners=(((Card(0, 1), Knowledge(None, None, (0,), (1, 2))),), ()),
        discards=(Card(1, 1), Card(0, 3)),
        events=("c", "a", "b"),
        legal=(),
    )
