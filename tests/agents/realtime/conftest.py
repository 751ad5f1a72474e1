"""A sequential and a staggered run, small and in virtual time, for the commands that read runs."""

import pytest

from fox.agents.realtime.config import RunConfig
from fox.agents.realtime.run import run_agent

INFERENCE_SECONDS = 0.1  # six ticks of catch


def small_run(folder, interaction, ticks=512, asked=lambda: False, **changes):
    """Plays and learns a little, or goes on with it."""
    config = {
        "env": {"name": "catch", "gusts": 0.01},
        "policy": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_heads": 2,
            "window": 4,
            "d_max": 16,
        },
        "schedule": {
            "interaction": interaction,
            "clock": "virtual",
            "inference_seconds": INFERENCE_SECONDS,
        },
        "learner": {"burn_in": 4, "train": 8},
        "exploration": {},
        "run": {
            "folder": str(folder),
            "ticks": ticks,
            "evaluation_ticks": 32,
            "updates_per_tick": 0.02,
            "warmup_ticks": 200,
            "report_ticks": 256,
        },
    }
    config = {part: values | changes.get(part, {}) for part, values in config.items()}
    run_agent(RunConfig.of(config), lambda row: None, asked)


@pytest.fixture(scope="session", name="small_run")
def fixture_small_run():
    return small_run


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder with the runs sequential and staggered."""
    folder = tmp_path_factory.mktemp("runs")
    for interaction in ("sequential", "staggered"):
        small_run(folder / interaction, interaction)
    return folder
