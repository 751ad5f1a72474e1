"""Self-play: the seed, a number and the weights decide a game; random moves are really made."""

import numpy as np
import pytest
import torch

from fox.agents.flat import flattened
from fox.agents.hanabi.game import Game
from fox.agents.hanabi.network import HanabiNet, NetworkConfig
from fox.agents.hanabi.rules import Rules
from fox.agents.hanabi.selfplay import ExplorationConfig, Plan, SelfPlay
from fox.agents.hanabi.text import VOCABULARY, observation_words

pytestmark = pytest.mark.usefixtures("engine")

NETWORK = NetworkConfig(hidden_size=8)
RULES = (Rules.of("2c2r", 2), Rules.of("2c2r", 3))


def plan(games=6, seed=3, base=0.3, alpha=4.0):
    return Plan(NETWORK, RULES, seed, games, ExplorationConfig(base, alpha))


@pytest.fixture
def weights():
    return flattened(HanabiNet(NETWORK)).numpy()


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


def test_the_same_wave_has_the_same_games_whatever_was_played_before(weights):
    first = SelfPlay(plan()).play(weights, 5, wave=4)
    other = SelfPlay(plan())
    other.play(weights, 0, wave=1)
    again = other.play(weights.copy(), 5, wave=4)
    assert len(first) == 6
    assert all(same(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("changed", ["seed", "wave", "weights"])
def test_another_seed_wave_or_weights_make_other_games(weights, changed):
    first = SelfPlay(plan()).play(weights, 0, wave=2)
    seed = 4 if changed == "seed" else 3
    wave = 4 if changed == "wave" else 2
    played = weights[::-1].copy() if changed == "weights" else weights
    second = SelfPlay(plan(seed=seed)).play(played, 0, wave)
    assert not all(np.array_equal(a.actions, b.actions) for a, b in zip(first, second, strict=True))


def test_waves_take_the_rules_in_turn_and_number_their_games_on(weights):
    waves = [SelfPlay(plan()).play(weights, 7, wave) for wave in range(3)]
    assert [wave[0].rules for wave in waves] == [RULES[0], RULES[1], RULES[0]]
    assert [game.number for wave in waves for game in wave] == list(range(18))
    assert {game.version for wave in waves for game in wave} == {7}


def test_an_episode_tells_what_happened_in_the_game(weights):
    for episode in SelfPlay(plan()).play(weights, 0, wave=1):
        generator = np.random.default_rng([3, episode.number, 0])
        game = Game.shuffled(episode.rules, generator)
        for view, action, legal in zip(
            episode.views(), episode.actions, episode.legal, strict=True
        ):
            words = [VOCABULARY[token] for token in view]
            assert words == observation_words(game.view(game.mover))
            assert np.flatnonzero(legal).tolist() == game.legal
            game.play(int(action))
        assert game.over
        assert episode.rewards.tolist() == game.rewards
        assert episode.turns == game.turn
        assert (episode.strict_score, episode.keep_score) == (game.strict_score, game.keep_score)


def test_moves_are_drawn_at_random_as_often_as_the_shares_say(weights):
    games, waves = 40, 12
    play = SelfPlay(plan(games=games, base=0.4, alpha=3.0))
    shares = play.plan.exploration.epsilons(games)
    assert shares[0] == pytest.approx(0.4)
    assert shares[-1] == pytest.approx(0.4**4)
    found, wanted, variance = 0, 0.0, 0.0
    for wave in range(waves):
        for share, episode in zip(shares, play.play(weights, 0, wave), strict=True):
            found += episode.explored.sum()
            wanted += share * episode.turns
            variance += share * (1 - share) * episode.turns
    assert wanted > 100
    assert abs(found - wanted) < 4 * variance**0.5


def test_without_random_moves_all_are_the_networks_best(weights):
    net = HanabiNet(NETWORK)
    for episode in SelfPlay(plan(base=0.0)).play(weights, 0, wave=0):
        assert not episode.explored.any()
    with torch.no_grad():  # any other weights than these would be greedy on other moves
        assert not np.array_equal(flattened(net).numpy(), weights)


@pytest.mark.parametrize(("name", "value"), [("base", 1.5), ("base", -0.1), ("alpha", -1.0)])
def test_exploration_says_what_it_expects(name, value):
    with pytest.raises(ValueError, match=f"exploration.{name} must"):
        ExplorationConfig(**{name: value})
