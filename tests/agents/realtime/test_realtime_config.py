"""RunConfig: what is accepted, what is refused, and that it survives the disk."""

import json
from dataclasses import replace

import pytest

from fox.agents.realtime.config import RunConfig, RunSettings, ScheduleConfig
from fox.agents.realtime.envs.config import EnvConfig


def test_a_config_survives_json():
    config = RunConfig(EnvConfig("catch", lives=3), run=RunSettings(ticks=7))
    config = replace(config, schedule=ScheduleConfig(fps=30.0, delay_ticks=4))
    assert RunConfig.of(json.loads(json.dumps(config.as_dict()))) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, "schedule.workers must be at least 1, but got 0"),
        ({"delay_ticks": 0}, "schedule.delay_ticks must be at least 1, but got 0"),
        ({"fps": 0.0}, "schedule.fps must be above 0, but got 0.0"),
        ({"inference_seconds": -1.0}, "schedule.inference_seconds must be above 0, but got -1.0"),
        ({"interaction": "sequential", "workers": 2}, "sequential play has one worker"),
        ({"clock": "virtual"}, "as long as schedule.inference_seconds says: set it"),
    ],
)
def test_schedules_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ScheduleConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ticks": 0}, "run.ticks must be at least 1, but got 0"),
        ({"seed": -1}, "run.seed must be at least 0, but got -1"),
        ({"publish_every": 0}, "run.publish_every must be at least 1, but got 0"),
        ({"updates_per_tick": -0.5}, "run.updates_per_tick must be at least 0, but got -0.5"),
    ],
)
def test_runs_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RunSettings(**settings)
