"""What an owner's limit still pays for."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedlora.config import ClientLimit
from fedlora.errors import FedloraError
from fedlora.privacy.accounting import epsilon_of, rho_budget


class OwnerBudget:
    """The owner's limit as totals that were fixed before the first upload.

    A mechanism of pure epsilon has at most that Rényi divergence at every order. So what a sample's
    randomised labels cost is taken off the epsilon, and what is left is a fixed total at each order
    for its noised uploads; see ``fedlora.privacy.accounting.rdp``.

    Parameters
    ----------
    client
        Whose it is, for messages.
    limit
        The owner's limit; without one everything is paid for.
    """

    def __init__(self, client: str, limit: ClientLimit | None) -> None:
        self._client, self._limit = client, limit
        self._whole = self.left(0.0)

    @property
    def epsilon(self) -> float:
        """The most that a sample may spend."""
        return math.inf if self._limit is None else self._limit.epsilon

    def left(self, label_epsilon: float) -> float:
        """Return the rho that remains for the uploads of a sample whose labels cost that much."""
        if self._limit is None:
            return math.inf
        left = self._limit.epsilon - label_epsilon
        if left < 0:
            return -math.inf
        try:
            return rho_budget(left, self._limit.delta, tight=self._limit.tight)
        except FedloraError:  # less than Rényi accounting can state
            if label_epsilon == 0:
                raise
            return 0.0

    def pays(
        self, spent: Mapping[int, float], labels: Mapping[int, float], sigma: float = math.inf
    ) -> bool:
        """Tell whether the limit pays for what samples would have spent.

        Parameters
        ----------
        spent, labels
            Sum of rho, and pure epsilon of labels, by sample identifier.
        sigma
            Least noise of what is paid for.

        Raises
        ------
        FedloraError
            When that is less noise than the owner wants.
        """
        self.check_floor(sigma)
        budgets = {0.0: self._whole}
        for sample, needed in spent.items():
            cost = labels.get(sample, 0.0)
            if cost not in budgets:
                budgets[cost] = self.left(cost)
            if not needed <= budgets[cost]:
                return False
        return True

    def in_epsilon(self, rho: float) -> float:
        """Return a rho as the owner reads it, in terms of the limit."""
        limit = self._limit or ClientLimit(epsilon=1.0)
        return epsilon_of(rho, limit.delta, tight=limit.tight)

    def check_floor(self, sigma: float) -> None:
        """Refuse less noise than the owner wants; raises ``FedloraError``."""
        floor = 0.0 if self._limit is None else self._limit.min_sigma
        if not sigma >= floor:
            raise FedloraError(
                f"the run asks for sigma {sigma:g} but client {self._client} has privacy-min-sigma "
                f"{floor:g}; raise the run's noise"
            )
