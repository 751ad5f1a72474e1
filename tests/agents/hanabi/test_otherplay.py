"""Renamed colours: what a seat then reads is the text of the game with the renamed deck."""

from itertools import permutations

import numpy as np
import pytest
import torch
from episodes import made_up
from samples import choose, shuffled

from fox.agents.hanabi.batch import batch_of
from fox.agents.hanabi.episode import Episode
from fox.agents.hanabi.game import Game
from fox.agents.hanabi.otherplay import renamed, renamed_at_random
from fox.agents.hanabi.rules import Card, Rules
from fox.agents.hanabi.text import VOCABULARY, observation_words, token_ids


def versions(rules, number, style):
    """The same game once for each renaming, as episodes."""
    rng = np.random.default_rng(number)
    deck, moves, episodes = shuffled(rules, rng), [], []
    for seen in permutations(range(rules.colours)):
        game = Game(rules, [Card(seen[card.colour], card.rank) for card in deck])
        words, actions, legal = [], [], []
        while not game.over:
            if not episodes:
                moves.append(rules.moves[choose(game, rng, careful=number % 2 == 0)])
            move = moves[game.turn]
            if move.kind == "colour":
                move = move._replace(value=seen[move.value])
            view = game.view(game.mover)
            words.append(token_ids(observation_words(view, style)))
            legal.append(np.isin(np.arange(len(rules.moves)), view.legal))
            actions.append(rules.action_ids[move])
            game.play(actions[-1])
        episodes.append(
            Episode(
                rules=rules,
                number=number,
                version=0,
                words=np.concatenate(words),
                lengths=np.array([len(row) for row in words], np.int16),
                actions=np.array(actions, np.int16),
                legal=np.array(legal),
                explored=np.zeros(len(actions), bool),
                rewards=np.array(game.rewards, np.float32),
                keep_score=game.keep_score,
                strict_score=game.strict_score,
            )
        )
    return episodes


@pytest.mark.parametrize("style", ["full", "paper"])
@pytest.mark.parametrize("game", ["2c2r", "3c3r"])
def test_each_seat_reads_the_text_of_the_game_with_the_renamed_deck(engine, game, style):
    games = [
        versions(Rules.of(game, players), number, style)
        for number, players in enumerate((2, 2, 3, 3, 4))
    ]
    batches = [batch_of(same, style) for same in zip(*games, strict=True)]
    which = np.arange(len(batches[0].own)) % len(batches)
    batch = renamed(batches[0], which)
    row_which = which[batch.place.numpy() // batch.own.shape[1]]
    for row, k in enumerate(row_which):
        got, expected = batch.texts.words[row], batches[k].texts.words[row]
        assert [VOCABULARY[word] for word in got] == [VOCABULARY[word] for word in expected]
    for g, group in enumerate(batch.groups):
        kinds = torch.from_numpy(row_which[group.rows])
        for name in ("a_t", "legal_t"):
            expected = torch.stack([getattr(one.groups[g], name) for one in batches])
            rows = torch.arange(len(kinds))
            assert (getattr(group, name) == expected[kinds, rows]).all()


def test_all_else_stays_and_the_batch_given_is_not_changed():
    batch = batch_of([made_up(2, 0, turns=9), made_up(3, 1, turns=7)], "full")
    words = batch.texts.words.copy()
    other = renamed_at_random(batch, np.random.default_rng(1))
    assert (other.texts.words != words).any()
    assert (batch.texts.words == words).all()
    for name in ("field", "offset", "clause", "length"):
        assert (getattr(other.texts, name) == getattr(batch.texts, name)).all()
    assert all(
        (one.r_t == two.r_t).all() for one, two in zip(batch.groups, other.groups, strict=True)
    )


def test_seats_of_one_game_are_renamed_apart():
    batch = batch_of([made_up(2, 0, turns=2, game="full")] * 40, "full")
    turns = renamed_at_random(batch, np.random.default_rng(0)).texts.words.reshape(40, 2, -1)
    first, second = (turns[:, seat] for seat in (0, 1))
    assert len(np.unique(first, axis=0)) > 20
    assert len(np.unique(second, axis=0)) > 20
    assert len(np.unique(turns.reshape(40, -1), axis=0)) > max(len(np.unique(first, axis=0)), 30)
