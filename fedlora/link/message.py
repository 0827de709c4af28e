"""What a message is made of: a frozen dataclass, whose fields say where they are in a frame.

A field is either a value in the frame's header or a group of its tensors. ``from_frame`` checks the
kind of the message, and of each value its type and range; shapes of tensors are checked by whoever
knows them. ``to_frame`` writes values in the order of the fields, and leaves out those that are
``None`` by default. What a message does not name is left unread, so that releases may differ.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self, get_args, get_type_hints

import torch

from fedlora.errors import ProtocolError
from fedlora.link.frame import Frame

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Value:
    """A value of the header.

    Attributes
    ----------
    words
        What it must be, as a sentence says it.
    fits
        Tells whether one is that.
    """

    words: str
    fits: Callable[[Any], bool]


@dataclass(frozen=True)
class Group:
    """Tensors of a message.

    Attributes
    ----------
    name
        Of one tensor, or the beginning of the names of several, up to a full stop.
    """

    name: str

    def holds(self, tensor: str) -> bool:
        """Tell whether a tensor is of this group."""
        return tensor.partition(".")[0] == self.name.rstrip(".")


def _is_number(value: object) -> bool:
    most = sys.float_info.max  # a whole number of JSON may be beyond it, and compares all the same
    return isinstance(value, (int, float)) and type(value) is not bool and -most <= value <= most


Count = Annotated[int, Value("an integer from 0", lambda v: type(v) is int and v >= 0)]
Whole = Annotated[int, Value("an integer", lambda v: type(v) is int)]
Flag = Annotated[bool, Value("true or false", lambda v: type(v) is bool)]
Number = Annotated[float, Value("a finite number", _is_number)]
Text = Annotated[str, Value("a text", lambda v: type(v) is str)]
Table = Annotated[Mapping[str, Any], Value("an object", lambda v: isinstance(v, Mapping))]


@dataclass(frozen=True)
class Message:
    """One message, as ``fedlora.link.requests`` and ``fedlora.link.replies`` list them.

    Attributes
    ----------
    KIND
        Its name in a frame.
    """

    KIND: ClassVar[str]

    @classmethod
    def parts(cls) -> list[str]:
        """Return the names of all values and tensors, those of a group once."""
        return [
            item.name if isinstance(part, Value) else part.name.rstrip(".")
            for item, part in _items(cls)
        ]

    @property
    def fields(self) -> dict[str, Any]:
        """Values of the header, in order."""
        found = {}
        for item, part in _items(type(self)):
            value = getattr(self, item.name)
            if isinstance(part, Value) and not (value is None and item.default is None):
                found[item.name] = value
        return found

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by name, group by group."""
        found: dict[str, torch.Tensor] = {}
        for item, part in _items(type(self)):
            if isinstance(part, Group):
                found |= getattr(self, item.name)
        return found

    def to_frame(self, client: str, seq: int = 0) -> Frame:
        """Return the frame that holds it.

        Parameters
        ----------
        client
            For whom, or from whom.
        seq
            Number of the request.
        """
        return Frame(self.KIND, client, seq, self.fields, self.tensors)

    @classmethod
    def from_frame(cls, frame: Frame) -> Self:
        """Read it from a frame.

        Raises
        ------
        ProtocolError
            When the frame is of another kind, or lacks a value or holds one of another type.
        """
        if frame.kind != cls.KIND:
            raise ProtocolError(f"{frame.kind[:40]!r} came where {cls.KIND} was due")
        given: dict[str, Any] = {}
        for item, part in _items(cls):
            if isinstance(part, Group):
                given[item.name] = {n: t for n, t in frame.tensors.items() if part.holds(n)}
                continue
            value = frame.fields.get(item.name, item.default)
            if not part.fits(value):
                shown = "nothing" if value is dataclasses.MISSING else f"{value!r:.40}"
                raise ProtocolError(f"{cls.KIND} needs {item.name} as {part.words}, not {shown}")
            given[item.name] = value
        return cls(**given)


_PLACES: dict[type[Message], list[tuple[Any, Value | Group]]] = {}


def _items(cls: type[Message]) -> list[tuple[Any, Value | Group]]:
    """Return the fields of a message, each with what its annotation says of its place."""
    if cls not in _PLACES:
        hints = get_type_hints(cls, include_extras=True)
        _PLACES[cls] = [(item, _part(hints[item.name])) for item in dataclasses.fields(cls)]
    return _PLACES[cls]


def _part(hint: Any) -> Value | Group:
    """Return what an annotation says; beside ``None`` that is allowed, too."""
    for found in getattr(hint, "__metadata__", ()):
        if isinstance(found, (Value, Group)):
            return found
    given = _part(get_args(hint)[0])
    assert isinstance(given, Value), "tensors may be none, but not null"
    return Value(given.words, lambda value: value is None or given.fits(value))
