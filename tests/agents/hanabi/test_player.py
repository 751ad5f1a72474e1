"""NetworkPlayer: every seat reads its own turns of its own game, and makes the best legal move."""

import numpy as np
import pytest
import torch
from nets import make_net

from fox.agents.hanabi.game import Game
from fox.agents.hanabi.player import NetworkPlayer
from fox.agents.hanabi.rules import Rules
from fox.agents.hanabi.table import Turn, play_games
from fox.agents.hanabi.text import (
    action_places,
    action_words,
    collate,
    observation_places,
    observation_words,
    token_ids,
)

pytestmark = pytest.mark.usefixtures("engine")


class Wanderer:
    """Writes down what a network thinks, and moves at random: long games, of unlike lengths."""

    name, sees_hand = "wanderer", False

    def __init__(self, player):
        self.player = player
        self.seats = []

    def sit(self, rules, generators):
        self.seats.append(WanderingSeat(self.player.sit(rules, generators), generators))
        return self.seats[-1]


class WanderingSeat:
    def __init__(self, seat, generators):
        self.seat, self.generators = seat, generators
        self.values = [[] for _ in generators]
        self.ids = [[] for _ in generators]
        self.legal = [[] for _ in generators]

    def act(self, turns):
        values = self.seat.values(turns)
        for turn, value, ids in zip(turns, values, self.seat.ids, strict=True):
            self.values[turn.game].append(value)
            self.ids[turn.game].append(ids)
            self.legal[turn.game].append(np.isin(np.arange(len(value)), turn.view.legal))
        return [int(self.generators[turn.game].choice(turn.view.legal)) for turn in turns]


def wander(net, rules, games=12):
    player = Wanderer(NetworkPlayer(net, "net"))
    played = play_games(rules, [(7, number) for number in range(games)], [player] * rules.players)
    return played, player.seats


@pytest.mark.parametrize(("centre", "style"), [(False, "full"), (True, "paper")])
@pytest.mark.parametrize("memory", ["fox", "lstm", "none"])
def test_each_seat_thinks_what_its_own_turns_of_its_own_game_tell_it(memory, centre, style):
    net, rules = make_net(memory=memory, centre=centre, style=style), Rules.of("2c3r", 3)
    games, seats = wander(net, rules)
    lengths = [game.turn for game in games]
    assert 2 * sum(length > max(lengths) - 3 for length in lengths) < len(lengths)  # few are left
    moves = [
        net.encode(collate([token_ids(action_words(move))], [action_places(move)]))
        for move in rules.moves
    ]
    for seat in seats:
        for game in range(len(games)):
            ids = seat.ids[game]
            places = [observation_places(rules, len(row), style) for row in ids]
            x = net.encode(collate(ids, places))
            o = x + net.memory(x[None])[0]
            legal = torch.from_numpy(np.stack(seat.legal[game]))
            expected = net.head(o, torch.cat(moves), legal).detach().numpy()
            np.testing.assert_allclose(seat.values[game], expected, rtol=1e-4, atol=1e-5)


def test_views_are_written_down_as_the_seat_read_them():
    net, rules = make_net(style="paper"), Rules.of("2c2r", 2)
    seen = []

    class Reader(NetworkPlayer):
        def sit(self, rules, generators):
            seat = super().sit(rules, generators)
            act = seat.act

            def reading(turns):
                actions = act(turns)
                words = [observation_words(turn.view, "paper") for turn in turns]
                seen.append((seat.ids, [token_ids(row) for row in words]))
                return actions

            seat.act = reading
            return seat

    play_games(rules, [(1, 2), (3, 4)], [Reader(net, "net")] * 2)
    assert len(seen) > 2
    for ids, expected in seen:
        assert [row.tolist() for row in ids] == [row.tolist() for row in expected]


def test_it_makes_the_legal_move_of_the_highest_value():
    net, rules = make_net(2), Rules.of("2c2r", 3)
    seeds = [(5, number) for number in range(20)]
    one, other = NetworkPlayer(net, "one"), NetworkPlayer(net, "other")
    turns, best = 0, 0

    class Checked(NetworkPlayer):
        def sit(self, rules, generators):
            seat, shadow = super().sit(rules, generators), other.sit(rules, generators)
            act = seat.act

            def checking(turns_now):
                nonlocal turns, best
                actions, values = act(turns_now), shadow.values(turns_now)
                for turn, action, row in zip(turns_now, actions, values, strict=True):
                    legal = turn.view.legal
                    assert action in legal
                    assert row[action] == max(row[number] for number in legal)
                    turns, best = turns + 1, best + (action == row.argmax())
                return actions

            seat.act = checking
            return seat

    games = play_games(rules, seeds, [Checked(net, "net")] * 3)
    assert turns == sum(game.turn for game in games)
    assert best < turns  # now and then the best move of all was not legal
    again = play_games(rules, seeds, [one] * 3)
    assert [game.events for game in again] == [game.events for game in games]


def test_a_game_does_not_depend_on_those_beside_it():
    net, rules = make_net(3), Rules.of("2c2r", 2)
    player = NetworkPlayer(net, "net")
    seeds = [(9, number) for number in range(8)]
    together = play_games(rules, seeds, [player] * 2)
    for seed, game in zip(seeds, together, strict=True):
        assert play_games(rules, [seed], [player] * 2)[0].events == game.events


def test_a_seat_draws_nothing_and_leaves_no_gradient():
    net, rules = make_net(), Rules.of("2c2r", 2)
    generator = np.random.default_rng(1)
    before = generator.bit_generator.state
    seat = NetworkPlayer(net, "net").sit(rules, [generator])
    game = Game.shuffled(rules, np.random.default_rng(0))
    values = seat.values([Turn(0, game.view(0), None)])
    assert values.dtype == np.float32
    assert values.shape == (1, len(rules.moves))
    assert generator.bit_generator.state == before
    assert all(p.grad is None for p in net.parameters())
