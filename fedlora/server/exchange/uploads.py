"""Reading what clients upload: shape, type, size and values are checked before use."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedlora.errors import ProtocolError
from fedlora.link import Codec, Frame, unpack, unpack_ends

MOST_WEIGHT = 1e6
"""Far beyond any weight of a head that works."""


@dataclass(frozen=True)
class Activation:
    """A batch at the cut.

    Attributes
    ----------
    packed
        Shape (sum of lengths, width), fp32.
    lengths
        Tokens of each row.
    targets
        Which tokens are learnt, shape (sum of lengths,): only those go down again, and their
        gradients come up. None where all do.
    ids
        Identifiers of the rows; None where the device does not let the server keep what it sees of
        them (``retention``).
    held
        Digests of the representations that the device has of them, int32; None where it has none.
    """

    packed: torch.Tensor
    lengths: Sequence[int]
    targets: torch.Tensor | None = None
    ids: Sequence[int] | None = None
    held: torch.Tensor | None = None

    @property
    def keepable(self) -> bool:
        """Whether the server may keep what it sees of these rows."""
        return self.ids is not None

    @property
    def answered(self) -> list[int]:
        """Tokens of each row of which a gradient comes up."""
        if self.targets is None:
            return list(self.lengths)
        return [int(own.sum()) for own in torch.split(self.targets, list(self.lengths))]

    def down(self, z: torch.Tensor) -> torch.Tensor:
        """Return the part of a packed representation that the client is sent."""
        return z if self.targets is None else z[self.targets.to(z.device)]

    def up(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the packed gradient of which a client has sent the part that is not 0."""
        if self.targets is None:
            return gradient
        whole = gradient.new_zeros(len(self.targets), gradient.shape[1])
        whole[self.targets.to(gradient.device)] = gradient
        return whole


@dataclass(frozen=True)
class Row:
    """A sample at the cut.

    Attributes
    ----------
    packed
        Shape (tokens, width), fp32.
    targets
        Which tokens are learnt, shape (tokens,); None where all go down.
    """

    packed: torch.Tensor
    targets: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        return self.packed.nbytes + (0 if self.targets is None else self.targets.nbytes)

    def clone(self) -> Row:
        """Return it in memory of its own."""
        return Row(self.packed.clone(), None if self.targets is None else self.targets.clone())


@dataclass
class SentActivation:
    """A batch as a client sent it.

    Attributes
    ----------
    rows
        The rows; None for one that is named only.
    ids
        Their identifiers; None where the client names none.
    held
        See ``Activation``.
    """

    rows: list[Row | None]
    ids: list[int] | None
    held: torch.Tensor | None = None

    @property
    def missing(self) -> list[int]:
        """Identifiers of the rows that are not there, each once."""
        named = zip(self.ids or (), self.rows, strict=False)
        return list(dict.fromkeys(identifier for identifier, row in named if row is None))

    def fill(self, found: Mapping[int, Row | None]) -> None:
        """Put rows where they are missing."""
        for place, identifier in enumerate(self.ids or ()):
            if self.rows[place] is None:
                self.rows[place] = found[identifier]

    def whole(self) -> Activation:
        """Return the batch; all of its rows are there."""
        rows = [row for row in self.rows if row is not None]
        targets = None
        if any(row.targets is not None for row in rows):
            targets = torch.cat([_all_targets(row) for row in rows])
        packed = torch.cat([row.packed for row in rows])
        lengths = [len(row.packed) for row in rows]
        return Activation(packed, lengths, targets, self.ids, self.held)


def _all_targets(row: Row) -> torch.Tensor:
    return torch.ones(len(row.packed), dtype=torch.bool) if row.targets is None else row.targets


def read_activation(
    frame: Frame, codec: Codec, *, width: int, max_rows: int, max_length: int
) -> SentActivation:
    """Read the activation that a reply carries.

    Raises
    ------
    ProtocolError
        When rows, identifiers, lengths, width, dtype or values are not as agreed.
    """
    lengths = frame.tensors.get("lengths")
    if lengths is None or lengths.dtype != torch.int32 or lengths.dim() != 1:
        raise ProtocolError("an activation needs its lengths as an int32 vector")
    ids, fresh = _read_identifiers(frame, len(lengths))
    if not 1 <= len(fresh) <= max_rows:
        raise ProtocolError(f"an activation of {len(fresh)} rows exceeds the batch of {max_rows}")
    sizes = lengths.tolist()
    if sizes and (min(sizes) < 1 or max(sizes) > max_length):
        raise ProtocolError(
            f"rows of {min(sizes)} to {max(sizes)} tokens; task.max_length allows 1 to {max_length}"
        )
    sent: Iterator[Row] = iter(())
    if sizes:
        packed = unpack(frame.tensors, "activation", codec, (sum(sizes), width))
        sent = map(Row, torch.split(packed, sizes), _read_targets(frame, sizes))
    rows = [next(sent) if new else None for new in fresh]
    return SentActivation(rows, ids, _read_held(frame, ids))


def _read_held(frame: Frame, ids: list[int] | None) -> torch.Tensor | None:
    """Return what a client has of the rows' representations, where it tells it."""
    held = frame.tensors.get("held")
    if held is None:
        return None
    if ids is None or held.dtype != torch.int32 or held.shape != (len(ids),):
        raise ProtocolError("what it has of rows is told by an int32 for each identifier")
    return held


def _read_targets(frame: Frame, sizes: Sequence[int]) -> Sequence[torch.Tensor | None]:
    """Return which tokens of each row that is sent are learnt, where the client tells it."""
    packed, tokens = frame.tensors.get("targets"), sum(sizes)
    if packed is None:
        return [None] * len(sizes)
    if packed.dtype != torch.uint8 or packed.shape != (math.ceil(tokens / 8),):
        raise ProtocolError(f"which of {tokens} tokens are learnt is told by a bit for each")
    bits = torch.from_numpy(np.unpackbits(packed.numpy(), count=tokens)).bool()
    rows = torch.split(bits, list(sizes))
    if not all(bool(row.any()) for row in rows):
        raise ProtocolError("a row of which no token is learnt has no place in a batch")
    return rows


def _read_identifiers(frame: Frame, sent: int) -> tuple[list[int] | None, list[bool]]:
    """Return the identifiers of a batch's rows, if it has any, and which of them are sent."""
    ids, fresh = frame.tensors.get("ids"), frame.tensors.get("fresh")
    if ids is None and fresh is None:
        return None, [True] * sent
    if ids is None or ids.dtype != torch.int64 or ids.dim() != 1:
        raise ProtocolError("rows that are named need their identifiers as an int64 vector")
    if fresh is None or fresh.dtype != torch.uint8 or fresh.shape != ids.shape:
        raise ProtocolError("which rows are new is told by a uint8 for each identifier")
    new = fresh.tolist()
    if not set(new) <= {0, 1} or sum(new) != sent:
        raise ProtocolError(f"{sent} rows are sent where {sum(new)} are said to be new")
    return ids.tolist(), [bool(one) for one in new]


def read_gradient(
    frame: Frame, codec: Codec, shape: tuple[int, int], *, some: bool = False
) -> torch.Tensor:
    """Read the gradient at the cut, in the shape of the representation that was sent.

    Parameters
    ----------
    frame, codec, shape
        A reply, how it is written, and the shape.
    some
        Whether tokens are left out (``link.keep``), whose gradient is then 0.

    Raises
    ------
    ProtocolError
        When it is not of that shape, or does not say which tokens are left out.
    """
    if not some:
        return unpack(frame.tensors, "gradient", codec, shape)
    packed = frame.tensors.get("kept")
    if packed is None or packed.dtype != torch.uint8 or packed.shape != (math.ceil(shape[0] / 8),):
        raise ProtocolError(f"which of {shape[0]} gradients are sent is told by a bit for each")
    kept = torch.from_numpy(np.unpackbits(packed.numpy(), count=shape[0])).bool()
    whole = torch.zeros(shape)
    whole[kept] = unpack(frame.tensors, "gradient", codec, (int(kept.sum()), shape[1]))
    return whole


def limit_rows(gradient: torch.Tensor, lengths: Sequence[int] | None, limit: float) -> torch.Tensor:
    """Scale each row's gradient down to a norm, as ``robust.row_clip`` announces.

    Parameters
    ----------
    gradient
        Shape (rows, width), or packed (tokens, width).
    lengths
        Tokens of each row, where they are packed; None where a row is one vector.
    limit
        Largest norm of a row, over all its tokens.
    """
    # in double precision, as the square of a large fp32 number overflows
    squares = gradient.double().square().sum(1)
    if lengths is not None:
        sizes = torch.tensor(lengths)
        row = torch.arange(len(lengths)).repeat_interleave(sizes)
        squares = squares.new_zeros(len(lengths)).index_add(0, row, squares)[row]
    factor = (limit / squares.sqrt().clamp_min(1e-30)).clamp(max=1.0)
    return (gradient * factor[:, None]).to(gradient.dtype)


def read_number(
    frame: Frame, name: str, *, low: float = 0.0, high: float = sys.float_info.max
) -> float:
    """Read a finite number in a range from a reply's fields."""
    return check_number(name, frame.fields.get(name), low=low, high=high)


def check_number(
    name: str, value: object, *, low: float = 0.0, high: float = sys.float_info.max
) -> float:
    """Return a finite number in a range; raises ``ProtocolError`` for anything else."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        raise ProtocolError(
            f"{name} is {str(value)[:40]!r}; expected a number from {low:g} to {high:g}"
        )
    return float(value)


def check_weights(weights: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights of a head that none has, and that would make every client's losses overflow.

    Raises
    ------
    ProtocolError
        When one is too large.
    """
    for name, tensor in weights.items():
        if tensor.numel() and not float(tensor.abs().max()) <= MOST_WEIGHT:
            raise ProtocolError(f"{name} of its head holds weights beyond {MOST_WEIGHT:g}")


def read_named(
    frame: Frame,
    prefix: str,
    shapes: Mapping[str, torch.Size] | None,
    codec: Codec | None = None,
) -> dict[str, torch.Tensor]:
    """Read the tensors whose name starts with ``prefix``, without it.

    Parameters
    ----------
    frame
        A reply.
    prefix
        Part of the name to strip.
    shapes
        What must be there; None accepts any names and shapes.
    codec
        How they are written, where names and shapes are known; None: in fp32, each by its name.
    """
    tensors = frame.tensors
    if codec is not None and shapes is not None:
        known = {prefix + name: shape for name, shape in shapes.items()}
        tensors = unpack_ends(tensors, known, codec)
    found = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
    if shapes is not None and {n: t.shape for n, t in found.items()} != dict(shapes):
        raise ProtocolError(f"{prefix}* tensors do not have the agreed names and shapes")
    for name, tensor in found.items():
        if tensor.dtype != torch.float32 or not torch.isfinite(tensor).all():
            raise ProtocolError(f"{prefix}{name} must be finite and of type float32")
    return found
