"""Asking the rank strategy, and telling it what became of its choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedlora.config import Scenario
from fedlora.ranks import (
    ClientOutcome,
    ClientReport,
    GuardedStrategy,
    RankDecision,
    RankSpace,
    create_strategy,
)
from fedlora.server.air import Air


@dataclass(frozen=True)
class RoundSignals:
    """What a strategy is told of a round besides its losses.

    Attributes
    ----------
    sensitivity, gradient_snr
        For each projection; see ``ClientOutcome``.
    epsilons
        Privacy that each client has spent so far.
    """

    sensitivity: Sequence[float] | None
    gradient_snr: Sequence[float] | None
    epsilons: Mapping[str, float | None]


class Ranking:
    """The scenario's strategy, guarded, and the clients' losses that it learns from.

    Parameters
    ----------
    scenario
        Names the strategy.
    space
        What it chooses from.
    """

    def __init__(self, scenario: Scenario, space: RankSpace) -> None:
        self.space = space
        self.strategy = GuardedStrategy(create_strategy(scenario.ranks, scenario.seed))
        self.strategy.prepare(space)
        self._losses: dict[str, float | None] = {}

    def allocate(self, round_: int, reports: Mapping[str, ClientReport]) -> dict[str, RankDecision]:
        """Return the ranks of a round's clients."""
        return dict(self.strategy.allocate(round_, reports, self.space))

    def state_dict(self) -> dict[str, Any]:
        """Return the strategy's state and the losses it is told next, for a checkpoint."""
        return {"strategy": self.strategy.state_dict(), "losses": self._losses}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""
        self.strategy.load_state_dict(state["strategy"])
        self._losses = dict(state["losses"])

    def observe(
        self,
        round_: int,
        losses: Mapping[str, float | None],
        told: RoundSignals,
        air: Air,
    ) -> None:
        """Tell the strategy how the round ended.

        Parameters
        ----------
        round_
            Number of the round.
        losses
            Held-out loss of each client that took part and is still there; None if not known.
        told
            What the engine and the clients' budgets say.
        air
            What was sent and delivered.
        """
        outcomes = {}
        for client, loss in losses.items():
            row = air.row(round_, client)
            outcomes[client] = ClientOutcome(
                loss_before=self._losses.get(client),
                loss_after=loss,
                delivered=row.delivered if row else None,
                bits=row.bits if row else {},
                seconds=row.seconds if row else {},
                epsilon=told.epsilons.get(client),
                sensitivity=_tuple(told.sensitivity),
                gradient_snr=_tuple(told.gradient_snr),
            )
        self._losses |= losses
        self.strategy.observe(round_, outcomes)


def _tuple(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return tuple(values) if values is not None else None
