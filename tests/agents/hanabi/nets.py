"""Small networks whose weights a seed draws."""

import torch

from fox.agents.hanabi.network import HanabiNet, NetworkConfig


def make_net(seed=0, **config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HanabiNet(NetworkConfig(**{"hidden_size": 16} | config))
