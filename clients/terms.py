"""What a data owner decides on their own device, out of the server's reach.

``privacy-epsilon``, ``-delta``, ``-min-sigma`` and ``-tight`` limit what any sample may ever spend,
``privacy-ledger`` is where that is kept, ``privacy-report`` allows held-out metrics to be reported,
and ``privacy-statistics`` statistics of the text to be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fedlora.errors import FedloraError
from fedlora.privacy.policy import ClientLimit

_REPORT, _LEDGER, _STATISTICS = "privacy-report", "privacy-ledger", "privacy-statistics"


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
    statistics
        Whether statistics of the text may be told where the scenario asks for them; None, in a
        simulation, where privacy is off.
    """

    ledger: Path | None = None
    limit: ClientLimit | None = None
    deployed: bool = False
    reports: bool = True
    statistics: bool | None = None

    @classmethod
    def from_node_config(cls, config: Mapping[str, Any], client: int) -> Self:
        """Read a device's terms.

        Raises
        ------
        FedloraError
            When a value is out of range.
        """
        default = Path.home() / ".fedlora" / f"privacy-ledger-{client}"
        return cls(
            ledger=Path(str(config.get(_LEDGER, default))).expanduser(),
            limit=ClientLimit.from_node_config(config),
            deployed=True,
            reports=_consents(config, _REPORT),
            statistics=_consents(config, _STATISTICS),
        )

    def tells_statistics(self, *, private: bool) -> bool:
        """Tell whether a run that asks for statistics of the text is told them.

        No noise covers them, so a ``private`` run gets them only where the owner said so.
        """
        return not private if self.statistics is None else self.statistics


def _consents(config: Mapping[str, Any], key: str) -> bool:
    consent = str(config.get(key, "false")).lower()
    if consent not in ("true", "false"):
        raise FedloraError(f"node config {key} is {consent!r}; set true or false")
    return consent == "true"
