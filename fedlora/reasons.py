"""Why a client does not take part, or leaves: a kind from a closed list, with numbers.

A device's own sentence may quote its records, columns, files and folders, so it stays in the
device's log. What reaches the server is a word of ``KINDS`` and whole numbers; the server makes a
sentence of them again. A simulation, where one person owns everything, is told whole sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Self

from fedlora.errors import FedloraError, ProtocolError, printable

REASON: Final = "reason"
"""Field of a message that holds the kind, or in a simulation a sentence."""

ERROR: Final = "error"
"""The same in a reply through Flower; empty where all is well."""

KINDS: Final[Mapping[str, str]] = {
    "keys": "it refuses to take part, as its node configuration cannot be used",
    "invitation": "it refuses the invitation, which does not hold what this release sends",
    "server": "it refuses an address that its owner has not named",
    "number": "it refuses to be the client that the server calls it",
    "scenario": "it refuses the scenario, which it cannot read",
    "plugins": "it refuses a plug-in that is not registered on it",
    "terms": "it refuses the run, as its owner's terms do not allow it",
    "model": "it refuses the run, as it cannot use the model",
    "data": "it refuses the run, as it cannot use its data",
    "record": "it refuses the run, as it cannot use one of its records",
    "classes": "it refuses the run, as task.labels does not name the classes of its data",
    "budget": "it leaves, as what its privacy may cost is spent",
    "ledger": "it refuses the run, as it cannot keep its privacy ledger",
    "protocol": "it leaves, as the server broke the protocol",
    "size": "it leaves, as an answer exceeds link.max_frame_mib",
    "unreachable": "it could not keep a stream to the server",
    "dropped": "the server ended its session",
    "idle": "it leaves, as the server asked nothing for too long",
    "absent": "it is not here any more",
    "failed": "it failed",
}
_LOG = "; the device's own log says more"
NUMBERS: Final = ("record", "records")
"""Numbers that may go with a kind: a record's place in its file, from 1, and how many there are."""
_MOST = 1 << 53


@dataclass(frozen=True)
class Reason:
    """A kind and its numbers.

    Attributes
    ----------
    kind
        One of ``KINDS``.
    numbers
        Whole numbers by name, of ``NUMBERS``.
    """

    kind: str
    numbers: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS or set(self.numbers) - set(NUMBERS):
            raise ValueError(f"no reason is of kind {self.kind!r} with {sorted(self.numbers)}")

    def fields(self) -> dict[str, str | int]:
        """Return what goes into a message."""
        return {REASON: self.kind, **self.numbers}

    def sentence(self) -> str:
        """Return what the server tells of it."""
        told = "".join(f", {name} {number}" for name, number in self.numbers.items())
        return f"{KINDS[self.kind]}{told}{_LOG}"

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self | None:
        """Return the reason that a message holds; None where it holds no kind of the list."""
        kind = fields.get(REASON)
        if not isinstance(kind, str) or kind not in KINDS:
            return None
        given = {name: fields.get(name) for name in NUMBERS}
        return cls(kind, {n: v for n, v in given.items() if type(v) is int and 0 <= v < _MOST})


Words = Callable[[BaseException], Mapping[str, Any]]
"""Turns an error into the fields that a peer may be told."""


def closed_words(error: BaseException) -> Mapping[str, Any]:
    """Return an error's kind and numbers and nothing else of it; see ``Words``."""
    own = error if isinstance(error, FedloraError) else FedloraError()
    kind = own.kind or ("protocol" if isinstance(own, ProtocolError) else "failed")
    return Reason(kind, own.numbers).fields()


def whole_words(error: BaseException) -> Mapping[str, Any]:
    """Return what a simulation tells of an error: the sentence of one that fedlora raises."""
    return {REASON: str(error)} if isinstance(error, FedloraError) else closed_words(error)


@contextmanager
def about(kind: str) -> Iterator[None]:
    """Give every ``FedloraError`` that is raised inside a kind of ``KINDS``, unless it has one."""
    try:
        yield
    except FedloraError as error:
        error.kind = error.kind or kind
        raise


def through_flower(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a reason's fields as a reply through Flower holds them; empty ones say all is well."""
    return {**{k: v for k, v in fields.items() if k != REASON}, ERROR: fields.get(REASON, "")}


def told(fields: Mapping[str, Any], name: str = REASON) -> str:
    """Return a client's reason as a sentence that is fit for a log line; empty where it gave none.

    Parameters
    ----------
    fields
        What came over the wire.
    name
        Where the reason is in it.
    """
    given = fields.get(name)
    reason = Reason.read({**fields, REASON: given})
    return reason.sentence() if reason else printable(given or "")
