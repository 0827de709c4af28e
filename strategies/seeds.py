"""The seed of a strategy that draws at random."""

from __future__ import annotations

from fedlora.ranks import FedloraError


def check_seed(seed: int) -> int:
    """Return a seed that a generator takes.

    Raises
    ------
    FedloraError
        When it is none.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise FedloraError(f"seed is {seed!r}; set a whole number, 0 or more")
    return seed
