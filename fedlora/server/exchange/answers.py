"""What clients answer to a step: read, checked against what they may say, and clipped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from fedlora.config import Scenario
from fedlora.errors import ProtocolError
from fedlora.link import Frame, Gradient, create_codec, messages as m
from fedlora.privacy.mechanisms import gradients_of, mechanism_of, numbers_of, probe_of
from fedlora.server.compute import MOST_NORM, SharedHead, SplitEngine, gradient_size
from fedlora.server.exchange import head_space
from fedlora.server.exchange.cohort import Cohort
from fedlora.server.exchange.spending import Spending
from fedlora.server.exchange.uploads import (
    Activation,
    check_number,
    limit_rows,
    read_gradient,
    read_named,
)


@dataclass(frozen=True)
class Answer:
    """What a client answers to a step.

    Attributes
    ----------
    gradient
        At the cut; None where there is none.
    weight
        Samples or target tokens.
    loss
        Unreduced; None where the client does not tell it.
    head
        Gradient of the shared head; empty where there is none.
    """

    gradient: torch.Tensor | None
    weight: float
    loss: float | None
    head: Mapping[str, torch.Tensor]


def check_gradient(own: Mapping[str, torch.Tensor], weight: float, what: str) -> None:
    """Refuse a gradient of a shared head or front that would overflow in the mean or its square.

    Raises
    ------
    ProtocolError
        When it would.
    """
    if not gradient_size(list(own.values()), [weight]) <= MOST_NORM:
        raise ProtocolError(
            f"its gradient of the {what} is longer than {MOST_NORM:g}, which no training gives"
        )


_LOSS_MAX = 1e30  # far beyond any sum of cross-entropies; those of all clients add up


class Answers:
    """Reads the gradients of a step.

    Parameters
    ----------
    scenario, engine, cohort
        As for ``StepLoop``.
    spending
        Told what the clients' privacy has cost.
    """

    def __init__(
        self, scenario: Scenario, engine: SplitEngine, cohort: Cohort, spending: Spending
    ) -> None:
        self.scenario = scenario
        self.engine = engine
        self.cohort = cohort
        self.spending = spending
        self._back = create_codec(**scenario.link.codec("gradient"))
        self._ends = create_codec(**scenario.link.codec("end_gradient"))
        self._r_cut = scenario.link.r_cut
        self._mechanism = mechanism_of(scenario.privacy)
        self._releases = self._mechanism is not None and self._mechanism.noises_gradients

    def wants_gradients(self, head: SharedHead | None, *, train: bool) -> bool:
        """Tell whether a step asks for gradients at the cut.

        Under privacy a shared head learns from what is released for it, and with ``link.r_cut``
        from what comes up of the gradient.
        """
        return train or (head is not None and (self._releases or self._r_cut > 0))

    def read(
        self,
        replies: Mapping[str, Frame],
        z: Mapping[str, torch.Tensor],
        head: SharedHead | None,
        batch: Mapping[str, Activation],
        *,
        train: bool,
    ) -> dict[str, Answer]:
        """Read gradient, weight and loss from the answers; drop who answers wrongly.

        Parameters
        ----------
        replies
            By client.
        z
            The representation that each was sent, shape (tokens or rows, width).
        head
            The head that is shared every step, if there is one.
        batch
            What each client had uploaded.
        train
            Whether there is a gradient at the cut, which otherwise is None.
        """
        limit = self.scenario.robust.row_clip
        read = {}
        for client, reply in replies.items():
            try:
                told = Gradient.from_frame(reply)
                weight = check_number("weight", told.weight, low=1e-9, high=float(len(z[client])))
                loss = told.loss
                if loss is not None:
                    loss = check_number("loss", loss, high=_LOSS_MAX)
                if self.scenario.privacy.enabled:
                    self.spending.note(client, reply)
                read_tensors = self._read_released if self._releases else self._read_exact
                gradient, own = read_tensors(client, reply, z[client], head, train=train)
                check_gradient(own, weight, "head")
                if gradient is not None and limit > 0:
                    lengths = None if self.engine.pool else batch[client].answered
                    gradient = limit_rows(gradient, lengths, limit)
                read[client] = Answer(gradient, weight, loss, own)
            except ProtocolError as error:
                self.cohort.drop(client, str(error))
        return read

    def _read_exact(
        self,
        client: str,
        reply: Frame,
        z: torch.Tensor,
        head: SharedHead | None,
        *,
        train: bool,
    ) -> tuple[torch.Tensor | None, Mapping[str, torch.Tensor]]:
        """Read the gradient at the cut, and that of a shared head."""
        if self._r_cut and head is not None:
            answered = read_gradient(reply, self._back, (z.shape[0], self._r_cut))
            cut, weight = head_space.gradients(answered, z, head.linear_weight())
            return (cut if train else None), {"weight": weight}
        shape = (z.shape[0], z.shape[1])
        some = self.scenario.link.keep < 1
        gradient = read_gradient(reply, self._back, shape, some=some) if train else None
        own: dict[str, torch.Tensor] = {}
        if head is not None:
            own = read_named(reply, m.HEAD_GRADIENT, head.shapes, self._ends)
        return gradient, own

    def _read_released(
        self,
        client: str,
        reply: Frame,
        z: torch.Tensor,
        head: SharedHead | None,
        *,
        train: bool,
    ) -> tuple[torch.Tensor | None, Mapping[str, torch.Tensor]]:
        """Compute the gradients from what a client released under privacy."""
        if not self.wants_gradients(head, train=train):
            return None, {}
        assert self._mechanism is not None
        matrix = head.linear_weight() if head is not None else None
        classes = 0 if matrix is None else len(matrix)
        width = numbers_of(self._mechanism, classes, z.shape[1])
        uploaded = read_gradient(reply, self._back, (len(z), width))
        sigma = self.spending.sigma(client)
        found = gradients_of(self._mechanism, uploaded, z.cpu(), matrix, sigma)
        cut = found.cut
        own = {} if found.head is None else {"weight": found.head}
        if not all(bool(part.isfinite().all()) for part in (cut, *own.values())):
            raise ProtocolError(
                "its gradient leads beyond what floats hold; no mechanism gives that"
            )
        return (cut if train else None), own

    def probes(self, exchange: int) -> bool:
        """Tell whether ``probe`` draws noise for this exchange."""
        every = self.scenario.privacy.probe_every
        return self._mechanism is not None and every > 0 and exchange % every == 0

    def probe(
        self,
        exchange: int,
        clients: Iterable[str],
        z: Mapping[str, torch.Tensor],
        head: SharedHead | None,
    ) -> dict[str, torch.Tensor]:
        """Draw noise like that in the gradients, by client, where this exchange is probed."""
        mechanism = self._mechanism
        if mechanism is None or not self.probes(exchange):
            return {}
        weight = head.linear_weight() if head is not None else None
        generator = torch.Generator().manual_seed(self.scenario.seed << 32 | exchange)
        drawn = {}
        for client in clients:
            sigma = self.spending.sigma(client) if self._releases else 0.0
            probe = probe_of(mechanism, z[client].cpu(), weight, sigma, generator)
            if probe is not None:
                drawn[client] = probe
        return drawn
