"""Actors on Ray: the same claims as of the others, on one actor, for a Ray starts slowly."""

import sys
from contextlib import closing
from functools import partial

import pytest
import rehearsals
import torch
from episodes import same

from fox.agents.flat import flattened
from fox.agents.hanabi.actors import InlineActors
from fox.agents.hanabi.network import HanabiNet, NetworkConfig
from fox.agents.hanabi.remote import RayActors
from fox.agents.hanabi.rules import Rules
from fox.agents.hanabi.selfplay import ExplorationConfig, Plan, SelfPlay

NETWORK = NetworkConfig(hidden_size=16, num_heads=2)
RULES = (Rules.of("2c2r", 2), Rules.of("2c2r", 3))
PLAN = Plan(NETWORK, RULES, seed=5, wave_games=6, exploration=ExplorationConfig())
AHEAD = 2
DIES, RAISES = 6, 14  # waves


def take(actors, number):
    """The numbers of the waves that come next, and their versions."""
    waves = [actors.wave() for _ in range(number)]
    return (
        [wave[0].number // PLAN.wave_games for wave in waves],
        [wave[0].version for wave in waves],
    )


@pytest.mark.usefixtures("engine")
def test_waves_come_once_as_played_in_line_with_the_newest_weights_until_one_raises(tmp_path):
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(rehearsals)  # actors cannot import tests
    torch.manual_seed(0)
    flat = flattened(HanabiNet(NETWORK)).numpy()
    troupe = partial(SelfPlay, PLAN)
    factory = partial(rehearsals.Fated, tmp_path, factory=troupe, raises=RAISES, dies=(DIES,))
    with closing(RayActors(factory, 1, workers=1, ahead=AHEAD)) as actors:
        played = []
        for either in (InlineActors(troupe, 1), actors):
            either.publish(flat, 9)
            episodes = [episode for _ in range(3) for episode in either.wave()]
            played.append(sorted(episodes, key=lambda episode: episode.number))
        assert [episode.number for episode in played[1]] == list(range(6, 24))
        assert all(map(same, *played))
        # Arrays in Ray's store are for reading, and fill it.
        assert all(episode.words.flags.writeable for episode in played[1])

        actors.publish(flat, 10)
        assert take(actors, 1) == ([4], [9])  # it was in hand
        actors.publish(flat, 11)
        assert take(actors, 1) == ([5], [9])

        numbers, versions = take(actors, 5)  # an actor dies of the first
        assert sorted(numbers) == [6, 7, 8, 9, 10]
        assert versions == [11] * 5
        assert actors.lost == 1

        with pytest.raises(RuntimeError) as caught:
            take(actors, RAISES)
        for words in ("worker 0 raised", "in play", "ZeroDivisionError", "of this game"):
            assert words in str(caught.value)
    assert not ray.is_initialized()


def test_weights_come_before_waves():
    pytest.importorskip("ray")
    with pytest.raises(AssertionError, match="publish"):
        RayActors(rehearsals.Echo, 0, workers=1, ahead=1).wave()


def test_without_ray_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"fox-transformer\[ray\]"):
        RayActors(rehearsals.Echo, 0, workers=1, ahead=1)
