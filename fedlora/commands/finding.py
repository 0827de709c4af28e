"""What ``fedlora doctor`` finds."""

from __future__ import annotations

from dataclasses import dataclass

from fedlora.errors import FedloraError


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    what
        What was looked at.
    found
        What was found.
    mend
        What to do about it; empty when all is well.
    """

    what: str
    found: str
    mend: str = ""


def refused(what: str, error: FedloraError) -> Finding:
    """Return the finding of something that is refused, with the mend that the sentence ends in."""
    reason, _, mend = str(error).rpartition("; ")
    return Finding(what, reason or mend, mend)
