"""Weights as one vector: it is the memory of the parameters, and no other network's."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

from fox.agents.flat import flattened, load_flat


def network_of():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def test_weights_are_read_where_they_lie():
    network, other = network_of(), network_of()
    flat = parameters_to_vector(network.parameters()).detach().numpy()
    x = torch.randn(5, 3)
    load_flat(other, flat)
    torch.testing.assert_close(other(x), network(x))
    flat[:] = 0
    assert not other(x).any()


def test_flattened_weights_are_those_of_the_network_and_move_it():
    network = network_of()
    before = parameters_to_vector(network.parameters()).detach()
    flat = flattened(network)
    assert torch.equal(flat, before)
    flat.zero_()
    assert not parameters_to_vector(network.parameters()).any()


def test_weights_that_are_views_of_a_vector_are_trained_and_need_no_inference_mode():
    network = network_of()
    with torch.inference_mode():
        flat = flattened(network)
    network(torch.ones(1, 3)).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    assert flat.shape == (3 * 4 + 4 + 4 * 2 + 2,)


@pytest.mark.parametrize("flat", [np.zeros(3, np.float32), np.zeros(26)])
def test_weights_of_another_network_are_refused(flat):
    with pytest.raises(
        ValueError, match=r"weights of this network are 26 float32 numbers, but got .*: were they"
    ):
        load_flat(network_of(), flat)
