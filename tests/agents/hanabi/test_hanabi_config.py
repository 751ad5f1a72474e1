"""The settings of a run: what ships works, and what cannot work is refused."""

from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from fox.agents.hanabi.config import SEEDS, ActorsConfig, EnvConfig, RunConfig, RunSettings
from fox.agents.hanabi.learner import LearnerConfig
from fox.agents.hanabi.network import HanabiNet, NetworkConfig

PRESETS = sorted(Path(str(files("fox.agents.hanabi.configs"))).glob("*.yaml"))


def test_a_config_survives_being_written():
    config = RunConfig(env=EnvConfig("2c3r", [2, 4]), run=RunSettings(games=500))
    assert RunConfig.of(config.as_dict()) == config


@pytest.mark.parametrize("path", PRESETS, ids=[path.stem for path in PRESETS])
def test_every_preset_is_a_run(path):
    config = RunConfig.of(yaml.safe_load(path.read_text()))
    HanabiNet(config.network)
    assert config.updates > 1000
    assert config.run.folder == f"runs/{path.stem}"
    assert path.stem in path.read_text().split("env:")[0]


def test_updates_follow_the_games_after_the_warm_up():
    config = RunConfig(run=RunSettings(games=1000, warmup_games=100, replay_ratio=2.4))
    assert config.updates_after(100) == 0
    assert config.updates_after(300) == 10
    assert config.updates == 45


@pytest.mark.parametrize("players", [[], [2, 2]])
def test_numbers_of_players_are_named_once(players):
    with pytest.raises(ValueError, match=r"env.players names numbers of players, each once"):
        EnvConfig("2c2r", players)


def test_a_game_for_fewer_players_is_refused():
    with pytest.raises(ValueError, match="2c2r is for 2 to 4 players, not 5"):
        EnvConfig("2c2r", [2, 5])


@pytest.mark.parametrize("name", ["workers", "wave_games", "ahead"])
def test_actors_say_what_they_expect(name):
    with pytest.raises(ValueError, match=f"actors.{name} must be at least 1, but got 0"):
        ActorsConfig(**{name: 0})


def test_actors_of_a_kind_that_is_not_there_are_refused():
    with pytest.raises(ValueError, match=r"actors.kind must be one of .*, but got 'threads'"):
        ActorsConfig(kind="threads")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("games", 0, "run.games must be at least 1"),
        ("seed", -1, "run.seed must be at least 0"),
        ("test_games", -1, "run.test_games must be at least 0"),
        ("report_games", 0, "run.report_games must be at least 1"),
        ("evaluation_games", 1, "run.evaluation_games must be at least 2"),
        ("checkpoint_seconds", -1.0, "run.checkpoint_seconds must be at least 0"),
        ("warmup_games", 0, "run.warmup_games must be at least 1"),
        ("warmup_games", 50_000, "run.warmup_games must be fewer than run.games = 50000"),
        ("replay_ratio", 0.0, "run.replay_ratio must be above 0"),
        ("seed", SEEDS, "run.seed must be below 2,000,000,000, but got 2000000000"),
    ],
)
def test_a_run_says_what_it_expects(name, value, message):
    with pytest.raises(ValueError, match=message):
        RunSettings(**{name: value})


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"learner": LearnerConfig(batch_games=3)},
            "of the 4 numbers of players, but learner",
        ),
        (
            {
                "network": NetworkConfig(unit="token", pretrained="model"),
                "run": RunSettings(start="runs/small"),
            },
            "all of its weights, .* but got runs/small and model",
        ),
        (
            {"run": RunSettings(games=160)},
            "160 games are too few for one update of 48 games",
        ),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        RunConfig(**parts)
