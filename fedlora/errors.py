"""The errors that fedlora raises on purpose."""

from __future__ import annotations


class FedloraError(ValueError):
    """A user's mistake, or a refusal that a user can mend.

    The message is one sentence that quotes the offending value and says how to mend it. The
    command line prints it without a traceback and exits with status 2.
    """


class ProtocolError(FedloraError):
    """A peer sent something that the wire format, the schema or the session does not allow."""


class ClientLost(FedloraError):
    """A client's link closed or missed its deadline; the run goes on without the client."""


class ClientLate(ClientLost):
    """A client missed a deadline; its link is open, and its answer may still come."""


class Deserted(FedloraError):
    """No client is left in a round; with devices it is begun again when some are back."""
