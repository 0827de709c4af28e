"""What a data owner decides on their own device, out of the server's reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fedlora.config import ClientLimit, NodeKeys, Report
from fedlora.errors import FedloraError
from fedlora.privacy.mechanisms import SHIPPED

DATA, TEXT = "data", "text"
GENERATE = "generate-allowed"
REPORT, STATISTICS, SCORES = "privacy-report", "privacy-statistics", "privacy-scores"


@dataclass(frozen=True)
class OwnerTerms:
    """What a data owner decides; without arguments those of a simulation, which allow everything.

    Attributes
    ----------
    ledger
        Where the budget is kept; None counts in memory, for a simulation that writes nothing.
    limit
        The most that a sample may spend, over all runs.
    deployed
        Whether this is a device, where noise has to be secret and nothing leaves but by a key.
    reports
        How held-out counts may be told where the scenario asks for them; see ``NodeKeys``.
    statistics
        Whether statistics of the text may be told where the scenario asks for them; None, in a
        simulation, where privacy is off.
    scores
        Whether histograms of held-out scores may be told where the scenario asks for them.
    personal_head
        Whether a head may learn from labels as they are beside noised gradients.
    report_limit
        Evaluations that a run may have.
    classes
        Names of the classes, where the owner names them.
    own_data
        Whether the records are the owner's own file rather than the scenario's.
    mechanisms
        Names of plug-in mechanisms that a device may use beside fedlora's own.
    retention
        Whether the server may be asked to keep activations until the run ends.
    generates
        Whether prompts and texts may go over the cut as they are although a limit is set.
    """

    ledger: Path | None = None
    limit: ClientLimit | None = None
    deployed: bool = False
    reports: Report = "unprotected"
    statistics: bool | None = None
    scores: bool = False
    personal_head: bool = True
    report_limit: int = 100
    classes: tuple[str, ...] = ()
    own_data: bool = False
    mechanisms: tuple[str, ...] = ()
    retention: bool = True
    generates: bool = False

    @classmethod
    def of(cls, keys: NodeKeys) -> Self:
        """Return a device's terms."""
        return cls(
            ledger=keys.ledger(),
            limit=keys.limit,
            deployed=True,
            reports=keys.privacy_report,
            statistics=keys.privacy_statistics,
            scores=keys.privacy_scores,
            personal_head=keys.privacy_personal_head,
            report_limit=keys.privacy_report_limit,
            classes=keys.classes,
            own_data=bool(keys.data),
            mechanisms=keys.privacy_mechanisms,
            retention=keys.retention,
            generates=keys.generate_allowed,
        )

    @property
    def simulated(self) -> bool:
        """Whether one person owns everything, so that there is nothing to keep from the server."""
        return not self.deployed

    def allows(self, key: str) -> bool:
        """Tell whether what no noise covers may leave by a key.

        Parameters
        ----------
        key
            ``data``: what is computed from labels, which a limit forbids. ``text``: activations as
            they are. ``privacy-report``, ``privacy-statistics``, ``privacy-scores``: what their
            names say, the last only where counts are told exactly.
        """
        if self.simulated:
            return True
        match key:
            case "data":
                return self.limit is None
            case "text":  # what else is there to train on; activation noise goes by the scenario
                return True
            case "generate-allowed":
                return self.generates or self.limit is None
            case "privacy-report":
                return self.reports == "unprotected"
            case "privacy-statistics":
                return bool(self.statistics)
            case "privacy-scores":
                return self.scores and (self.limit is None or self.reports == "unprotected")
        return False

    def check_mechanism(self, name: str) -> None:
        """Refuse a device a plug-in mechanism, which says itself what it costs, unless allowed.

        Parameters
        ----------
        name
            The scenario's ``privacy.release``.

        Raises
        ------
        FedloraError
            When the name is neither of fedlora's own nor of the owner's; nothing is imported.
        """
        if self.simulated or name in SHIPPED or name in self.mechanisms:
            return
        raise FedloraError(
            f"privacy.release is {name!r:.80}, a plug-in that this device's owner has not "
            "allowed; choose one of fedlora's own, or name it in privacy-mechanisms of the node "
            "configuration"
        )

    def named(self, key: str) -> str:
        """Return the key of the node configuration that stands for one of ``allows``."""
        if key in (TEXT, DATA) and self.deployed and not self.own_data:
            return "scenario-data"
        return key

    def tells_statistics(self, *, private: bool) -> bool:
        """Tell whether a run that asks for statistics of the text is told them.

        No noise covers them, so a ``private`` run gets them only where the owner said so.
        """
        return not private if self.statistics is None else self.statistics


def own_number(session: Mapping[str, Any], keys: NodeKeys) -> int:
    """Return this device's client number, which the server may not choose: ledgers go by it.

    Raises
    ------
    FedloraError
        When the server calls the device by another number than its ``partition-id``, or it has
        neither that nor a ``privacy-ledger`` of its own.
    """
    number, own = int(session["client"]), keys.partition_id
    if own is None and keys.privacy_ledger:
        own = number
    if own != number:
        raise FedloraError(
            f"the server calls this device client {number} but its node config has partition-id "
            f"{own}; give each device its own"
        )
    return number
