"""Self-play: the seed, a number and the weights decide a game; random moves are really made."""

import numpy as np
import pytest
from episodes import same

from fox.agents.flat import flattened, load_flat
from fox.agents.hanabi.game import Game
from fox.agents.hanabi.network import HanabiNet, NetworkConfig
from fox.agents.hanabi.player import NetworkPlayer
from fox.agents.hanabi.rules import Rules
from fox.agents.hanabi.selfplay import ExplorationConfig, Plan, SelfPlay
from fox.agents.hanabi.table import play_games
from fox.agents.hanabi.text import VOCABULARY, observation_words

pytestmark = pytest.mark.usefixtures("engine")

NETWORK = NetworkConfig(hidden_size=8)
RULES = (Rules.of("2c2r", 2), Rules.of("2c2r", 3))


def plan(games=6, seed=3, base=0.3, alpha=4.0):
    return Plan(NETWORK, RULES, seed, games, ExplorationConfig(base, alpha))


@pytest.fixture
def weights():
    return flattened(HanabiNet(NETWORK)).numpy()


def test_the_same_wave_has_the_same_games_whatever_was_played_before(weights):
    first = SelfPlay(plan()).play(weights, 5, wave=4)
    other = SelfPlay(plan())
    other.play(weights, 0, wave=1)
    again = other.play(weights.copy(), 5, wave=4)
    assert len(first) == 6
    assert all(map(same, first, again))


def test_a_game_does_not_depend_on_those_beside_it(weights):
    three = SelfPlay(plan(games=3, base=0.5, alpha=0.0)).play(weights, 0, wave=2)
    twelve = SelfPlay(plan(games=12, base=0.5, alpha=0.0)).play(weights, 0, wave=0)
    assert len({game.turns for game in twelve[:6]}) > 1  # some end before others
    assert all(map(same, three, twelve[6:9]))


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


def test_the_shares_of_random_moves_fall_from_game_to_game():
    exploration = ExplorationConfig(base=0.4, alpha=3.0)
    assert exploration.epsilons(3) == pytest.approx([0.4, 0.4**2.5, 0.4**4])
    assert exploration.epsilons(1) == pytest.approx([0.4])


def test_moves_are_drawn_at_random_as_often_as_the_shares_say(weights):
    games, waves = 40, 12
    play = SelfPlay(plan(games=games, base=0.4, alpha=3.0))
    shares = play.plan.exploration.epsilons(games)
    found, wanted, variance = 0, 0.0, 0.0
    for wave in range(waves):
        for share, episode in zip(shares, play.play(weights, 0, wave), strict=True):
            found += episode.explored.sum()
            wanted += share * episode.turns
            variance += share * (1 - share) * episode.turns
    assert wanted > 100
    assert abs(found - wanted) < 4 * variance**0.5


def test_every_game_has_its_own_share_of_random_moves(weights):
    play = SelfPlay(plan(games=2, base=0.5, alpha=1000.0))
    waves = [play.play(weights, 0, wave) for wave in range(10)]
    assert any(first.explored.any() for first, _ in waves)
    assert not any(second.explored.any() for _, second in waves)


def test_random_moves_are_made_and_every_legal_one_is_drawn_equally_often(weights):
    play = SelfPlay(plan(games=60, base=1.0, alpha=0.0))
    found, wanted, variance = 0, 0.0, 0.0
    for wave in (0, 2):  # of two players
        for episode in play.play(weights, 0, wave):
            assert episode.explored.all()
            share = episode.legal / episode.legal.sum(1, keepdims=True)
            found += np.bincount(episode.actions, minlength=share.shape[1])
            wanted += share.sum(0)
            variance += (share * (1 - share)).sum(0)
    assert (wanted > 20).all()
    assert (abs(found - wanted) < 4 * variance**0.5).all()


def test_without_random_moves_all_are_the_networks_best(weights):
    net = HanabiNet(NETWORK)
    load_flat(net, weights)
    games = play_games(
        RULES[0], [(3, number) for number in range(6)], [NetworkPlayer(net, "x")] * 2
    )
    for episode, game in zip(SelfPlay(plan(base=0.0)).play(weights, 0, wave=0), games, strict=True):
        assert not episode.explored.any()
        assert [RULES[0].moves[action] for action in episode.actions] == [
            event.move for event in game.events
        ]


def test_a_pretrained_folder_need_not_be_there_where_games_are_played():
    network = NetworkConfig(hidden_size=8, unit="token", pretrained="gone")
    SelfPlay(Plan(network, RULES, 3, 6, ExplorationConfig()))


@pytest.mark.parametrize(("name", "value"), [("base", 1.5), ("base", -0.1), ("alpha", -1.0)])
def test_exploration_says_what_it_expects(name, value):
    with pytest.raises(ValueError, match=f"exploration.{name} must"):
        ExplorationConfig(**{name: value})
