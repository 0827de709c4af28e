"""The whole words of an error, which stay on the device."""

from __future__ import annotations

import logging

from fedlora.errors import FedloraError

log = logging.getLogger("fedlora.edge")


def log_whole(what: str, error: BaseException) -> None:
    """Write an error to the device's own log: the whole sentence of one that fedlora raises."""
    if isinstance(error, FedloraError):
        log.error("%s: %s", what, error)
    else:
        log.error("%s", what, exc_info=error)
