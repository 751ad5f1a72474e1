"""Each convention makes one move in the situation that it is for, and none in others."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from deals import after, cards, colour, discards, plays, rank
from samples import ALL, name, played

from fox.agents.hanabi.conventions import (
    Reading,
    discard_oldest,
    discard_random,
    discard_useless,
    hail_mary,
    osawa_discard,
    play_certain,
    play_likely,
    play_safe,
    tell_dispensable,
    tell_most,
    tell_playable,
    tell_random,
    tell_unknown,
    tell_useless,
)
from fox.agents.hanabi.rules import Rules

pytestmark = pytest.mark.usefixtures("engine")
SMALL = Rules.of("2c3r", 2)  # hands of 2, 4 clues, 2 lives; R1 three times, R2 twice, R3 once
THREE = Rules.of("2c3r", 3)
FULL = Rules.of("full", 2)
RED, YELLOW = 0, 1
play_at = {at: partial(play_likely, at_least=at, spare_life=False) for at in (0.5, 0.6, 0.7)}
play_with_spare_life = partial(play_likely, at_least=0.5, spare_life=True)
discard_at = {at: partial(discard_useless, at_least=at) for at in (0, 0.5, 1)}
CONVENTIONS = (
    *(play_certain, play_safe, play_at[0.6], play_with_spare_life, hail_mary),
    *(osawa_discard, discard_at[0], discard_oldest, discard_random),
    *(tell_playable, tell_unknown, tell_random, tell_useless, tell_most, tell_dispensable),
)


def reading(game, **changes):
    return Reading(replace(game.view(game.mover), **changes))


def answer(convention, game, seed=0, **changes):
    """The move that it names, or None; changes are made to the view."""
    action = convention(reading(game, **changes), np.random.default_rng(seed))
    return None if action is None else game.rules.moves[action]


def middle(hand="R2 Y3", hint=None):
    """Seat 1 is to move: red stands at 1, Y1 is discarded, and seat 0 holds R1 Y2, R1 told red."""
    first = f"R1 Y1 {hand} R1 Y2"
    return after(SMALL, first, plays(0), hint or colour(1, RED), discards(0))


def hinted(hand="R2 Y3"):
    """The same, when seat 1 has been told which card is a 3: the other one is R1, R2, Y1 or Y2."""
    game = middle(hand)
    for move in (rank(1, 1), rank(1, 3)):
        game.play(SMALL.action_ids[move])
    return game


def test_copies_remain_that_are_neither_on_the_table_nor_in_a_partners_hand():
    assert reading(middle()).remaining == [3 - 2, 2, 1, 3 - 1, 2 - 1, 1]


def test_a_probability_is_a_share_of_the_plausible_copies_that_remain():
    seen = reading(middle())
    assert seen.playable == [(2 + 2) / 8] * 2  # R2 and Y1
    assert seen.useless == [1 / 8] * 2  # R1
    seen = reading(hinted())
    assert seen.playable == [(2 + 2) / 6, 0]
    assert seen.useless == [1 / 6, 0]


def test_cards_are_useless_that_were_played_or_are_above_a_lost_rank():
    moves = colour(1, YELLOW), plays(0), discards(0), colour(1, RED)
    kept = after(SMALL, "R2 R2 R1 Y1 Y1 Y2 Y3", *moves)
    assert reading(kept).useless_kinds == {0}
    lost = after(SMALL, "R2 R2 R1 Y1 Y1 Y2 Y3", *moves, discards(0))
    useless = [card for card in sorted(set(SMALL.deck)) if reading(lost).is_useless(card)]
    assert useless == cards("R1 R2 R3")


def test_a_card_is_certain_that_was_told_both_and_fits():
    moves = colour(1, RED), rank(1, 3), rank(1, 1)
    assert answer(play_certain, after(SMALL, "Y3 Y2 Y2 R1", *moves)) == plays(1)
    assert answer(play_certain, after(SMALL, "Y3 Y2 Y2 R1", *moves[:1])) is None
    assert answer(play_certain, after(SMALL, "Y3 Y2 Y2 R1", moves[2])) is None
    misfit = after(SMALL, "Y3 Y2 Y2 R2", *moves[:2], rank(1, 2))
    assert answer(play_certain, misfit) is None


def test_a_card_is_safe_that_fits_whatever_it_is():
    assert answer(play_safe, after(SMALL, "Y3 Y2 Y2 R1", rank(1, 1))) == plays(1)
    assert answer(play_safe, after(SMALL, "Y3 Y2 Y1 R1", rank(1, 1))) == plays(0)
    assert answer(play_safe, after(SMALL, "Y3 Y2 Y2 R1", colour(1, RED))) is None
    assert answer(play_safe, hinted()) is None


def test_a_likely_card_is_the_likeliest_if_it_is_likely_enough():
    assert answer(play_at[0.6], hinted("R2 Y3")) == plays(0)
    assert answer(play_at[0.6], hinted("Y3 R2")) == plays(1)
    assert answer(play_at[0.7], hinted()) is None
    assert answer(play_at[0.5], middle()) == plays(0), "the threshold is enough, the oldest first"


def test_a_gamble_may_ask_for_a_spare_life():
    assert answer(play_with_spare_life, middle()) == plays(0)
    assert answer(play_with_spare_life, middle(), lives=1) is None
    assert answer(play_at[0.5], middle(), lives=1) == plays(0)


def test_a_hail_mary_takes_an_empty_deck_and_a_spare_life_but_no_likelihood():
    dealt = Rules(players=2, colours=1, ranks=5, hand_size=5, clues=8, lives=3)
    assert answer(hail_mary, after(dealt, "R2 R3 R3 R4 R4")) == plays(0)
    assert answer(hail_mary, after(dealt, "R2 R3 R3 R4 R4"), lives=1) is None
    assert answer(hail_mary, after(SMALL, "R1 R1")) is None


def test_osawa_asks_hints_alone_and_discard_useless_counts_copies():
    """Seat 1 knows of its first card that it is a 1; red stands at 1, and it sees every Y1."""
    moves = rank(1, 1), rank(1, 1), discards(0), colour(1, RED), plays(0)
    game = after(SMALL, "Y1 R1 R1 Y3 Y1 Y1", *moves)
    assert answer(osawa_discard, game) is None
    assert answer(discard_at[1], game) == discards(0)
    for move in (colour(1, YELLOW), colour(1, RED)):
        game.play(SMALL.action_ids[move])
    assert answer(osawa_discard, game) == discards(0)


def test_the_likeliest_useless_card_goes_if_it_is_likely_enough():
    assert answer(discard_at[0], hinted("R2 Y3")) == discards(0)
    assert answer(discard_at[0], hinted("Y3 R2")) == discards(1)
    assert answer(discard_at[0.5], hinted()) is None


def test_any_slot_or_the_oldest_goes():
    game = after(SMALL, "R1 R2 Y1 Y2", rank(1, 1))
    assert answer(discard_oldest, game) == discards(0)
    found = {answer(discard_random, game, seed) for seed in range(20)}
    assert found == {discards(0), discards(1)}


@pytest.mark.parametrize("discard", [discard_oldest, discard_random, discard_at[0]])
def test_nothing_is_discarded_while_every_clue_is_there(discard):
    assert answer(discard, after(SMALL, "R1 R2 Y1 Y2")) is None


def test_a_playable_card_is_told_by_rank_then_by_colour():
    hands = "R3 Y3 R2 Y2 Y1 R1"
    assert answer(tell_playable, after(THREE, hands)) == rank(2, 1)
    moves = rank(2, 1), colour(1, YELLOW), rank(1, 3)
    assert answer(tell_playable, after(THREE, hands, *moves[:1])) == colour(1, YELLOW)
    assert answer(tell_playable, after(THREE, hands, *moves[:2])) is None, "sees no playable card"
    assert answer(tell_playable, after(THREE, hands, *moves)) == colour(2, RED)
    assert answer(tell_playable, after(THREE, "R3 Y3 R2 R1 Y1 R1")) == rank(1, 1)


def test_the_next_player_is_told_colours_then_ranks_card_by_card():
    hands = "Y1 Y2 Y3 Y4 Y5 R1 Y2 G3 W4 B5"
    moves = colour(1, RED), colour(1, YELLOW), rank(1, 1), rank(1, 1)
    assert answer(tell_unknown, after(FULL, hands)) == colour(1, RED)
    assert answer(tell_unknown, after(FULL, hands, *moves[:2])) == rank(1, 1)
    assert answer(tell_unknown, after(FULL, hands, *moves)) == colour(1, YELLOW)
    game = after(THREE, "R3 Y3 R2 Y2 Y1 R1")
    (_, others) = game.view(0).partners
    assert answer(tell_unknown, game, partners=((), others)) is None


def test_a_random_hint_may_be_any_that_touches_a_card():
    game = after(THREE, "R3 Y3 R2 Y2 Y1 R1")
    hints = [move for move in map(THREE.moves.__getitem__, game.legal) if move.kind != "play"]
    assert {answer(tell_random, game, seed) for seed in range(100)} == set(hints)
    assert len(hints) == 6


def test_a_random_hint_needs_a_partner_with_cards():
    rules = Rules(players=2, colours=1, ranks=2, hand_size=1, clues=1, lives=3)
    game = after(rules, "R1 R1 R1", plays(0), plays(0), plays(0))
    assert game.view(1).partners == ((),)
    assert answer(tell_random, game) is None


def test_a_useless_card_is_told_by_colour_then_by_rank():
    assert answer(tell_useless, middle(hint=colour(1, YELLOW))) == colour(1, RED)
    assert answer(tell_useless, middle(hint=rank(1, 1))) == colour(1, RED)
    assert answer(tell_useless, middle(hint=colour(1, RED))) == rank(1, 1)
    assert answer(tell_useless, hinted()) is None, "all is told"


def test_the_hint_that_tells_most_counts_only_what_was_not_told():
    hands = "Y1 Y2 Y3 Y4 Y5 R1 R2 R3 Y1 W1"
    assert answer(tell_most, after(FULL, hands)) == colour(1, RED), "the first of equals"
    told = after(FULL, hands, colour(1, RED), colour(1, YELLOW))
    assert answer(tell_most, told) == rank(1, 1)


def test_a_card_of_a_complete_firework_is_told_by_colour():
    moves = plays(0), colour(1, RED), plays(0), rank(1, 3), plays(0)
    game = after(SMALL, "R1 R2 Y1 Y2 R3 R1 Y3", *moves)
    assert game.view(1).fireworks == (3, 0)
    assert answer(tell_dispensable, game) == colour(1, RED)
    assert answer(tell_dispensable, game, clues=4) is None


def test_a_rank_that_every_firework_has_reached_is_told():
    game = after(SMALL, "R1 Y1 Y2 Y3 R1 R2", plays(0), colour(1, YELLOW), plays(0))
    assert game.view(1).fireworks == (1, 1)
    assert answer(tell_dispensable, game) == rank(1, 1)


def test_what_is_missing_of_a_played_card_is_told_if_one_of_both_was():
    for told, missing in (
        (rank(1, 1), colour(1, RED)),
        (colour(1, RED), rank(1, 1)),
        (colour(1, YELLOW), None),  # not of this card
    ):
        game = after(SMALL, "R1 Y1 R2 Y3 R1", plays(0), told, rank(1, 3))
        assert answer(tell_dispensable, game) == missing


@pytest.mark.parametrize(
    "tell", [tell_playable, tell_unknown, tell_random, tell_useless, tell_most, tell_dispensable]
)
def test_nothing_is_told_without_a_clue(tell):
    """Seat 1 sees Y1, which fits, and R1, which is useless; both were told their rank alone."""
    moves = plays(0), rank(1, 1), colour(1, RED), rank(1, 1), colour(1, RED)
    game = after(SMALL, "R1 Y1 R2 Y3 R1", *moves)
    assert game.view(1).clues == 0
    assert answer(tell, game) is None
    assert answer(tell, game, legal=tuple(range(len(SMALL.moves)))) is not None


@pytest.mark.parametrize("rules", ALL, ids=name)
def test_every_move_that_a_convention_names_is_legal(rules):
    generator, named = np.random.default_rng(0), 0
    for seed in range(4):
        for game in played(rules, seed, careful=seed % 2 == 0):
            if game.over:
                continue
            seen = reading(game)
            for convention in CONVENTIONS:
                action = convention(seen, generator)
                assert action is None or action in game.legal
                named += action is not None
    assert named
