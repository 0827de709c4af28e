"""A value that depends on a device's records, held so that only the door turns it into bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NoReturn, TypeVar

import torch

from fedlora.tasks import Sample

T = TypeVar("T")
S = TypeVar("S")


class Private(Generic[T]):
    """Records, labels, or what is computed from them.

    It can be computed with, by ``map``, and what comes out is private again. It has no length, no
    truth value, no equality, no text, and cannot be pickled or put in a message: what leaves is
    ``clients.owner.door.Leaving``, which only the door makes of it.

    Parameters
    ----------
    value
        What it holds.
    """

    __slots__ = ("__value",)

    def __init__(self, value: T) -> None:
        self.__value = value

    def map(self, function: Callable[[T], S]) -> Private[S]:
        """Return what a function makes of it."""
        return Private(function(self.__value))

    def __repr__(self) -> str:
        return "<private>"

    def __format__(self, spec: str) -> str:
        return repr(self)

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError("a private value is computed with by map, and leaves by the door alone")

    __bool__ = __len__ = __iter__ = __getitem__ = __contains__ = _refuse
    __eq__ = __lt__ = __le__ = __float__ = __int__ = __reduce_ex__ = _refuse
    __hash__ = None  # type: ignore[assignment]


def open_private(value: Private[T]) -> T:
    """Return what is held; for the door alone, as a test of the imports holds."""
    return value._Private__value  # type: ignore[attr-defined, no-any-return]


class PrivateSamples:
    """A client's samples: how many there are and how long they are is public, the rest is not.

    Parameters
    ----------
    samples
        The samples, in the order of the client's records.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.lengths = tuple(sample.length for sample in samples)
        self.all: Private[Sequence[Sample]] = Private(samples)

    @classmethod
    def of(cls, samples: Private[Sequence[Sample]]) -> PrivateSamples:
        """Return samples that were made on the way; how long they are is public as well."""
        return cls(open_private(samples))

    def __len__(self) -> int:
        return len(self.lengths)

    def lengths_of(self, numbers: Sequence[int]) -> list[int]:
        """Return the tokens of some samples, by their numbers."""
        return [self.lengths[number] for number in numbers]

    def map(self, function: Callable[[Sequence[Sample]], Sequence[Sample]]) -> PrivateSamples:
        """Return other samples of the same records and lengths, as with other labels."""
        other = PrivateSamples(())
        other.lengths, other.all = self.lengths, self.all.map(function)
        return other

    def take(self, numbers: Sequence[int]) -> Private[list[Sample]]:
        """Return some samples, by their numbers."""
        chosen = list(numbers)
        return self.all.map(lambda samples: [samples[number] for number in chosen])


def together(values: Sequence[Private[T]]) -> Private[list[T]]:
    """Return several private values as one."""
    return Private([open_private(value) for value in values])


def width_of(packed: Private[torch.Tensor]) -> int:
    """Return the width of a packed tensor, which follows from the model."""
    return int(open_private(packed).shape[1])
