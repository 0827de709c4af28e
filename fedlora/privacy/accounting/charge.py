"""What one release costs a record, in the two currencies of a ledger."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from fedlora.errors import FedloraError
from fedlora.privacy.accounting.rdp import upload_cost


@dataclass(frozen=True)
class Charge:
    """The cost of one release, under replace-one; exactly one of the two is set.

    Attributes
    ----------
    rho
        mu^2 / 2, where the release is mu-GDP (Dong, Roth and Su 2022): two records are no easier to
        tell apart than N(0, 1) and N(mu, 1). Gaussian noise of sigma over the clipping norm has
        mu = 2 / sigma. A release of pure epsilon has mu = 2 Phi^-1(e^epsilon / (1 + e^epsilon)).
    epsilon
        Pure epsilon (delta 0), which adds to the epsilon of all that is charged as ``rho``.
    sigma
        Noise over the clipping norm, which an owner's ``privacy-min-sigma`` is held against; 0
        where there is none.

    Raises
    ------
    FedloraError
        When neither or both are set, or one is not finite: nothing is free.
    """

    rho: float = 0.0
    epsilon: float = 0.0
    sigma: float = 0.0

    def __post_init__(self) -> None:
        costs = self.rho, self.epsilon
        if not all(math.isfinite(c) and c >= 0 for c in costs) or (costs[0] > 0) == (costs[1] > 0):
            raise FedloraError(
                f"a release that costs rho {self.rho} and epsilon {self.epsilon} cannot be booked; "
                "charge one of them, finite and above 0"
            )

    @classmethod
    def gaussian(cls, sigma: float) -> Self:
        """Return the cost of Gaussian noise on what moves by twice the clipping norm at most.

        Parameters
        ----------
        sigma
            Standard deviation of the noise over the clipping norm.

        Raises
        ------
        FedloraError
            When sigma is not positive.
        """
        return cls(rho=upload_cost(sigma), sigma=sigma)
