"""The one wire format: a versioned header followed by a safetensors payload.

Layout, little-endian: magic ``FDLR``, version (uint16), reserved zero (uint16), header length
(uint32), the header as UTF-8 JSON, and the tensors as safetensors. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import safetensors
import safetensors.torch
import torch

from fedlora.errors import ProtocolError

MAGIC = b"FDLR"
VERSION = 1
MAX_HEADER_BYTES = 1 << 20
_PREFIX = struct.Struct("<4sHHI")


@dataclass(frozen=True)
class Frame:
    """One message between the engine and one client.

    Attributes
    ----------
    kind
        Name of the message; see ``fedlora.link.messages``.
    client
        Identifier of the client that it is for or from.
    seq
        Number of the request in its session; a reply repeats it.
    fields
        Small JSON values.
    tensors
        Named tensors.
    """

    kind: str
    client: str = ""
    seq: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def bits(self, prefix: str = "") -> int:
        """Return the size of the tensors whose name starts with ``prefix``, in bits."""
        return sum(8 * t.nbytes for name, t in self.tensors.items() if name.startswith(prefix))


def encode_frame(frame: Frame) -> bytes:
    """Serialise a frame."""
    header = json.dumps(
        {"kind": frame.kind, "client": frame.client, "seq": frame.seq, "fields": frame.fields},
        allow_nan=False,
        separators=(",", ":"),
    ).encode()
    payload = b""
    if frame.tensors:
        payload = safetensors.torch.save({k: t.contiguous() for k, t in frame.tensors.items()})
    return b"".join((_PREFIX.pack(MAGIC, VERSION, 0, len(header)), header, payload))


def decode_frame(data: bytes, max_bytes: int) -> Frame:
    """Parse and check a frame; tensors are checked further by whoever knows their shapes.

    Parameters
    ----------
    data
        What came over the wire.
    max_bytes
        Largest size that is accepted.

    Raises
    ------
    ProtocolError
        When the size, the prefix, the header or the payload is not as specified.
    """
    frame, start = _split(data, max_bytes)
    if start == len(data):
        return frame
    try:
        views = safetensors.torch.load(data[start:])
    except (safetensors.SafetensorError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ProtocolError(f"frame payload is not valid safetensors ({error})") from None
    # The views lie at any address, and the bits of a matrix product depend on alignment; they come
    # in another order every time, and air time depends on what goes first.
    return replace(frame, tensors={name: views[name].clone() for name in sorted(views)})


def peek_frame(data: bytes, max_bytes: int) -> Frame:
    """Parse a frame without its tensors, as a router needs it; see ``decode_frame``."""
    return _split(data, max_bytes)[0]


def _split(data: bytes, max_bytes: int) -> tuple[Frame, int]:
    if len(data) > max_bytes:
        raise ProtocolError(
            f"frame of {len(data)} bytes exceeds the limit of {max_bytes}; raise link.max_frame_mib"
        )
    if len(data) < _PREFIX.size:
        raise ProtocolError(f"frame of {len(data)} bytes is shorter than its prefix")
    magic, version, reserved, header_bytes = _PREFIX.unpack_from(data)
    if magic != MAGIC or reserved != 0:
        raise ProtocolError("frame does not start with the fedlora prefix")
    if version != VERSION:
        raise ProtocolError(
            f"frame has wire version {version}, this side speaks {VERSION}; install one release"
        )
    start = _PREFIX.size + header_bytes
    if header_bytes > MAX_HEADER_BYTES or start > len(data):
        raise ProtocolError(f"frame announces a header of {header_bytes} bytes")
    header = _parse_header(data[_PREFIX.size : start])
    return Frame(header["kind"], header["client"], header["seq"], header["fields"]), start


def _parse_header(raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(
            raw.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite
        )
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ProtocolError(f"frame header is not valid JSON ({error})") from None
    expected: dict[str, type] = {"kind": str, "client": str, "seq": int, "fields": dict}
    if not isinstance(header, dict) or set(header) != set(expected):
        raise ProtocolError(f"frame header must hold exactly {', '.join(expected)}")
    for name, kind in expected.items():
        if not isinstance(header[name], kind) or isinstance(header[name], bool):
            raise ProtocolError(f"frame header {name} must be of type {kind.__name__}")
    if header["seq"] < 0:
        raise ProtocolError(f"frame header seq is {header['seq']}; it counts from 0")
    return header


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not allowed")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is beyond the range of floating point")
    return value
