"""What simulated clients hold, as their hosts tell it: checked before it is written down."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from fedlora.errors import printable
from fedlora.server.exchange.member import natural

log = logging.getLogger("fedlora.server")

_MOST_LABELS = 100_000
_MOST_ROWS = 1 << 53


def classes_of(labels: Sequence[str], told: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the class names of a shared head: the scenario's, or those that all clients tell.

    Parameters
    ----------
    labels
        The scenario's ``task.labels``.
    told
        By client; empty in a deployment, where nobody is believed.
    """
    found = {tuple(own["classes"]) for own in told.values() if _is_names(own.get("classes"))}
    if labels or len(found) != 1:
        return list(labels)
    return list(found.pop())


def holdings(told: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Return the number of rows of each client by label, where the clients tell."""
    held: dict[str, dict[str, int]] = {}
    for client in sorted(told, key=natural):
        names, rows = told[client].get("labels"), told[client].get("label_rows")
        if names is None and rows is None:
            continue
        if not (_is_names(names) and _is_rows(rows) and len(names) == len(rows)):
            log.warning("client %s tells label counts that are none; they are left out", client)
            continue
        held[client] = {printable(n): int(r) for n, r in zip(names, rows, strict=True)}
    labels = sorted({label for counts in held.values() for label in counts})
    return {label: {c: counts.get(label, 0) for c, counts in held.items()} for label in labels}


def _is_names(value: Any) -> TypeGuard[Sequence[str]]:
    return (
        isinstance(value, (list, tuple))
        and 0 < len(value) <= _MOST_LABELS
        and all(isinstance(name, str) for name in value)
    )


def _is_rows(value: Any) -> TypeGuard[Sequence[int]]:
    return isinstance(value, (list, tuple)) and all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n < _MOST_ROWS for n in value
    )
