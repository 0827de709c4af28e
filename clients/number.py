"""Which client of a federation a node is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedlora.errors import FedloraError

_KEY = "partition-id"


def partition_id(node_config: Mapping[str, Any]) -> int | None:
    """Return the number in a node's configuration; None where there is none.

    Raises
    ------
    FedloraError
        When it is no whole number from 0.
    """
    value = node_config.get(_KEY)
    text = str(value)
    if value is None:
        return None
    if isinstance(value, bool) or not (text.isascii() and text.isdecimal()):
        raise FedloraError(
            f"node config {_KEY} is {value!r}; set the device's number, from 0, each its own"
        )
    return int(text)


def own_number(session: Mapping[str, Any], node_config: Mapping[str, Any]) -> int:
    """Return this device's client number, which the server may not choose: ledgers go by it.

    Raises
    ------
    FedloraError
        When the server calls the device by another number than its ``partition-id``, or it has
        neither that nor a ``privacy-ledger`` of its own.
    """
    number, own = int(session["client"]), partition_id(node_config)
    if own is None and "privacy-ledger" in node_config:
        own = number
    if own != number:
        raise FedloraError(
            f"the server calls this device client {number} but its node config has {_KEY} "
            f"{own}; give each device its own"
        )
    return number
