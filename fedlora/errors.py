"""The errors that fedlora raises on purpose."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType


class FedloraError(ValueError):
    """A user's mistake, or a refusal that a user can mend.

    The message is one sentence that quotes the offending value and says how to mend it. The
    command line prints it without a traceback and exits with status 2.

    Attributes
    ----------
    kind, numbers
        What a server may be told where this happens on a device, see ``fedlora.link.reasons``; an
        empty kind says nothing.
    """

    kind: str = ""
    numbers: Mapping[str, int] = MappingProxyType({})


class ProtocolError(FedloraError):
    """A peer sent something that the wire format, the schema or the session does not allow."""


class ClientLost(FedloraError):
    """A client's link closed or missed its deadline; the run goes on without the client."""


class ClientLate(ClientLost):
    """A client missed a deadline; its link is open, and its answer may still come."""


class NoClientsLeft(FedloraError):
    """No client is left in a round; with devices it is begun again when some are back."""
