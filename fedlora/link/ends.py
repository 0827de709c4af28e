"""How heads and fronts that clients share travel: each tensor as it is, or all as one payload.

In fp32 every tensor has a name of its own in the frame, such as ``head_weight.project.bias``. By
any other codec the numbers of a part (``head_weight``, ``front_gradient``), in the order of its
names, are the rows of one payload of that name, the last one filled up with zeros: both sides know
names and shapes. Clients then compute with the weights that have arrived, and the server steps with
its own; gradients are rounded so that they are not biased (``link.end_gradient``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import torch

from fedlora.link.codec import Codec, Fp32Codec, pack, unpack

WIDTH = 256
"""Numbers of a row, which every ``link.group`` divides."""

Tensors = Mapping[str, torch.Tensor]


def pack_ends(tensors: Tensors, codec: Codec, key: bytes | None = None) -> dict[str, torch.Tensor]:
    """Return the tensors of a frame that carry ends.

    Parameters
    ----------
    tensors
        By the part's name, a point and their own, fp32.
    codec
        Writes them.
    key
        32 bytes where they must not be biased; each part draws from a key of its own.
    """
    if type(codec) is Fp32Codec:
        return dict(tensors)
    found: dict[str, torch.Tensor] = {}
    for part, own in _parts(tensors).items():
        numbers = torch.cat([tensors[name].detach().float().flatten() for name in own])
        filled = torch.nn.functional.pad(numbers, (0, -len(numbers) % WIDTH)).view(-1, WIDTH)
        drawn = None if key is None else hashlib.sha256(key + part.encode()).digest()
        found |= pack(part, filled, codec, drawn)
    return found


def unpack_ends(
    tensors: Tensors, shapes: Mapping[str, torch.Size], codec: Codec
) -> dict[str, torch.Tensor]:
    """Return a frame's tensors with the ends in it by the part's name, a point and their own.

    Parameters
    ----------
    tensors
        Of the frame.
    shapes
        What each part has where it is there.
    codec
        Reads them.

    Raises
    ------
    ProtocolError
        When a part is not as agreed. In fp32 nothing is looked at here.
    """
    if type(codec) is Fp32Codec:
        return dict(tensors)
    parts = _parts(shapes)
    there = {name.partition(".")[0] for name in tensors}
    found = {name: t for name, t in tensors.items() if name.partition(".")[0] not in parts}
    for part, own in parts.items():
        if part not in there:
            continue
        sizes = [shapes[name].numel() for name in own]
        numbers = unpack(tensors, part, codec, (ends_rows(sum(sizes)), WIDTH)).flatten()
        pieces = torch.split(numbers[: sum(sizes)], sizes)
        found |= {n: piece.view(shapes[n]) for n, piece in zip(own, pieces, strict=True)}
    return found


def ends_rows(numbers: int) -> int:
    """Return the rows of a payload of so many numbers."""
    return math.ceil(numbers / WIDTH)


def _parts(names: Mapping[str, object]) -> dict[str, list[str]]:
    """Return names by their part, in an order of their own."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        found.setdefault(name.partition(".")[0], []).append(name)
    return found
