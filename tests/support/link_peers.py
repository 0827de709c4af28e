"""Edges for the tests of the tensor stream: honest ones, also as a process, and a hostile one."""

from __future__ import annotations

import json
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from fedlora.link import Frame, encode_frame, messages as m
from fedlora.link.frame import MAX_HEADER_BYTES
from fedlora.link.stream import METHOD, SERVICE, TOKEN_KEY
from fedlora.link.stream.client.client import StreamClient
from fedlora.link.stream.server.link import StreamLink
from fedlora.link.stream.tls import open_channel
from support.patience import patient

LIMIT = 1 << 20  # largest frame of the test servers, in bytes


def raw(
    header: bytes, payload: bytes = b"", magic: bytes = b"FDLR", version: int = 1, reserved: int = 0
) -> bytes:
    return struct.pack("<4sHHI", magic, version, reserved, len(header)) + header + payload


def header(**changes: object) -> bytes:
    fields: dict[str, object] = {"kind": "step", "client": "a", "seq": 1, "fields": {}}
    return json.dumps(fields | changes).encode()


BAD_HEADER = {
    "empty": b"",
    "prefix cut short": raw(header())[:11],
    "bad magic": raw(header(), magic=b"FDLS"),
    "another version": raw(header(), version=2),
    "reserved bits": raw(header(), reserved=1),
    "header length beyond the frame": struct.pack("<4sHHI", b"FDLR", 1, 0, 1 << 31) + header(),
    "header beyond its limit": raw(header().ljust(MAX_HEADER_BYTES + 1)),
    "no header": raw(b""),
    "not UTF-8": raw(header(kind="x").replace(b"x", b"\xff")),
    "not JSON": raw(b"{"),
    "a list": raw(b"[]"),
    "null": raw(b"null"),
    "deep nesting": raw(b"[" * 100_000),
    "missing key": raw(b'{"kind":"x","client":"a","seq":1}'),
    "extra key": raw(header(more=1)),
    "seq is a bool": raw(header(seq=True)),
    "seq is negative": raw(header(seq=-1)),
    "seq is a float": raw(header(seq=1.0)),
    "seq is a string": raw(header(seq="1")),
    "client is null": raw(header(client=None)),
    "fields is a list": raw(header(fields=[])),
    "NaN": raw(header(fields={"a": float("nan")})),
    "minus infinity": raw(header(fields={"a": float("-inf")})),
    "float overflow": raw(header().replace(b"{}", b'{"a":1e999}')),
    "5000 digits": raw(header().replace(b"{}", b'{"a":' + b"9" * 5000 + b"}")),
}
BAD_PAYLOAD = {
    "pickle": b"\x80\x04K\x01.",
    "payload length beyond the frame": struct.pack("<Q", 1 << 60),
    "payload header not JSON": struct.pack("<Q", 2) + b"{]",
    "payload shorter than announced": struct.pack("<Q", 64)
    + b'{"z":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'.ljust(64)
    + bytes(15),
    "payload shape against its size": struct.pack("<Q", 64)
    + b'{"z":{"dtype":"F32","shape":[5],"data_offsets":[0,16]}}'.ljust(64)
    + bytes(16),
    "unknown dtype": struct.pack("<Q", 64)
    + b'{"z":{"dtype":"F99","shape":[4],"data_offsets":[0,16]}}'.ljust(64)
    + bytes(16),
}
MALFORMED = BAD_HEADER | {name: raw(header(), tail) for name, tail in BAD_PAYLOAD.items()}


def hello(client: str, token: str) -> Frame:
    return Frame(m.HELLO, client, fields={"token": token})


def echo(frame: Frame) -> Frame:
    """Answer a step with its own tensors, anything else with its fields."""
    kind = {m.STEP: m.GRADIENT, m.END: m.RESULT}.get(frame.kind, m.READY)
    return Frame(kind, frame.client, frame.seq, frame.fields, frame.tensors)


def ask(link: StreamLink, frame: Frame, timeout_s: float = 10.0) -> Frame:
    link.send(frame)
    return link.receive(timeout_s)


class HostilePeer:
    """Opens streams on one channel and sends whatever bytes it is given."""

    def __init__(self, port: int, certificate_pem: bytes | None) -> None:
        self.channel = open_channel(f"localhost:{port}", certificate_pem, [])
        self.call: Any = None

    def open(self, token: str, key: str = TOKEN_KEY, **options: Any) -> None:
        self.outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.call = self.channel.stream_stream(f"/{SERVICE}/{METHOD}")(
            iter(self.outgoing.get, None), metadata=((key, token),), timeout=patient(20), **options
        )

    def send(self, data: bytes) -> None:
        self.outgoing.put(data)

    def greet(self, client: str, token: str) -> None:
        self.send(encode_frame(hello(client, token)))

    def read(self) -> bytes:
        return bytes(next(self.call))

    def ending(self) -> tuple[grpc.StatusCode, str]:
        """Wait for the server to end the stream; return how it did."""
        try:
            for _ in self.call:
                pass
        except grpc.RpcError:
            pass
        self.outgoing.put(None)
        return self.call.code(), self.call.details()

    def close(self) -> None:
        if self.call is not None:
            self.outgoing.put(None)
            self.call.cancel()
        self.channel.close()


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def start_process(port: int, certificate: Path, token: str, client: str) -> subprocess.Popen[bytes]:
    """Start an honest client in a process of its own."""
    address = f"localhost:{port}"
    command = [sys.executable, "-m", "support.link_peers", address, str(certificate), token, client]
    return subprocess.Popen(command, cwd=Path(__file__).parents[1])


def main() -> None:
    address, certificate, token, client = sys.argv[1:]
    stream = StreamClient(address, Path(certificate).read_bytes(), max_frame_bytes=LIMIT)
    stream.serve({client: echo}, [hello(client, token)])


if __name__ == "__main__":
    main()
