"""Whether this machine has a device that a scenario names."""

from __future__ import annotations

import torch

from fedlora.errors import FedloraError


def check_device(place: str) -> None:
    """Refuse a place that blocks cannot be put in.

    Raises
    ------
    FedloraError
        When torch knows no such device, or this machine has none.
    """
    try:
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise FedloraError(
            f"blocks cannot be put in {place!r} ({reason}); mend the compute section"
        ) from None
