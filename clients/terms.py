"""What a data owner decides on their own device, out of the server's reach.

``privacy-epsilon``, ``-delta``, ``-min-sigma`` and ``-tight`` limit what any sample may ever spend,
``privacy-ledger`` is where that is kept, and ``privacy-report`` allows held-out metrics to be
reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fedlora.errors import FedloraError
from fedlora.privacy.policy import ClientLimit

_REPORT, _LEDGER = "privacy-report", "privacy-ledger"


@dataclass(frozen=True)
class OwnerTerms:
    """What a data owner decides, out of the server's reach.

    Attributes
    ----------
    ledger
        Where the budget is kept; None counts in memory, for a simulation that writes nothing.
    limit
        The most that a sample may spend, over all runs.
    deployed
        Whether this is a device, where noise has to be secret.
    reports
        Whether held-out metrics may be reported where the scenario asks for them.
    """

    ledger: Path | None = None
    limit: ClientLimit | None = None
    deployed: bool = False
    reports: bool = True

    @classmethod
    def from_node_config(cls, config: Mapping[str, Any], client: int) -> Self:
        """Read a device's terms.

        Raises
        ------
        FedloraError
            When a value is out of range.
        """
        default = Path.home() / ".fedlora" / f"privacy-ledger-{client}"
        consent = str(config.get(_REPORT, "false")).lower()
        if consent not in ("true", "false"):
            raise FedloraError(f"node config {_REPORT} is {consent!r}; set true or false")
        return cls(
            ledger=Path(str(config.get(_LEDGER, default))).expanduser(),
            limit=ClientLimit.from_node_config(config),
            deployed=True,
            reports=consent == "true",
        )
