"""Peers that compute nothing, to measure what the stream costs by itself."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from fedlora.link import Frame, messages as m
from fedlora.link.stream.client.client import StreamClient

_MAX_FRAME_BYTES = 1 << 28


def echo(session: Mapping[str, Any]) -> None:
    """Answer every request with the tensors it carries, until the server ends the session."""
    name = str(session["client"])

    def handle(frame: Frame) -> Frame:
        return Frame(frame.kind, name, frame.seq, {}, frame.tensors)

    stream = StreamClient(
        session["address"], session["certificate"], max_frame_bytes=_MAX_FRAME_BYTES
    )
    stream.serve({name: handle}, [Frame(m.HELLO, name, 0, {"token": session["token"]})])


def idle(sessions: Sequence[Mapping[str, Any]]) -> None:
    """Open a connection and a stream for each session, and leave them be until the input ends."""
    for place, session in enumerate(sessions):
        name = str(session["client"])
        stream = StreamClient(
            session["address"],
            session["certificate"],
            max_frame_bytes=_MAX_FRAME_BYTES,
            # gRPC lets channels of equal options share a connection; devices cannot.
            keepalive_s=20 + place / 1000,
        )
        hello = Frame(m.HELLO, name, 0, {"token": session["token"]})
        stream.attach(name, partial(_ready, name), hello)
    sys.stdin.read()


def _ready(name: str, frame: Frame) -> Frame:
    return Frame(m.READY, name, frame.seq)
