"""Which ranks clients train with, beside those that they are sent: the same rules for all.

A component that few clients train is worth little to the one that gets it, so that what is trained
decides as much as what is sent (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.checks import choice, truth
from fedlora.ranks import (
    ClientOutcome,
    ClientReport,
    FedloraError,
    RankDecision,
    RankSpace,
    RankStrategy,
    RankVector,
)
from strategies.airllm import (
    ChannelMemory,
    Held,
    budget_rank,
    coverage,
    has_arrived,
    trained_ranks,
)

RULES = ("delivered", "held", "shared", "r_max")

_WAY = 0.4
"""How far ``shared`` goes from the mean of what clients have to the most that a channel carried."""


class TrainingRule:
    """Turns deliveries into decisions, and remembers what each client has.

    Parameters
    ----------
    rule
        ``delivered``: each client trains what it is sent, nothing if that is nothing. ``held``:
        what it has, where it is sent nothing. ``shared``: all train one rank, at 40% of the way
        from the mean of what they have to the largest that a channel has carried, as ``airllm``
        does. ``r_max``: all components.
    train_at_r_max
        Another way to say ``r_max``.
    remember
        Whether the strategy asks for ``held``, whatever the rule.

    Raises
    ------
    FedloraError
        When there is no such rule, or the two contradict each other.
    """

    def __init__(
        self, rule: str = "delivered", train_at_r_max: bool = False, *, remember: bool = False
    ) -> None:
        self.rule = choice("ranks.options.train", rule, RULES)
        if truth("ranks.options.train_at_r_max", train_at_r_max):
            if self.rule in ("held", "shared"):
                raise FedloraError(
                    f"ranks.options.train is {rule!r} and train_at_r_max is true; leave one out"
                )
            self.rule = "r_max"
        self._remembers = remember or self.rule in ("held", "shared")
        self._memory = ChannelMemory()
        self._held: dict[str, Held] = {}
        self._pending: dict[str, Held] = {}
        self._over_air = False

    def held(self, client: str) -> Held:
        """Return what a client has been sent and, as far as is known, has."""
        return self._held.get(client, Held())

    def decide(
        self,
        round: int,
        reports: Mapping[str, ClientReport],
        delivered: Mapping[str, RankVector],
        space: RankSpace,
    ) -> dict[str, RankDecision]:
        """Return decisions for all clients.

        Parameters
        ----------
        round
            Number of the round, from 1.
        reports
            Of the clients.
        delivered
            What each of them is sent; ranks that are all 0 send nothing, and it keeps what it has.
        space
            The ranks to choose from.
        """
        if self._remembers:
            self._look(round, reports, delivered, space)
        had = {client: self._has(client, space) for client in delivered}
        trained = {
            name: self._trained(ranks, had[name], had, space) for name, ranks in delivered.items()
        }
        return {client: RankDecision(trained[client], ranks) for client, ranks in delivered.items()}

    def _look(
        self,
        round: int,
        reports: Mapping[str, ClientReport],
        delivered: Mapping[str, RankVector],
        space: RankSpace,
    ) -> None:
        """Remember this round's channels, and what is on its way."""
        covered = [coverage(budget_rank(r, space), space.r_max) for r in reports.values()]
        self._memory = self._memory.add(np.array(covered))
        self._over_air = any(report.budget_bits is not None for report in reports.values())
        self._pending = {
            client: Held(mean_rank(ranks, space), round, tuple(ranks))
            for client, ranks in delivered.items()
            if any(ranks)
        }

    def observe(self, outcomes: Mapping[str, ClientOutcome]) -> None:
        """Remember which adapters arrived."""
        for client, held in self._pending.items():
            if client in outcomes and has_arrived(outcomes[client].delivered, self._over_air):
                self._held[client] = held
        self._pending = {}

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered of channels and adapters; empty where the rule needs none."""
        if not self._remembers:
            return {}
        return {
            "memory": vars(self._memory).copy(),
            "held": {name: held.packed() for name, held in self._held.items()},
            "pending": {name: held.packed() for name, held in self._pending.items()},
            "over_air": self._over_air,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it; what was written before there were rules remembers nothing."""
        self._memory = ChannelMemory(**state.get("memory", {}))
        self._held = {name: Held.of(x) for name, x in state.get("held", {}).items()}
        self._pending = {name: Held.of(x) for name, x in state.get("pending", {}).items()}
        self._over_air = state.get("over_air", False)

    def _has(self, client: str, space: RankSpace) -> NDArray[np.float64]:
        """Return the ranks that a client will have; who has nothing: an average channel's."""
        held = self._pending.get(client, self.held(client))
        if len(held.ranks) == len(space):
            return np.array(held.ranks, dtype=float)
        return np.full(len(space), (1 + space.r_max) ** self._memory.mean - 1)

    def _trained(
        self,
        delivered: RankVector,
        own: NDArray[np.float64],
        had: Mapping[str, NDArray[np.float64]],
        space: RankSpace,
    ) -> RankVector:
        if self.rule == "r_max":
            return space.uniform(space.r_max)
        if self.rule == "delivered" or (self.rule == "held" and any(delivered)):
            return delivered
        if self.rule == "held":
            held: list[int] = np.clip(np.rint(own), space.r_min, space.r_max).astype(int).tolist()
            return RankVector(held)
        largest = (1 + space.r_max) ** self._memory.largest - 1
        way = np.full(len(space), 2 * _WAY - 1)
        return trained_ranks(way, np.mean(list(had.values()), axis=0), largest, space)


class TrainedStrategy(RankStrategy):
    """A strategy that leaves to ``training`` which ranks train, and learns nothing else."""

    training: TrainingRule

    def observe(self, round: int, outcomes: Mapping[str, ClientOutcome]) -> None:
        """Remember which adapters arrived."""
        self.training.observe(outcomes)

    def state_dict(self) -> dict[str, Any]:
        """Return what the rule remembers."""
        return self.training.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        self.training.load_state_dict(state)


def mean_rank(ranks: RankVector, space: RankSpace) -> float:
    """Return the mean rank, weighted by what a rank of each projection costs."""
    units = np.array(space.unit_parameters, dtype=float)
    return float(np.array(ranks, dtype=float) @ units / units.sum())
