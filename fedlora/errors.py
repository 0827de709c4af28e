"""The errors that fedlora raises on purpose, and how a value or a peer's text stands in them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

MOST_CHARACTERS = 300  # of a peer's text
_SHOWN = 80  # characters of a value that a sentence quotes


class FedloraError(ValueError):
    """A user's mistake, or a refusal that a user can mend.

    The message is one sentence that quotes the offending value and says how to mend it. The
    command line prints it without a traceback and exits with status 2.

    Attributes
    ----------
    kind, numbers
        What a server may be told where this happens on a device, see ``fedlora.reasons``; an
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


def require(condition: bool, message: str) -> None:
    """Raise ``FedloraError(message)`` unless the condition holds."""
    if not condition:
        raise FedloraError(message)


def shown(value: object) -> str:
    """Return a value as a sentence quotes it: whole where it is short, else its two ends."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of over 4,300 digits
        text = "a number of over 4,300 digits"
    text = " ".join(line.strip() for line in text.splitlines())  # of arrays
    if len(text) <= _SHOWN:
        return text
    return f"{text[: _SHOWN // 2]}...{text[-_SHOWN // 4 :]}"


def printable(text: Any, most: int = MOST_CHARACTERS) -> str:
    """Return at most so many characters of a peer's text without line breaks or control codes."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:most])


def described(error: BaseException, files: Collection[str] = ()) -> str:
    """Return an exception's type, place and text in one line.

    Parameters
    ----------
    error
        What was raised.
    files
        Paths of whoever is to blame: the place is the last that the error passed in one of them,
        rather than in a library that it was handed to.
    """
    import traceback

    places = traceback.extract_tb(error.__traceback__)
    place = next((own for own in reversed(places) if own.filename in files), places[-1])
    text = text_of(error)
    text = text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"
    return f"{type(error).__name__} at {Path(place.filename).name}, line {place.lineno}: {text}"


def text_of(error: BaseException) -> str:
    """Return an exception's text in one line; that of a stranger's may not be had."""
    try:
        return " ".join(str(error).split())
    except Exception:
        return "its text cannot be had"
