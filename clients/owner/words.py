"""From an error to what may be told of it: a kind of a closed list, and numbers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from fedlora.errors import FedloraError

log = logging.getLogger("fedlora.edge")


@contextmanager
def about(kind: str) -> Iterator[None]:
    """Give every ``FedloraError`` that is raised inside a kind, unless it has one already.

    Parameters
    ----------
    kind
        One of ``fedlora.link.reasons.KINDS``.
    """
    try:
        yield
    except FedloraError as error:
        error.kind = error.kind or kind
        raise


def log_whole(what: str, error: BaseException) -> None:
    """Write an error to the device's own log: the whole sentence of one that fedlora raises."""
    if isinstance(error, FedloraError):
        log.error("%s: %s", what, error)
    else:
        log.error("%s", what, exc_info=error)
