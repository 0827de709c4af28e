"""One device in a folder of its own, its randomness given, with every byte that leaves it kept."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import inspect
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import clients.app
import clients.device
from fedlora.link import Frame, Words, encode_frame
from fedlora.link.stream.client.answer import answer
from fedlora.link.stream.client.session import ClientSession
from fedlora.privacy.ledger import Ledger

Row = Mapping[str, str]
Server = Callable[[Frame, Callable[[Frame], bytes | None]], None]
"""A hostile server: is given a hello and a way to ask, which returns what leaves."""

_MAX_FRAME_BYTES = 1 << 26


class Killed(BaseException):
    """The device's process dies at this moment."""


@dataclass(frozen=True)
class Sent:
    """Something that left.

    Attributes
    ----------
    asked
        What it answers: a request's kind, or a handler of Flower.
    data
        Its bytes.
    charges
        Number of the ledger's last entry when it left.
    """

    asked: str
    data: bytes
    charges: int


@dataclass
class World:
    """A device.

    Attributes
    ----------
    folder
        Holds its data, ledger and states.
    keys
        Its node configuration, without paths.
    sent
        All that has left it.
    """

    folder: Path
    keys: Mapping[str, Any]
    sent: list[Sent] = field(default_factory=list)

    def write(self, train: Sequence[Row], test: Sequence[Row]) -> None:
        """Write the device's files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, rows in (("train.csv", train), ("test.csv", test)):
            with (self.folder / name).open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]) if rows else ["text"])
                writer.writeheader()
                writer.writerows(rows)

    @property
    def ledger(self) -> Path:
        """Where the device keeps its budget."""
        return self.folder / "ledger"

    @property
    def node_config(self) -> dict[str, Any]:
        """The device's node configuration."""
        config = {
            "partition-id": 0,
            "data": str(self.folder / "train.csv"),
            "state": str(self.folder / "states"),
            "privacy-ledger": str(self.ledger),
            **self.keys,
        }
        if config.pop("test", None):
            config["test"] = str(self.folder / "test.csv")
        return config

    def charges(self) -> int:
        """Return how many entries the ledger has."""
        try:
            text = self.ledger.with_name("ledger.mark").read_text()
        except OSError:
            return 0
        return max((int(text[i : i + 20] or 0) for i in range(0, len(text), 32)), default=0)

    def spent(self) -> Ledger:
        """Open the ledger, to look at what has been booked."""
        return Ledger(self.ledger, "0")

    def flower(
        self, handler: str, record: Mapping[str, Any], seed: int, crash: int, server: Server
    ) -> None:
        """Let a handler of the ClientApp answer one message of Flower's.

        Parameters
        ----------
        handler
            ``hello``, ``session`` or ``collect``.
        record
            What the message holds.
        seed
            Of everything random on the device meanwhile.
        crash
            The process dies at this write to the disk; 0: it does not.
        server
            Answers on the tensor stream, if the device dials it.
        """
        message = SimpleNamespace(content={"fedlora": dict(record)})
        context = SimpleNamespace(node_config=self.node_config)
        with (
            _given_randomness(seed),
            _dies_at_write(crash),
            mock.patch.object(clients.app, "Message", _record_of),
            mock.patch.object(clients.device, "StreamClient", self._stream_to(server)),
            contextlib.suppress(Killed),
        ):
            told = getattr(clients.app, handler)(message, context)
            self._note(f"flower {handler}", repr(sorted(dict(told).items())).encode())

    def _note(self, asked: str, data: bytes) -> None:
        self.sent.append(Sent(asked, data, self.charges()))

    def _stream_to(self, server: Server) -> type:
        note = self._note

        class Stream:
            """In the place of ``StreamClient``: its sessions, without a socket."""

            def __init__(self, *_: Any, words: Words, **__: Any) -> None:
                self._words = words

            def probe(self, *_: Any) -> float:
                return 0.1

            def serve(
                self,
                handlers: Mapping[str, Callable[[Frame], Frame]],
                hellos: Sequence[Frame],
                **_: Any,
            ) -> None:
                (hello,) = hellos
                note("", encode_frame(hello))
                session = ClientSession(hello.client, handlers[hello.client], hello)

                def ask(request: Frame) -> bytes | None:
                    if session.last_words:
                        return None
                    given = answer(session, encode_frame(request), _MAX_FRAME_BYTES, self._words)
                    note(request.kind, given.data)
                    if given.last:
                        session.last_words = [given.error]
                    return given.data

                server(hello, ask)

        return Stream


def _record_of(content: Mapping[str, Any], *, reply_to: object) -> Any:
    """Stand for Flower's ``Message`` where a handler makes its reply."""
    del reply_to
    return content["fedlora"]


@contextlib.contextmanager
def _given_randomness(seed: int) -> Iterator[None]:
    """Let the operating system's generator give what follows from a seed.

    Labels are drawn from a stream of their own: how often depends on what comes of it, and would
    move the noise that is drawn later. What a module draws while it is imported is the system's: of
    two devices in this process the first alone imports it.
    """
    drawn: Counter[str] = Counter()
    system = os.urandom

    def random_bytes(size: int = 32) -> bytes:
        return system(size) if _imports() else stream("urandom", size)

    def stream(name: str, size: int) -> bytes:
        drawn[name] += 1
        key = f"{seed}/{name}/{drawn[name]}".encode()
        return hashlib.shake_256(key).digest(size)

    def below(limit: int) -> int:
        return int.from_bytes(stream("below", 32), "big") % limit

    def bits(count: int) -> int:
        return int.from_bytes(stream("bits", 32), "big") >> (256 - count)

    with (
        mock.patch.object(os, "urandom", random_bytes),
        mock.patch.object(secrets, "token_bytes", random_bytes),
        mock.patch.object(secrets, "randbelow", below),
        mock.patch.object(secrets, "randbits", bits),
    ):
        yield


def _imports() -> bool:
    """Tell whether a module is being imported here."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def _dies_at_write(number: int) -> Iterator[None]:
    """Kill the device when it syncs for so many times; its files stay as they are then."""
    fsync, done = os.fsync, 0

    def counted(descriptor: int) -> None:
        nonlocal done
        done += 1
        if done == number:
            raise Killed
        fsync(descriptor)

    with mock.patch.object(os, "fsync", counted):
        yield
