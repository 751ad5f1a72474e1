"""Another engine, the Hanabi Learning Environment, agrees at every turn of the same games."""

import warnings

import numpy as np
import pytest
from samples import ALL, name

from fox.agents.hanabi.game import Game
from fox.agents.hanabi.rules import Card

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ResourceWarning)  # it leaves a file open
    other = pytest.importorskip(
        "hanabi_learning_environment.pyhanabi",
        reason="needs g++, cmake and CMAKE_POLICY_VERSION_MINIMUM=3.5 pip install "
        "hanabi-learning-environment",
    )


def spread(knowledge, rules):
    """What is known of a card, as ours has it."""
    colour, rank = knowledge.color(), knowledge.rank()
    return (
        colour,
        None if rank is None else rank + 1,
        tuple(c for c in range(rules.colours) if knowledge.color_plausible(c)),
        tuple(r + 1 for r in range(rules.ranks) if knowledge.rank_plausible(r)),
    )


def cards(theirs):
    return [Card(card.color(), card.rank() + 1) for card in theirs]


def their_account(game, state, rules):
    over, seats = state.is_terminal(), range(rules.players)
    account = {
        "over": over,
        "strict": state.score(),
        "fireworks": state.fireworks(),
        "hands": [cards(hand) for hand in state.player_hands()],
    }
    for seat in seats:
        seen = state.observation(seat)
        account[seat] = {
            "tokens": (seen.information_tokens(), seen.life_tokens(), seen.deck_size()),
            "fireworks": seen.fireworks(),
            "discards": cards(seen.discard_pile()),
            "partners": [cards(hand) for hand in seen.observed_hands()[1:]],
            "knowledge": [[spread(one, rules) for one in hand] for hand in seen.card_knowledge()],
        }
        if not over:
            account[seat]["mover"] = seen.cur_player_offset()
            account[seat]["legal"] = sorted(game.get_move_uid(move) for move in seen.legal_moves())
    return account


def our_account(game):
    account = {
        "over": game.over,
        "strict": game.strict_score,
        "fireworks": game.fireworks,
        "hands": [list(game.hand(seat)) for seat in range(game.rules.players)],
    }
    for seat in range(game.rules.players):
        view = game.view(seat)
        account[seat] = {
            "tokens": (view.clues, view.lives, view.deck),
            "fireworks": list(view.fireworks),
            "discards": list(view.discards),
            "partners": [[card for card, _ in hand] for hand in view.partners],
            "knowledge": [
                list(view.hand),
                *([knowledge for _, knowledge in hand] for hand in view.partners),
            ],
        }
        if not game.over:
            account[seat] |= {"mover": view.mover, "legal": list(view.legal)}
    return account


def their_game(rules, seed, careful):
    """The deck, the moves, and an account of every turn, of a game that they deal."""
    game = other.HanabiGame(
        {
            "players": rules.players,
            "colors": rules.colours,
            "ranks": rules.ranks,
            "hand_size": rules.hand_size,
            "max_information_tokens": rules.clues,
            "max_life_tokens": rules.lives,
            "seed": seed,
        }
    )
    state, generator = game.new_initial_state(), np.random.default_rng(seed)
    deck, actions, accounts = [], [], []
    while not state.is_terminal():
        if state.cur_player() == other.CHANCE_PLAYER_ID:
            before = [len(hand) for hand in state.player_hands()]
            state.deal_random_card()
            hands = state.player_hands()
            (drawn,) = (hand[-1] for hand, n in zip(hands, before, strict=True) if len(hand) > n)
            deck += cards([drawn])
            continue
        accounts.append(their_account(game, state, rules))
        moves = state.legal_moves()
        if careful:  # plays nothing that does not fit, while it can do something else
            hand = state.player_hands()[state.cur_player()]
            misses = [
                move.type() == other.HanabiMoveType.PLAY
                and not state.card_playable_on_fireworks(
                    hand[move.card_index()].color(), hand[move.card_index()].rank()
                )
                for move in moves
            ]
            moves = [move for move, miss in zip(moves, misses, strict=True) if not miss] or moves
        move = moves[generator.integers(len(moves))]
        actions.append(game.get_move_uid(move))
        state.apply_move(move)
    accounts.append(their_account(game, state, rules))
    left = list(rules.deck)
    for card in deck:
        left.remove(card)
    return [*deck, *left], actions, accounts


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("careful", [True, False], ids=["careful", "random"])
@pytest.mark.parametrize("rules", ALL, ids=name)
def test_another_engine_gives_the_same_account_of_every_turn(rules, careful):
    for seed in range(1 if rules.deck_size > 30 else 5):
        deck, actions, accounts = their_game(rules, seed, careful)
        game = Game(rules, deck)
        assert our_account(game) == accounts[0]
        for action, account in zip(actions, accounts[1:], strict=True):
            game.play(action)
            assert our_account(game) == account
        assert game.over
