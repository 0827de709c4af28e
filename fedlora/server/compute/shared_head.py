"""A head, or front, that clients share: averaged every step, or every round."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fedlora.config import LinkConfig, RobustConfig, TrainConfig
from fedlora.errors import FedloraError
from fedlora.link import create_codec, pack_ends
from fedlora.link.messages import HEAD_WEIGHT
from fedlora.robust.aggregation import create_average, robust_mean
from fedlora.robust.base import Block, RobustAverage
from fedlora.robust.momentum import ClientMomentum
from fedlora.storage.state import load_optimizer_state, load_tensors, optimizer_state

Weights = dict[str, torch.Tensor]


class SharedHead:
    """The common weights, kept on the server so that every client can be given the same.

    Parameters
    ----------
    weights
        Initial weights, which all clients hold too.
    config
        Learning rates, schedule and decay.
    robust
        Average over clients in place of the mean over samples, and the limit of their gradients.
    prefix
        What stands before a weight's name in a frame: ``head_weight.``, or ``front_weight.``.
    link
        Names the codec of the weights in a frame.
    """

    def __init__(
        self,
        weights: Mapping[str, torch.Tensor],
        config: TrainConfig,
        robust: RobustConfig = RobustConfig(),  # noqa: B008 (frozen)
        prefix: str = HEAD_WEIGHT,
        link: LinkConfig = LinkConfig(),  # noqa: B008 (frozen)
    ) -> None:
        self.prefix = prefix
        self._codec = create_codec(**link.codec("end_weight"))
        self._config = config
        self._clip = robust.head_clip
        self._average = create_average(robust)
        self._momentum = ClientMomentum(robust.momentum)
        self._by_client: dict[str, tuple[Weights, float]] = {}
        self.parameters = {n: torch.nn.Parameter(w.clone()) for n, w in weights.items()}
        self._optimizer = torch.optim.AdamW(
            self.parameters.values(),
            weight_decay=config.weight_decay,
            betas=robust.betas,
            fused=True,
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

    def add(self, client: str, gradients: Mapping[str, torch.Tensor], weight: float) -> None:
        """Add one client's unreduced gradient, which counts ``weight`` samples or tokens."""
        own = {name: gradients[name] for name in self.parameters}
        if self._clip > 0:
            # in double precision, as the square of a large fp32 number overflows
            norm = torch.stack([g.double().norm() for g in own.values()]).norm()
            factor = (self._clip * weight / norm.clamp_min(1e-30)).clamp(max=1.0)
            own = {name: (g * factor).to(g.dtype) for name, g in own.items()}
        if self._average is not None:
            if client in self._by_client:
                sofar, before = self._by_client[client]
                own, weight = {n: g + sofar[n] for n, g in own.items()}, weight + before
            self._by_client[client] = (own, weight)
            return
        self._weight += weight
        for name, parameter in self.parameters.items():
            added = own[name] if parameter.grad is None else parameter.grad + own[name]
            parameter.grad = added.contiguous()  # torch's fused step reads memory in order

    def averaged(self) -> list[torch.Tensor]:
        """Average what was added over samples or clients, and return it, for clipping in place.

        Nothing where a robust average has too few clients.
        """
        if self._average is not None:
            clients = list(self._by_client.values())
            means = self._robust(
                self._average,
                [{n: g / weight for n, g in own.items()} for own, weight in clients],
                [weight for _, weight in clients],
                list(self._by_client),
            )
            self._by_client = {}
            for name, mean in means.items():
                self.parameters[name].grad = mean
            return list(means.values())
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        for gradient in gradients:
            gradient.div_(self._weight)
        self._weight = 0.0
        return gradients

    def _robust(
        self,
        average: RobustAverage,
        tensors: Sequence[Weights],
        weights: Sequence[float],
        clients: Sequence[str] = (),
    ) -> Weights:
        """Average tensors over clients, whose momentum counts if named; empty for too few."""
        if not tensors:
            return {}
        present = torch.ones(len(tensors), 1, dtype=torch.bool)
        blocks = [
            Block(torch.stack([own[name].reshape(1, -1) for own in tensors]), present)
            for name in self.parameters
        ]
        blocks = self._momentum.blend(clients, blocks) if clients else blocks
        means, there = robust_mean(average, blocks, torch.tensor(weights, dtype=torch.float32))
        if not all(bool(components.all()) for components in there):
            return {}
        return {
            name: mean.reshape(parameter.shape)
            for (name, parameter), mean in zip(self.parameters.items(), means, strict=True)
        }

    def step(self, step: int) -> None:
        """Take an optimiser step with the averaged gradient."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.learning_rate(step, head=self.prefix == HEAD_WEIGHT)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def average(self, weights: Sequence[Weights], rows: Sequence[float]) -> None:
        """Adopt the average of several clients' weights; the mean is weighted by their rows.

        A robust average is over how far each client has moved the weights.
        """
        if self._average is not None:
            moves = [{n: w[n] - p.detach() for n, p in self.parameters.items()} for w in weights]
            for name, move in self._robust(self._average, moves, rows).items():
                self.parameters[name].data.add_(move)
            return
        total = sum(rows)
        for name, parameter in self.parameters.items():
            mean = sum(w[name] * (n / total) for w, n in zip(weights, rows, strict=True))
            parameter.data.copy_(torch.as_tensor(mean))

    def state_dict(self) -> dict[str, Any]:
        """Return weights and optimiser, for a checkpoint between rounds."""
        return {
            "weights": self.parameters,
            "optimizer": optimizer_state(self._optimizer),
            "momentum": self._momentum.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave; raises ``FedloraError`` for another head's state."""
        load_tensors(self.parameters, state["weights"])
        load_optimizer_state(self._optimizer, state["optimizer"])
        self._momentum.load_state_dict(state["momentum"])

    def tensors(self) -> Weights:
        """Return the weights as they go into a frame."""
        own = {self.prefix + name: p.detach() for name, p in self.parameters.items()}
        return pack_ends(own, self._codec)


def most_common(weights: Mapping[str, Weights]) -> Weights:
    """Return the initial weights that most clients have; of equally many, the first client's.

    They follow from the seed, so honest clients agree, and no single client chooses for all.
    """
    digests: dict[str, bytes] = {}
    for client, own in weights.items():
        digest = hashlib.sha256()
        for name, tensor in sorted(own.items()):
            digest.update(f"{name} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        if own:
            digests[client] = digest.digest()
    counts = Counter(digests.values())
    chosen = max(digests, key=lambda client: counts[digests[client]], default=None)
    return {} if chosen is None else weights[chosen]
