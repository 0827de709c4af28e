"""The interface of a rank strategy, and how a scenario names one."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedlora import registry
from fedlora.errors import FedloraError
from fedlora.ranks.reports import ClientOutcome, ClientReport
from fedlora.ranks.space import RankDecision, RankSpace

if TYPE_CHECKING:
    from fedlora.config import RanksConfig


class RankStrategy(ABC):
    """Chooses the LoRA ranks of every client in every round.

    The constructor gets the scenario's ``[ranks.options]`` as keyword arguments, and ``seed`` if it
    has a parameter of that name. A run calls ``prepare`` once, then in every round ``allocate`` and
    ``observe``. Only ``allocate`` must be written.
    """

    def prepare(self, space: RankSpace) -> None:  # noqa: B027 - most strategies take any space
        """Refuse a space that the strategy cannot serve, before the first round.

        Raises
        ------
        FedloraError
            To stop the run: what does not fit, and how to mend it.
        """

    @abstractmethod
    def allocate(
        self, round: int, clients: Mapping[str, ClientReport], space: RankSpace
    ) -> Mapping[str, RankDecision]:
        """Choose the ranks of a round.

        Parameters
        ----------
        round
            Number of the round, from 1.
        clients
            Reports of the clients that take part, by identifier and in its order. Clients may come
            and go between rounds, and anything in a report may be ``None``.
        space
            The projections, the limits of their ranks and their cost; the same in all rounds.

        Returns
        -------
        Mapping of str to RankDecision
            A decision for each of these clients and no other. With the same state and arguments it
            is the same decision.
        """

    def observe(  # noqa: B027 - a strategy that does not learn has nothing to do
        self, round: int, outcomes: Mapping[str, ClientOutcome]
    ) -> None:
        """Learn from a round.

        Parameters
        ----------
        round
            Number of the round that has ended.
        outcomes
            By client; those that were lost during the round are left out, and anything in an
            outcome may be ``None``.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return all that has been learnt, for a checkpoint.

        Returns
        -------
        dict
            As ``fedlora.ranks.pack_state`` takes it: dicts with str keys, lists, finite numbers,
            str, ``None``, NumPy arrays and tensors.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that ``state_dict`` returned; tuples have become lists."""
        if state:
            raise FedloraError(
                f"{type(self).__name__} has no state but was given {', '.join(sorted(state))}; "
                "write load_state_dict, or resume with the strategy that made the checkpoint"
            )


def create_strategy(config: RanksConfig, seed: int) -> RankStrategy:
    """Make the strategy that a scenario names.

    Parameters
    ----------
    config
        The scenario's ``[ranks]``: a registered name or ``module:Class``, and the options.
    seed
        The scenario's seed, which the options may override.

    Raises
    ------
    FedloraError
        When the name is unknown, is no strategy, or does not take the options.
    """
    cls: type[RankStrategy] = registry.resolve("strategies", config.strategy, RankStrategy)
    parameters = inspect.signature(cls).parameters
    options = {"seed": seed} if "seed" in parameters else {}
    made: RankStrategy = registry.make(cls, "ranks.options", {**options, **config.options})
    return made
