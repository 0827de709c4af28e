"""The client's trainable part: its head, and its front (the token embedding) where that trains."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from clients.owner import Private
from fedlora.config import HeadConfig, TrainConfig
from fedlora.errors import ProtocolError
from fedlora.link.messages import (
    FRONT_GRADIENT,
    FRONT_WEIGHT,
    HEAD_GRADIENT as GRADIENT,
    HEAD_WEIGHT as WEIGHT,
)
from fedlora.storage.state import load_optimizer_state, load_tensors, optimizer_state


class ClientHead:
    """A head, how it is shared, and its optimiser.

    Parameters
    ----------
    module
        The head.
    trains
        Whether it trains.
    config
        How it is shared: ``personal`` steps alone; ``round`` steps alone and is averaged at the end
        of a round; ``step`` sends its unreduced gradient and is given the weights.
    train
        Learning rates and schedule.
    front
        The client's own token embedding, or its task's module in place of it, where that trains;
        else None.
    front_share
        How that is shared, as heads are.

    Attributes
    ----------
    trained
        Whether weights that may be shared have learnt from this client's records: until then they
        follow from the seed and from what the server sent.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        trains: bool,
        config: HeadConfig,
        train: TrainConfig,
        front: nn.Module | None = None,
        front_share: Literal["personal", "round", "step"] = "personal",
    ) -> None:
        self.module = module
        self.share = config.share if trains else "personal"
        self._train = train
        self._front = {} if front is None else dict(front.named_parameters())
        self.front_share = front_share if self._front else "personal"
        for parameter in module.parameters():
            if trains:  # a copy: tied weights are the frozen embedding's memory
                parameter.data = parameter.data.clone()
            parameter.requires_grad_(trains)
        self._parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self._initial = copy.deepcopy({n: p.data for n, p in self._parameters.items()})
        self._initial_front = {n: p.detach().clone() for n, p in self._front.items()}
        self.reset()

    def reset(self) -> None:
        """Return to the initial weights with a fresh optimiser."""
        self.trained = False
        self._weight = 0.0
        self._front_weight = 0.0
        decay = self._train.weight_decay
        for name, parameter in self._parameters.items():
            parameter.data.copy_(self._initial[name])
            parameter.grad = None
        self._optimizer = None
        if self._parameters and self.share != "step":  # there the server's steps
            self._optimizer = torch.optim.AdamW(
                self._parameters.values(), weight_decay=decay, fused=True
            )
        for name, parameter in self._front.items():
            parameter.data.copy_(self._initial_front[name])
            parameter.grad = None
        self._front_optimizer = None
        if self._front and self.front_share != "step":
            self._front_optimizer = torch.optim.AdamW(
                self._front.values(), weight_decay=decay, fused=True
            )

    def begin_batches(self) -> None:
        """Forget a batch of the front whose gradient never came, as its upload was too late."""
        self._front_weight = 0.0
        for parameter in self._front.values():
            parameter.grad = None

    def update(self, weight: float, step: int, *, last: bool) -> Private[dict[str, torch.Tensor]]:
        """Use the gradient that a batch left in the head.

        Parameters
        ----------
        weight
            Samples or target tokens of the batch.
        step
            Number of the optimiser step.
        last
            Whether the batch completes the step.

        Returns
        -------
        Private
            Tensors: the unreduced gradient where heads are shared every step.
        """
        self._front_weight += weight
        if not self._parameters:
            return Private({})
        if self.share == "step":
            own = self._parameters.items()
            gradient = _gradients(GRADIENT, own)
            self._zero()
            return Private(gradient)
        self._weight += weight
        if last:
            for parameter in self._parameters.values():
                if parameter.grad is not None:
                    parameter.grad.div_(self._weight)
            self._step(step)
            self._weight = 0.0
        self.trained = True
        return Private({})

    def adopt(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take the common weights that came from the server, if any.

        Raises
        ------
        ProtocolError
            When one has another name, shape or type, or is not finite.
        """
        front = self._front if self.front_share != "personal" else {}
        for key, weight in tensors.items():
            if key.startswith(WEIGHT):
                own = self._parameters.get(key.removeprefix(WEIGHT))
            elif key.startswith(FRONT_WEIGHT):
                own = front.get(key.removeprefix(FRONT_WEIGHT))
            else:
                continue
            if own is None or weight.shape != own.shape or weight.dtype != torch.float32:
                raise ProtocolError(
                    f"the server sent {key!r} of shape {tuple(weight.shape)}, which this client "
                    "does not have"
                )
            if not torch.isfinite(weight).all():
                raise ProtocolError(f"the server sent {key!r} with NaN or infinity")
            own.data.copy_(weight)

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Names, as in a frame, and shapes of the weights that the server may send."""
        front = self._front if self.front_share != "personal" else {}
        parts = ((WEIGHT, self._parameters), (FRONT_WEIGHT, front))
        return {prefix + n: p.shape for prefix, own in parts for n, p in own.items()}

    def weights(self, *shares: str) -> Private[dict[str, torch.Tensor]]:
        """Return the weights, in fp32, of head and front as far as they are shared.

        Parameters
        ----------
        *shares
            How, by default ``round`` and ``step``.
        """
        found: dict[str, torch.Tensor] = {}
        parts = (
            (self.share, WEIGHT, self._parameters),
            (self.front_share, FRONT_WEIGHT, self._front),
        )
        for share, prefix, own in parts:
            if share in (shares or ("round", "step")):
                found |= {prefix + name: p.detach().float() for name, p in own.items()}
        return Private(found)

    def state_dict(self) -> dict[str, Any]:
        """Return weights and optimisers, for the client's own disk."""
        return {
            "weights": self._parameters,
            "trained": self.trained,
            "optimizer": optimizer_state(self._optimizer),
            "embedding": self._front,
            "embedding_optimizer": optimizer_state(self._front_optimizer),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave; raises ``FedloraError`` for another head's state."""
        self.reset()
        load_tensors(self._parameters, state["weights"])
        load_optimizer_state(self._optimizer, state["optimizer"])
        self.trained = bool(state.get("trained", True))
        if self._front:
            load_tensors(self._front, state["embedding"])
            load_optimizer_state(self._front_optimizer, state["embedding_optimizer"])

    def step_front(self, step: int, last: bool) -> Private[dict[str, torch.Tensor]]:
        """Use the gradients that have come back through the cut to the front.

        Returns
        -------
        Private
            Tensors: the unreduced gradient where fronts are shared every step.
        """
        if self.front_share == "step":
            own = self._front.items()
            gradient = _gradients(FRONT_GRADIENT, own)
            for parameter in self._front.values():
                parameter.grad = None
            self._front_weight = 0.0
            return Private(gradient)
        if self._front_optimizer is None or not last:
            return Private({})
        self.trained |= self.front_share == "round"
        for parameter in self._front.values():
            if parameter.grad is not None:
                parameter.grad.div_(self._front_weight)
        _step(self._front_optimizer, self._train.learning_rate(step))
        self._front_weight = 0.0
        return Private({})

    def _step(self, step: int) -> None:
        if self._optimizer is not None:
            _step(self._optimizer, self._train.learning_rate(step, head=True))

    def _zero(self) -> None:
        for parameter in self._parameters.values():
            parameter.grad = None


def _gradients(prefix: str, own: Iterable[tuple[str, nn.Parameter]]) -> dict[str, torch.Tensor]:
    """Return the gradients of an end, 0 where no loss depends on a weight; none without a loss."""
    found = {prefix + name: p for name, p in own}
    if all(p.grad is None for p in found.values()):
        return {}
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.float() for name, p in found.items()
    }


def _step(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()
