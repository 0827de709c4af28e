"""The one door: everything that leaves a device is made here, and nowhere else.

A value leaves in one of three ways, and the door is told which:

``public``
    It is a function of what the server knows already, or of no record. A ``Private`` value is
    refused.
``released``
    Noise was added, or labels were randomised, and the receipts of ledger entries that were synced
    to disk cover every record that it was computed from.
``allowed``
    A key of the owner's node configuration says that it may.

``Leaving`` is made by these alone, a message is made of ``Leaving`` alone, and each part of it is
held against ``clients.owner.table``. So an owner's limit cannot be passed by a message, a scenario
or a restart: what these name decides at most how much noise is paid for. In a simulation one person
owns everything, and the door lets everything through as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import torch

from clients.owner.private import Private, PrivateSamples, open_private
from clients.owner.table import TABLE, How
from clients.owner.terms import OwnerTerms
from fedlora.errors import FedloraError
from fedlora.link import Frame, closed_words, messages as m, whole_words
from fedlora.privacy.ledger import Ledger, Receipt
from fedlora.tasks import Sample

T = TypeVar("T")

_MADE = object()


class Leaving(Generic[T]):
    """A value that may leave; made by a ``Door`` alone.

    Attributes
    ----------
    value
        What leaves.
    how
        Why it may.
    key
        The key that allows it, where one has to.
    """

    __slots__ = ("how", "key", "value")

    def __init__(self, made: object, value: T, how: How, key: str = "") -> None:
        if made is not _MADE:
            raise TypeError("only the door makes what leaves; use its public, released or allowed")
        self.value, self.how, self.key = value, how, key

    def encode(
        self, function: Callable[[T], Mapping[str, torch.Tensor]]
    ) -> dict[str, Leaving[torch.Tensor]]:
        """Return the tensors that a codec makes of it; what follows from it may leave as it may."""
        parts = function(self.value)
        return {name: Leaving(_MADE, part, self.how, self.key) for name, part in parts.items()}


class Trainable(Protocol):
    """A head, as the door sees it: ``clients.head.ClientHead``.

    Attributes
    ----------
    trained
        Whether its weights have learnt from labels here.
    """

    trained: bool

    def weights(self, *shares: str) -> Private[dict[str, torch.Tensor]]:
        """Return its weights, of the parts that are shared so."""


class Door:
    """Decides what leaves one client, and makes its messages.

    Parameters
    ----------
    terms
        The owner's.
    ledger
        The owner's, whose receipts count; None in a simulation that keeps none.
    """

    def __init__(self, terms: OwnerTerms, ledger: Ledger | None = None) -> None:
        self.terms = terms
        self.ledger = ledger

    def public(self, value: T) -> Leaving[T]:
        """Let out what is a function of what the server knows, or of no record."""
        if isinstance(value, Private):
            raise TypeError("a private value is not public")
        return Leaving(_MADE, value, "public")

    def released(
        self, value: Private[T], records: Iterable[int], receipts: Iterable[Receipt]
    ) -> Leaving[T]:
        """Let out what was paid for.

        Parameters
        ----------
        value
            What a mechanism made.
        records
            Identifiers in the ledger of all records that it was computed from.
        receipts
            Ledger entries that cover them.

        Raises
        ------
        FedloraError
            When a record is not covered by an entry of this client's own ledger.
        """
        if not self.terms.simulated:
            paid: set[int] = set()
            for receipt in receipts:
                if receipt.ledger is self.ledger:
                    paid |= receipt.records
            if not paid.issuperset(records):
                raise FedloraError("what is to leave has not been paid for; nothing leaves")
        return Leaving(_MADE, open_private(value), "released")

    def allowed(self, value: Private[T], key: str) -> Leaving[T]:
        """Let out what the owner's key allows.

        Raises
        ------
        FedloraError
            When it does not.
        """
        if not self.terms.allows(key):
            raise FedloraError(
                f"{key} of the node configuration does not allow this; nothing leaves"
            )
        return Leaving(_MADE, open_private(value), "allowed", self.terms.named(key))

    def untrained(self, head: Trainable, *shares: str) -> Leaving[dict[str, torch.Tensor]]:
        """Let out a head's weights, which follow from the seed and from what the server sent.

        Raises
        ------
        FedloraError
            When it has learnt from labels here.
        """
        if head.trained:
            raise FedloraError("a head that has learnt from labels is not public; nothing leaves")
        return Leaving(_MADE, open_private(head.weights(*shares)), "public")

    def message(
        self,
        kind: str,
        client: str,
        seq: int,
        fields: Mapping[str, Leaving[Any]] | None = None,
        tensors: Mapping[str, Leaving[torch.Tensor]] | None = None,
    ) -> Frame:
        """Return a message of the tensor stream."""
        return Frame(
            kind,
            client,
            seq,
            {name: self._part(kind, name, part) for name, part in (fields or {}).items()},
            {name: self._part(kind, name, part) for name, part in (tensors or {}).items()},
        )

    def record(self, kind: str, fields: Mapping[str, Leaving[Any]]) -> dict[str, Any]:
        """Return what a reply through Flower holds; see ``message``."""
        return {name: self._part(kind, name, part) for name, part in fields.items()}

    def words(self, error: BaseException) -> dict[str, Leaving[Any]]:
        """Return what may be told of an error: its kind, or in a simulation its sentence.

        The error's class and ``fedlora.reasons.about`` decide on the kind, never its words.
        """
        told = (whole_words if self.terms.simulated else closed_words)(error)
        return {name: self.public(value) for name, value in told.items()}

    def told(self, error: BaseException) -> dict[str, Any]:
        """Return ``words`` as the fields of a client's last message."""
        return self.record(m.LEAVE, self.words(error))

    def leave(self, client: str, seq: int, error: BaseException) -> Frame:
        """Return a client's last words."""
        return self.message(m.LEAVE, client, seq, self.words(error))

    def truth(self, samples: PrivateSamples) -> list[Sample]:
        """Return a simulated client's samples, for whoever judges an attack or a result.

        Raises
        ------
        FedloraError
            On a device.
        """
        if not self.terms.simulated:
            self._refuse()
        every: Sequence[Sample] = open_private(samples.all)
        return list(every)

    def _refuse(self) -> NoReturn:
        raise FedloraError("a device's samples are its owner's; this exists in a simulation alone")

    def _part(self, kind: str, name: str, part: Leaving[Any]) -> Any:
        """Return a part's value; refuse one that the table does not know, or not in this way."""
        if not isinstance(part, Leaving):
            raise TypeError(f"{name} of {kind} did not come through the door")
        rule = TABLE.get(kind, {}).get(name.partition(".")[0])
        if rule is None:
            raise TypeError(f"no {kind} has a part {name}; add it to clients.owner.table")
        if part.value is None or (part.how == "allowed" and self.terms.simulated):
            return part.value  # None tells nothing
        if part.how not in rule.ways or (part.how == "allowed" and part.key not in rule.keys):
            raise TypeError(f"{name} of {kind} may not leave as {part.how} {part.key}".rstrip())
        return part.value
