"""ValueLearner: what learners of Q values share: two networks, Adam, and their state.

Legend: N weights.
"""

import copy
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fox.agents.flat import flattened

Network = TypeVar("Network", bound=nn.Module)


class ValueLearner(Generic[Network]):
    """A network that learns, and its target network, with the same weights at first.

    The weights of each are one vector that its parameters are views of: what is clipped and stepped
    is that vector, and what is published is a copy of it.

    Args:
        network: its parameters are trained, in place, on the device where they are.
        eps: Adam's.

    Attributes:
        target: the target network.
        version: updates so far, which number the weights.
    """

    def __init__(self, network: Network, eps: float) -> None:
        self.target = copy.deepcopy(network).requires_grad_(False)
        self.version = 0
        self._parameters = list(network.parameters())
        self._weights, self._target_weights = flattened(network), flattened(self.target)
        self._optimizer = torch.optim.Adam([self._weights], eps=eps, fused=True)

    def weights(self) -> np.ndarray:
        """(N,) float32, a copy, in the order of the network's parameters."""
        return self._weights.cpu().numpy().copy()

    def state_dict(self) -> dict[str, Any]:
        """All that the next update depends on, beside what it learns from."""
        return {
            "version": self.version,
            "weights": self._weights.clone(),
            "target_weights": self._target_weights.clone(),
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where state_dict() was taken, on whatever device that was.

        Raises:
            ValueError: the weights are another network's.
        """
        if state["weights"].shape != self._weights.shape:
            raise ValueError(
                f"the network has {len(self._weights)} weights, but the state to load has "
                f"{len(state['weights'])}: was it made with another configuration?"
            )
        self.version = state["version"]
        self._weights.copy_(state["weights"])
        self._target_weights.copy_(state["target_weights"])
        self._optimizer.load_state_dict(state["optimizer"])

    def _clipped_gradient(self, loss: Tensor, max_norm: float) -> tuple[Tensor, Tensor]:
        """The gradient (N,) of the loss, scaled down to max_norm if it is longer; its norm ()."""
        parts = torch.autograd.grad(loss, self._parameters, materialize_grads=True)
        gradient = torch.cat([part.flatten() for part in parts])
        norm = gradient.norm()
        gradient *= (max_norm / (norm + 1e-6)).clamp(max=1.0)
        return gradient, norm

    def _descend(self, gradient: Tensor, learning_rate: float) -> None:
        """One step of Adam."""
        self._weights.grad = gradient
        self._optimizer.param_groups[0]["lr"] = learning_rate
        self._optimizer.step()
        self.version += 1

    def _move_target(self, share: float) -> None:
        """The target's weights go towards the network's; all the way with share 1."""
        self._target_weights.lerp_(self._weights, share)
