"""A task head that clients share: averaged every step, or every round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fedlora.config import TrainConfig
from fedlora.errors import FedloraError
from fedlora.link.messages import HEAD_WEIGHT
from fedlora.state import load_optimizer_state, load_tensors, optimizer_state

Weights = dict[str, torch.Tensor]


class SharedHead:
    """The common weights, kept on the server so that every client can be given the same.

    Parameters
    ----------
    weights
        Initial weights, which all clients hold too.
    config
        Learning rates, schedule and decay.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], config: TrainConfig) -> None:
        self._config = config
        self.parameters = {n: torch.nn.Parameter(w.clone()) for n, w in weights.items()}
        self._optimizer = torch.optim.AdamW(
            self.parameters.values(), weight_decay=config.weight_decay
        )
        self._weight = 0.0

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Names and shapes of the weights."""
        return {name: p.shape for name, p in self.parameters.items()}

    def linear_weight(self) -> torch.Tensor:
        """Return the weight (classes, width) of a head that is one linear map.

        Raises
        ------
        FedloraError
            When it is something else.
        """
        if set(self.parameters) != {"weight"} or self.parameters["weight"].dim() != 2:
            raise FedloraError(
                f"the shared head has {', '.join(self.parameters)}, and under privacy it has to be "
                "one linear map without bias; set head.share to personal"
            )
        return self.parameters["weight"].detach()

    def add(self, gradients: Mapping[str, torch.Tensor], weight: float) -> None:
        """Add one client's unreduced gradient, which counts ``weight`` samples or tokens."""
        self._weight += weight
        for name, parameter in self.parameters.items():
            gradient = gradients[name]
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def averaged(self) -> list[torch.Tensor]:
        """Divide what was added by its weight and return it, for clipping in place."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        for gradient in gradients:
            gradient.div_(self._weight)
        self._weight = 0.0
        return gradients

    def step(self, step: int) -> None:
        """Take an optimiser step with the averaged gradient."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.learning_rate(step, head=True)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def average(self, weights: Sequence[Weights], rows: Sequence[float]) -> None:
        """Adopt the mean of several clients' weights, weighted by their rows."""
        total = sum(rows)
        for name, parameter in self.parameters.items():
            mean = sum(w[name] * (n / total) for w, n in zip(weights, rows, strict=True))
            parameter.data.copy_(torch.as_tensor(mean))

    def state_dict(self) -> dict[str, Any]:
        """Return weights and optimiser, for a checkpoint between rounds."""
        return {"weights": self.parameters, "optimizer": optimizer_state(self._optimizer)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave; raises ``FedloraError`` for another head's state."""
        load_tensors(self.parameters, state["weights"])
        load_optimizer_state(self._optimizer, state["optimizer"])

    def tensors(self) -> Weights:
        """Return the weights as they go into a frame."""
        return {HEAD_WEIGHT + name: p.detach() for name, p in self.parameters.items()}
