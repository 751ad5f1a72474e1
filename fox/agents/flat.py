"""The weights of a network as one vector, which its parameters are views of.

Legend: N weights.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector


def flattened(network: nn.Module) -> Tensor:
    """The weights (N,) where they are, made into the memory of the network's parameters."""
    with torch.inference_mode(False):  # or the vector could not be trained
        vector = parameters_to_vector(network.parameters()).detach().clone()
    _view(network, vector)
    return vector


def load_flat(network: nn.Module, flat: np.ndarray) -> None:
    """Makes the parameters views of a vector, in the order of network.parameters(); no copy.

    Args:
        network: float32.
        flat: (N,) float32, writable; it must stay as it is while the network is used.

    Raises:
        ValueError: the vector has another size or dtype.
    """
    parameters = list(network.parameters())
    wanted = sum(p.numel() for p in parameters)
    if flat.shape != (wanted,) or flat.dtype != np.float32:
        raise ValueError(
            f"the weights of this network are {wanted} float32 numbers, but got {flat.dtype} of "
            f"shape {flat.shape}: were they written by one of another configuration?"
        )
    _view(network, torch.from_numpy(flat))


def _view(network: nn.Module, vector: Tensor) -> None:
    place = 0
    with torch.inference_mode(False):  # or the parameters could not be parameters
        for p in network.parameters():
            p.data = vector[place : place + p.numel()].view_as(p)
            place += p.numel()
