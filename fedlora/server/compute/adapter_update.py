"""From all clients' gradients to the next adapter: averaged over clients, clipped, one step."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fedlora.config import Scenario
from fedlora.lora.adamw import ComponentAdamW, clip_global_norm
from fedlora.lora.also import AlsoTrained
from fedlora.lora.average import ContributionCount, average_gradients
from fedlora.lora.client_gradients import ClientGradients
from fedlora.lora.layers import LoraProjection
from fedlora.lora.sensitivity import Sensitivity
from fedlora.robust.aggregation import create_average, robust_mean
from fedlora.robust.momentum import ClientMomentum
from fedlora.threads import on_threads

log = logging.getLogger("fedlora.server")

MOST_NORM = 1e12
"""No gradient that trains has such a norm, and its square is far from where fp32 overflows."""


class AdapterUpdate:
    """Knows who contributed to which component, and takes the optimiser's steps.

    Parameters
    ----------
    projections
        Adapted projections, in order, whose ``grad`` adds up over the batches of a step. Make this
        object after ``RankMasks``, see ``ClientGradients``.
    scenario
        LoRA, training and robust sections are used.
    also
        What trains whole beside them.

    Attributes
    ----------
    by_client
        Each client's gradients, where the average is a robust one.
    sensitivity
        What the adapter's gradients say of each projection.
    """

    def __init__(
        self, projections: Sequence[LoraProjection], scenario: Scenario, also: AlsoTrained
    ) -> None:
        self.projections, self.scenario, self.also = projections, scenario, also
        self.average = create_average(scenario.robust)
        self._threads = torch.get_num_threads()
        self.momentum = ClientMomentum(scenario.robust.momentum)
        self.by_client = ClientGradients(projections) if self.average else None
        self.optimizer = ComponentAdamW(
            projections, scenario.train.weight_decay, scenario.robust.betas
        )
        self.sensitivity = Sensitivity(projections)
        self._ranks: Sequence[Sequence[int]] = ()
        self._told = (0, 0)
        self._forget_round()
        self._start_step()

    def begin_batch(
        self, clients: Sequence[str], places: Sequence[int], ranks: Sequence[Sequence[int]]
    ) -> None:
        """Say whose tokens the next backward pass goes over; see ``ClientGradients.begin``."""
        self._ranks = ranks
        if self.by_client is not None:
            self.by_client.begin(clients, places, ranks)

    def kept(self) -> list[torch.Tensor | None]:
        """Return copies of what the step's earlier batches have added up."""
        gradients = (parameter.grad for parameter in self._parameters())
        return [None if gradient is None else gradient.clone() for gradient in gradients]

    def put_back(self, kept: Sequence[torch.Tensor | None]) -> None:
        """Forget a batch that was added up since ``kept``."""
        for parameter, gradient in zip(self._parameters(), kept, strict=True):
            parameter.grad = gradient

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [f for p in self.projections for f in (p.A, p.B)] + self.also.parameters()

    def is_sound(self, weights: Sequence[float | None]) -> bool:
        """Tell whether a step can be taken with what has been added up.

        Parameters
        ----------
        weights
            As for ``end_batch``. A robust average leaves out itself what is not finite.
        """
        if self.by_client is not None:
            return True
        return gradient_size([p.grad for p in self._parameters()], weights) <= MOST_NORM

    def end_batch(self, weights: Sequence[float | None]) -> None:
        """Count the batch's clients, when its gradients have been added up.

        Parameters
        ----------
        weights
            Samples or target tokens of each; None for who gave no gradient.
        """
        for ranks, weight in zip(self._ranks, weights, strict=True):
            if weight is not None:
                self._count.add(ranks, weight)
        self.also.count(weights)
        if self.by_client is not None:
            self.by_client.count([weight or 0.0 for weight in weights])

    def step(self, number: int, shared: Sequence[torch.Tensor] = ()) -> None:
        """Average what has been added up over its contributors, clip, and step the optimiser.

        Parameters
        ----------
        number
            Number of the optimiser step, from 0, for the schedule.
        shared
            Averaged head gradients, clipped in place together with the adapters'.
        """
        active, contributed = self._average()
        self._moved |= active
        self._contributed |= contributed
        if self.scenario.lora.freeze_a:
            for projection in self.projections:
                projection.A.grad = None
        gradients = [g for p in self.projections for g in (p.A.grad, p.B.grad) if g is not None]
        gradients += self.also.average()
        clip_norm = self.scenario.train.clip_norm
        if clip_norm > 0:
            clip_global_norm([*gradients, *shared], clip_norm)
        self.sensitivity.note()
        rate = self.scenario.train.learning_rate(number)
        self.optimizer.step(rate, active)
        self.also.step(rate)
        self._start_step()

    def moved(self) -> dict[str, int]:
        """Return what became of the components since the last call.

        Returns
        -------
        dict
            ``trained``: how many took a step; ``resting``: how many did not although clients
            trained them, as these were too few for the robust average; ``all`` of them.
        """
        resting = self._contributed & ~self._moved
        found = {
            "trained": int(self._moved.sum()),
            "resting": int(resting.sum()),
            "all": self._moved.numel(),
        }
        self._forget_round()
        return found

    def _average(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Average over clients.

        Returns
        -------
        tuple
            Which components have a gradient, and which any client trained, both bool, shape
            (projections, r_max).
        """
        if self.average is None or self.by_client is None:
            active = average_gradients(self.projections, self._count)
            return active, active
        blocks, weights, clients = self.by_client.take()
        with on_threads(self._threads):
            blocks = self.momentum.blend(clients, blocks)
            means, present = robust_mean(self.average, blocks, weights)
        for index, projection in enumerate(self.projections):
            A, B = means[2 * index : 2 * index + 2]
            projection.A.grad = A.to(projection.A.dtype)
            projection.B.grad = B.T.to(projection.B.dtype)
        active = torch.stack([components.cpu() for components in present[::2]])
        trained = torch.stack([block.present.any(0).cpu() for block in blocks[::2]])
        self._tell_resting(int((trained & ~active).sum()), int(active.sum()), len(weights))
        return active, trained

    def _tell_resting(self, resting: int, active: int, clients: int) -> None:
        """Say, when it changes, what too few clients train for a robust average."""
        if resting and (resting, clients) != self._told:
            log.warning(
                "%d of %d components are trained by too few of %d clients for robust.hostile = %d, "
                "which takes %d; they stay as they are",
                resting,
                resting + active,
                clients,
                self.scenario.robust.hostile,
                2 * self.scenario.robust.hostile + 1,
            )
        self._told = (resting, clients)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser and the clients' momentum, for a checkpoint between rounds."""
        state = {"optimizer": self.optimizer.state_dict(), "momentum": self.momentum.state_dict()}
        return {**state, "also": self.also.state_dict()} if self.also.tensors else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave, and forget a step or round that was not finished.

        Raises
        ------
        FedloraError
            For another model's state.
        """
        self._start_step()
        self._forget_round()
        if self.by_client is not None:
            self.by_client.forget()
        self.sensitivity.take()
        self.optimizer.load_state_dict(state["optimizer"])
        self.momentum.load_state_dict(state["momentum"])
        if self.also.tensors or state.get("also"):
            self.also.load_state_dict(state.get("also") or {})

    def _forget_round(self) -> None:
        shape = len(self.projections), self.projections[0].A.shape[0]
        self._moved = torch.zeros(shape, dtype=torch.bool)
        self._contributed = torch.zeros(shape, dtype=torch.bool)

    def _start_step(self) -> None:
        self.optimizer.zero_grad()
        self.also.begin()
        r_max = self.projections[0].A.shape[0]
        self._count = ContributionCount(len(self.projections), r_max)


def gradient_size(
    gradients: Sequence[torch.Tensor | None], weights: Sequence[float | None]
) -> float:
    """Return the norm of summed gradients, as large as averaging over weights below 1 can make it.

    NaN or infinite where the gradients or their squares are.
    """
    there = [gradient for gradient in gradients if gradient is not None]
    if not there:
        return 0.0
    least = min([1.0, *(weight for weight in weights if weight)])
    return float(torch.nn.utils.get_total_norm(there)) / least
