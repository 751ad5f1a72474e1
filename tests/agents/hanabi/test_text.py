"""Texts say what a view says, in fixed places and in the words of one fixed vocabulary."""

import hashlib
import re
from itertools import product

import numpy as np
import pytest
from deals import after
from grammar import PATTERNS, Reader, content
from samples import ALL, NAMED, name, played

from fox.agents.hanabi import text
from fox.agents.hanabi.game import Game
from fox.agents.hanabi.rules import Move, Rules
from fox.agents.hanabi.text import (
    FIELDS,
    VOCABULARY,
    WORD_IDS,
    action_places,
    action_texts,
    action_words,
    collate,
    observation_places,
    observation_words,
    token_ids,
)


def views_of(rules):
    """Of who moves and of the last seat, at every turn of a careful and of a random game."""
    for careful in (True, False):
        for game in played(rules, 0, careful):
            for seat in {game.mover, rules.players - 1}:
                yield game.view(seat)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("rules", ALL, ids=name)
def test_words_say_all_that_a_view_says(rules):
    for view in views_of(rules):
        assert Reader(observation_words(view), view.seat).observation() == content(view)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("style", ["full", "paper"])
@pytest.mark.parametrize("rules", ALL, ids=name)
def test_every_place_holds_a_word_of_the_vocabulary_that_its_field_allows(rules, style):
    met = set()
    for view in views_of(rules):
        words = observation_words(view, style)
        places = observation_places(rules, len(words), style)
        assert {len(place) for place in places} == {len(words)}
        met.update(zip(words, *(place.tolist() for place in places), strict=True))
    for word, number, offset, clause in met:
        field = re.sub(r"\d", "", FIELDS[number])
        assert re.fullmatch(PATTERNS[field], word), f"{word} as {FIELDS[number]}"
        assert word in text.WORDS[FIELDS[number]]
        assert VOCABULARY[WORD_IDS[word]] == word
        of_partner = field.startswith(("card.", "partner"))
        assert offset in (range(1, rules.players) if of_partner else (0,))
        assert field != "partner" or word == f"+{offset}"
        assert clause == (
            1 + offset
            if of_partner or field == "me" or field.startswith("own.")
            else rules.players + 1
            if field in ("discards", "discarded", "end")
            else 0
        )


def test_no_field_has_words_that_cannot_stand_there():
    for field in FIELDS[1:]:
        pattern = PATTERNS[re.sub(r"\d", "", field)]
        assert all(re.fullmatch(pattern, word) for word in text.WORDS[field])


@pytest.mark.parametrize("rules", NAMED, ids=name)
def test_slots_and_partners_stand_in_their_order(rules):
    places = observation_places(rules, 200)
    fields = [FIELDS[field] for field in places.field]
    slots, partners = range(rules.hand_size), range(1, rules.players)
    own = [field for field in fields if re.match(r"own\d", field)]
    assert own == [f"own{slot}.{part}" for slot in slots for part in ("colour", "rank")]
    cards = [f"card{slot}.{part}" for slot in slots for part in ("card", "colour", "rank")]
    theirs = [
        (field, offset)
        for field, offset in zip(fields, places.offset, strict=True)
        if field.startswith(("card", "partner"))
    ]
    moves = [f"partner.{part}" for part in ("verb", "object", "value", "result")]
    assert theirs == [(field, k) for k in partners for field in ("partner", *cards, *moves)]
    assert (np.diff(places.clause) >= 0).all()
    assert set(places.clause) == set(range(rules.players + 2))


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("rules", ALL, ids=name)
def test_lengths_follow_from_the_sizes_and_the_kinds_of_discards(rules):
    P, C, H = rules.players, rules.colours, rules.hand_size
    for view in views_of(rules):
        fixed = 12 + C + 2 * H + (P - 1) * (5 + 3 * H)
        assert len(observation_words(view)) == fixed + len(set(view.discards))
        assert len(observation_words(view, "paper")) == 6 + C + 2 * H + (P - 1) * (1 + 3 * H)


def test_lengths_of_the_named_games_are_those_of_the_specification():
    lengths = {"full": [47, 67, 76, 93], "2c2r": [29, 40, 51], "2c3r": [29, 40, 51, 62]}
    for game, numbers in (lengths | {"3c3r": [35, 49, 63, 77]}).items():
        for players, length in zip(Rules.player_counts(game), numbers, strict=True):
            fields = observation_places(Rules.of(game, players), length).field
            assert [FIELDS[field] for field in fields[-2:]] == ["discards", "end"]


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("rules", [Rules.of("full", 3), Rules.of("2c2r", 2)], ids=name)
def test_the_style_of_the_paper_has_no_deck_discards_moves_or_negative_hints(rules):
    for view in views_of(rules):
        words = observation_words(view, "paper")
        kept = "(<obs>|<end>|players.|clues.|lives.|me|.[1-4]|unknown|empty|told:.*|[a-z]+[=1-5].?)"
        assert all(re.fullmatch(kept, word) for word in words)
        assert not any(word.startswith(("deck", "last", "slot")) for word in words)
        full = [word for word in observation_words(view) if word.startswith("told:")]
        assert [word for word in words if word.startswith("told:")] == full


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("players", [2, 3, 4, 5])
def test_a_partner_has_one_name_in_hands_in_moves_and_in_actions(players):
    rules = Rules.of("full", players)
    for mover, k, reader in product(range(players), range(1, players), range(players)):
        game = Game.shuffled(rules, np.random.default_rng(players))
        for _ in range(mover):
            game.play(game.legal[-1])  # any hint
        target = (mover + k) % players
        cards = game.hand(target)
        told = Move("rank", k, cards[0].rank)
        game.play(rules.action_ids[told])
        assert action_words(told)[1:3] == ["tell", f"+{k}"]
        said = Reader(observation_words(game.view(reader)), reader).observation()
        names = ["me", *(f"+{j}" for j in range(1, players))]
        of_mover, of_target = (names[(seat - reader) % players] for seat in (mover, target))
        touched = tuple(slot for slot, card in enumerate(cards) if card.rank == told.value)
        assert said[of_mover][2] == ("tell", target, str(told.value), touched)
        hand = said[of_target][1]
        assert {slot for slot, card in enumerate(hand) if card[-1][0]} >= set(touched)
        if reader != target:
            assert [card for card, *_ in hand] == [str(card) for card in cards]


@pytest.mark.parametrize(
    ("move", "words"),
    [
        (Move("play", 4), "<act> play slot4 <end>"),
        (Move("discard", 0), "<act> discard slot0 <end>"),
        (Move("colour", 1, 0), "<act> tell +1 red <end>"),
        (Move("colour", 4, 4), "<act> tell +4 blue <end>"),
        (Move("rank", 2, 5), "<act> tell +2 5 <end>"),
    ],
)
def test_a_move_reads_as_it_is_spoken(move, words):
    assert " ".join(action_words(move)) == words


def sentence(words):
    """The engine's sentence for the words of an action."""
    start, verb, thing, *value, end = words
    assert (start, end) == ("<act>", "<end>")
    if verb in ("play", "discard"):
        assert not value
        return f"({verb.title()} {thing.removeprefix('slot')})"
    (told,) = value
    what = f"rank {told}" if told.isdigit() else f"color {told[0].upper()}"
    assert (verb, thing[0]) == ("tell", "+")
    return f"(Reveal player {thing} {what})"


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("rules", ALL, ids=name)
def test_every_legal_move_is_worded_as_the_engine_words_it(rules):
    met, seed = set(), 0
    while seed < 3 or (rules in NAMED and len(met) < len(rules.moves)):
        for game in played(rules, seed):
            for action in game.legal:
                theirs = game._state.action_to_string(game.mover, action)
                assert sentence(action_words(rules.moves[action])) == theirs
                met.add(action)
        seed += 1
        assert seed < 100


def test_all_numbers_of_players_share_50_texts_of_moves():
    rules = [Rules(players, 5, 5, 5, 8, 3) for players in (2, 3, 4, 5)]
    texts = [[" ".join(action_words(move)) for move in size.moves] for size in rules]
    assert [len(set(some)) for some in texts] == [20, 30, 40, 50]
    assert set(texts[0]) < set(texts[1]) < set(texts[2]) < set(texts[3])


@pytest.mark.parametrize("move", [Move("play", 3), Move("colour", 2, 4), Move("rank", 4, 1)])
def test_every_word_of_a_hint_has_the_offset_of_its_partner(move):
    words, places = action_words(move), action_places(move)
    assert [len(place) for place in places] == [len(words)] * 3
    for word, field in zip(words, places.field, strict=True):
        assert re.fullmatch(PATTERNS[FIELDS[field]], word)
    assert set(places.offset) == {0 if move.kind == "play" else move.place}
    assert set(places.clause) == {0}


TWO = Rules.of("2c2r", 2)
DECK = "R1 Y2 R2 Y1 R1 Y1 R1 Y1"


@pytest.mark.usefixtures("engine")
def test_a_beginning_reads_so():
    assert " ".join(observation_words(after(TWO, DECK).view(1))) == (
        "<obs> players2 clues3 lives1 deck4 red=0 yellow=0 "
        "me can:red|yellow can:1|2 can:red|yellow can:1|2 none none none none "
        "+1 red1 can:red|yellow can:1|2 yellow2 can:red|yellow can:1|2 none none none none "
        "discards <end>"
    )


@pytest.mark.usefixtures("engine")
def test_the_example_of_the_module_is_a_real_one():
    hints = ("colour", 1, 1), ("rank", 1, 1)
    game = after(TWO, DECK, *hints, ("play", 0), ("rank", 1, 2))
    words = " ".join(observation_words(game.view(0)))
    assert words == (
        "<obs> players2 clues0 lives1 deck3 red=1 yellow=0 "
        "me can:red|yellow told:2 can:red|yellow can:1 play slot0 red1 ok "
        "+1 red2 can:red can:1|2 yellow1 told:yellow can:1|2 tell me 2 touch:0 discards <end>"
    )
    assert words in " ".join(text.__doc__.split())
    assert " ".join(observation_words(game.view(0), "paper")) == (
        "<obs> players2 clues0 lives1 red=1 yellow=0 me unknown told:2 unknown unknown "
        "+1 red2 unknown unknown yellow1 told:yellow unknown <end>"
    )


@pytest.mark.usefixtures("engine")
def test_an_end_reads_so():
    rules = Rules(players=3, colours=2, ranks=2, hand_size=2, clues=3, lives=2)
    moves = [("play", 1), ("rank", 2, 1), ("discard", 1), ("colour", 1, 0), ("discard", 0)]
    game = after(rules, DECK, *moves)
    assert " ".join(observation_words(game.view(2))) == (
        "<obs> players3 clues3 lives1 last1 red=0 yellow=0 "
        "me can:red|yellow can:1|2 can:red|yellow can:1|2 discard slot1 yellow1 done "
        "+1 red1 can:red|yellow told:1 red1 can:red|yellow told:1 tell +2 red touch:0 "
        "+2 yellow1 can:yellow can:1|2 empty empty empty discard slot0 red2 done "
        "discards red2x1 yellow1x1 yellow2x1 <end>"
    )
    game.play(rules.action_ids[Move("play", 0)])
    assert " ".join(observation_words(game.view(1))) == (
        "<obs> players3 clues3 lives1 last0 red=1 yellow=0 "
        "me can:yellow can:1|2 empty empty discard slot0 red2 done "
        "+1 yellow1 can:red|yellow can:1|2 empty empty empty play slot0 red1 ok "
        "+2 red1 can:red|yellow told:1 red1 can:red|yellow told:1 tell me red touch:0 "
        "discards red2x1 yellow1x1 yellow2x1 <end>"
    )


def test_the_vocabulary_and_the_fields_never_change_as_checkpoints_depend_on_them():
    lists = [" ".join(words).encode() for words in (VOCABULARY, FIELDS)]
    digests = [hashlib.sha256(words).hexdigest()[:8] for words in lists]
    assert [len(VOCABULARY), len(FIELDS)] == [313, 49]
    assert digests == ["6b8e0bff", "a0335f7c"]
    assert len(set(VOCABULARY)) == len(VOCABULARY) == len(WORD_IDS)
    assert (WORD_IDS["<pad>"], FIELDS[0]) == (0, "padding")
    assert not any(set(word) & set(" \n") for word in VOCABULARY)


@pytest.mark.usefixtures("engine")
def test_texts_side_by_side_are_padded_on_the_right_and_keep_their_words_and_places():
    rows, places = [], []
    for rules in (Rules.of("full", 5), TWO, Rules.of("3c3r", 3)):
        for game in played(rules, 3):
            words = observation_words(game.view(0))
            rows.append(token_ids(words))
            places.append(observation_places(rules, len(words)))
    texts = collate(rows, places)
    longest = max(map(len, rows))
    assert {array.shape for array in texts[:4]} == {(len(rows), longest)}
    assert {array.dtype for array in texts} == {np.dtype(np.int16)}
    for number, (row, place) in enumerate(zip(rows, places, strict=True)):
        n = texts.length[number]
        assert n == len(row)
        for array, part in zip(texts, (row, *place), strict=False):
            np.testing.assert_array_equal(array[number, :n], part)
        padding = [set(array[number, n:].tolist()) for array in texts[:4]]
        assert n == longest or padding == [{0}, {0}, {0}, {place.clause[-1]}]


def test_no_texts_are_collated_to_nothing():
    assert [array.shape for array in collate([], [])] == [(0, 0)] * 4 + [(0,)]


def test_the_texts_of_moves_stand_in_the_order_of_the_moves():
    moves = Rules.of("full", 3).moves
    texts = action_texts(moves)
    assert texts.words.shape == (30, 5)
    for row, length, move in zip(texts.words, texts.length, moves, strict=True):
        assert [VOCABULARY[word] for word in row[:length]] == action_words(move)
        assert not row[length:].any()
    np.testing.assert_array_equal(texts.offset[-1], [2] * 5)
