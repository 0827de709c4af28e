"""When to stop: a Rényi filter with a fixed total at each order.

The server chooses ranks and schedule after it has seen earlier releases, so the costs of later
uploads may depend on them. With totals that were fixed beforehand, stopping before any order's sum
would pass its total keeps the guarantee (Feldman and Zrnic 2021, "Individual privacy accounting
via a Rényi filter", Theorem 4.3). Every cost here is alpha * rho, and so is the total: the orders
pass their totals together, and one comparison decides for all.
"""

from __future__ import annotations

import math

from fedlora.checks import positive
from fedlora.privacy.accounting.rdp import rho

_UP = 1 + 2.0**-50  # more than the rounding of 2 / sigma^2


def upload_cost(sigma: float) -> float:
    """Return the replace-one rho of one upload, rounded up.

    Raises
    ------
    FedloraError
        When sigma is not positive.
    """
    positive("sigma", sigma)
    return rho(sigma) * _UP


def add_up(spent: float, cost: float) -> float:
    """Return ``spent + cost``, rounded up."""
    return math.nextafter(spent + cost, math.inf)
