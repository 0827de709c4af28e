"""From ``privacy.release`` to the mechanism that it names."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from fedlora import registry
from fedlora.checks import shown
from fedlora.config import PrivacyPolicy
from fedlora.errors import FedloraError
from fedlora.printable import described
from fedlora.privacy.mechanisms.base import Mechanism
from fedlora.privacy.mechanisms.full import Full
from fedlora.privacy.mechanisms.labels import Labels
from fedlora.privacy.mechanisms.logits import Logits
from fedlora.privacy.mechanisms.row_space import RowSpace

SHIPPED: Final[Mapping[str, type[Mechanism]]] = MappingProxyType(
    {"full": Full, "row_space": RowSpace, "logits": Logits, "labels": Labels}
)
"""fedlora's own, which owners of devices rely on: no package can register another by their names.

All others are found as ``fedlora.mechanisms`` or as ``module:Class``; a device uses one of them
only where its owner has allowed it.
"""


def mechanism_class(name: str) -> type[Mechanism]:
    """Return the class that ``privacy.release`` names.

    Raises
    ------
    FedloraError
        When there is none, or it is no mechanism.
    """
    if name in SHIPPED:
        return SHIPPED[name]
    found: type[Mechanism] = registry.resolve("mechanisms", name, Mechanism, besides=SHIPPED)
    return found


def mechanism_of(policy: PrivacyPolicy) -> Mechanism | None:
    """Return a policy's mechanism; None where privacy is off.

    Raises
    ------
    FedloraError
        As ``mechanism_class``, and when it cannot be made.
    """
    if not policy.enabled:
        return None
    cls = mechanism_class(policy.release)
    try:
        return cls(policy)
    except FedloraError:
        raise
    except Exception as error:
        raise FedloraError(
            f"privacy.release is {shown(policy.release)}, which cannot be made with a policy alone "
            f"({described(error)}); mend the plug-in"
        ) from error
