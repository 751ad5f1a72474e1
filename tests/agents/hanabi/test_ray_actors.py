"""Actors on Ray: the same claims as of the others, on one actor, for a Ray starts slowly."""

import importlib
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import torch

from fox.agents.flat import flattened
from fox.agents.hanabi.actors import InlineActors
from fox.agents.hanabi.network import HanabiNet, NetworkConfig
from fox.agents.hanabi.remote import RayActors
from fox.agents.hanabi.rules import Rules
from fox.agents.hanabi.selfplay import ExplorationConfig, Plan, SelfPlay

sys.path.append(str(Path(__file__).parent))
rehearsals = importlib.import_module("rehearsals")

NETWORK = NetworkConfig(hidden_size=16, num_heads=2)
RULES = (Rules.of("2c2r", 2), Rules.of("2c2r", 3))
PLAN = Plan(NETWORK, RULES, seed=5, games=6, exploration=ExplorationConfig())
AHEAD = 2
DIES, RAISES = 6, 14  # waves


@pytest.fixture(scope="module")
def flat():
    """Weights."""
    torch.manual_seed(0)
    return flattened(HanabiNet(NETWORK)).numpy()


@pytest.fixture(scope="module")
def actors(engine, tmp_path_factory):
    """One, which plays wave by wave what these tests take in turn."""
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(rehearsals)  # actors cannot import tests
    folder = tmp_path_factory.mktemp("waves")
    factory = partial(rehearsals.Fated, folder, partial(SelfPlay, PLAN), RAISES, (DIES,))
    with closing(RayActors(factory, 1, workers=1, ahead=AHEAD)) as opened:
        yield opened
    opened.close()
    assert not ray.is_initialized()


def take(actors, number):
    """The numbers of the waves that come next, and their versions."""
    waves = [actors.wave() for _ in range(number)]
    return (
        [wave[0].number // PLAN.games for wave in waves],
        [wave[0].version for wave in waves],
    )


def test_games_are_those_that_are_played_in_line_and_belong_to_the_learner(actors, flat):
    played = []
    for either in (InlineActors(partial(SelfPlay, PLAN), 1), actors):
        either.publish(flat, 9)
        episodes = [episode for _ in range(3) for episode in either.wave()]
        played.append({episode.number: episode for episode in episodes})
    assert sorted(played[1]) == list(range(6, 24))
    rehearsals.assert_same(*played)
    # Arrays in Ray's store are for reading, and fill it.
    assert all(episode.words.flags.writeable for episode in played[1].values())


def test_published_weights_are_used_as_soon_as_what_is_in_hand_was_played(actors, flat):
    actors.publish(flat, 10)
    assert take(actors, 1) == ([4], [9])
    actors.publish(flat, 11)
    assert take(actors, 1) == ([5], [9])


def test_a_killed_actor_is_replaced_and_no_wave_is_lost_or_doubled(actors):
    numbers, versions = take(actors, 5)
    assert sorted(numbers) == [6, 7, 8, 9, 10]
    assert versions == [11] * 5
    assert actors.counters == {"waves": 10, "lost": 1}


def test_an_exception_in_an_actor_reaches_the_learner_with_its_traceback(actors):
    with pytest.raises(RuntimeError) as caught:
        take(actors, RAISES)
    for words in ("worker 0 raised", "in play", "ZeroDivisionError", "of this game"):
        assert words in str(caught.value)


def test_weights_come_before_waves():
    pytest.importorskip("ray")
    with pytest.raises(AssertionError, match="publish"):
        RayActors(rehearsals.Echo, 0, workers=1, ahead=1).wave()


def test_without_ray_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"fox-transformer\[ray\]"):
        RayActors(rehearsals.Echo, 0, workers=1, ahead=1)
