"""Runs as `fox-hanabi train` leaves them, but for the learning."""

import torch

from fox.agents.flat import flattened
from fox.agents.hanabi.config import EnvConfig, RunConfig, RunSettings
from fox.agents.hanabi.network import NetworkConfig
from fox.agents.hanabi.run import columns, new_net
from fox.agents.metrics import table
from fox.files import whole_file, write_json


def save_run(folder, seed, players=(2, 3), game="2c2r", rows=2, **network):
    """A run in a folder whose network is as its seed draws it; returns the folder's name."""
    config = RunConfig(
        env=EnvConfig(game, list(players)),
        network=NetworkConfig(**{"hidden_size": 8} | network),
        run=RunSettings(folder=str(folder), seed=seed),
    )
    write_json(folder / "config.json", config.as_dict())
    with whole_file(folder / "checkpoint" / "learner.pt") as path:
        torch.save({"learner": {"weights": flattened(new_net(config))}}, path)
    with table(folder / "metrics.csv", columns(players)) as write:
        for number in range(1, rows + 1):
            scores = {f"{kind}_{P}p": number for kind in ("play", "test") for P in players}
            write({"cpu_seconds": 10 * number, **scores})
    return str(folder)
