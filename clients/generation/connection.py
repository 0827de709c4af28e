"""A device's way to one of several servers, found again where it breaks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec

from clients.owner import Door
from fedlora.config import LinkConfig
from fedlora.errors import ClientLost, FedloraError, ProtocolError, printable
from fedlora.generation.admission import agreed
from fedlora.generation.bounds import GenerationRefused
from fedlora.geometry import Geometry
from fedlora.link import PROTOCOL, Frame, messages as m
from fedlora.link.stream import CHALLENGE_BYTES, Backoff, fingerprint, prove
from fedlora.link.stream.client.asking import AskingStream

log = logging.getLogger("fedlora.generation")


@dataclass(frozen=True)
class Credentials:
    """By which a device knows a server, and a server the device.

    Attributes
    ----------
    authority_pem
        The authority of the server's certificate.
    key
        The device's node key.
    """

    authority_pem: bytes
    key: ec.EllipticCurvePrivateKey = field(repr=False)


class ServerConnection:
    """Carries requests to whichever server answers.

    Parameters
    ----------
    addresses
        ``host:port`` of each server, the first one first.
    credentials
        None for plain text on loopback, where the device is the client that it says.
    door
        The owner's.
    link, geometry
        Of the run, which the server's must be like.
    claimed
        Client number of this device; empty where it knows none.
    adapter
        Version of the adapter that the device's head is for; empty for any.
    give_up_s
        How long servers are dialled again once there was one.

    Attributes
    ----------
    client
        What the server calls this device.
    breaks
        How often the way was lost.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        credentials: Credentials | None,
        door: Door,
        link: LinkConfig,
        geometry: Geometry,
        *,
        claimed: str = "",
        adapter: str = "",
        give_up_s: float = 60.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._addresses, self._credentials, self._door = tuple(addresses), credentials, door
        self._agreed = {name: value for name, (value, _) in agreed(link, geometry).items()}
        self._max_frame_bytes = link.max_frame_mib << 20
        self._claimed, self._adapter = claimed, adapter
        self._give_up_s, self._sleep = give_up_s, sleep
        self._stream: AskingStream | None = None
        self.client = ""
        self.breaks = 0

    def connect(self) -> None:
        """Find a server that takes this device in, asking each once.

        Raises
        ------
        FedloraError
            When none does; it says why of each.
        """
        reasons = []
        for address in self._addresses:
            try:
                self._stream = self._dial(address)
            except FedloraError as error:
                reasons.append(str(error))
            else:
                for reason in reasons:
                    log.warning("%s", reason)
                return
        raise ClientLost("; ".join(reasons))

    def ask(self, request: Frame) -> Frame:
        """Send a request and return the answer.

        Raises
        ------
        GenerationRefused
            ``gone``, when the session went with the stream: another server, or the same again, is
            there now and has to be told all tokens.
        FedloraError
            When no server answered for ``give_up_s``.
        """
        while True:
            fresh = self._stream is None
            if self._stream is None:
                self._again()
            assert self._stream is not None
            if fresh and request.kind != m.GEN_OPEN:
                raise GenerationRefused("gone", "the session went with the server")
            try:
                return self._stream.ask(request)
            except ClientLost as error:
                self.breaks += 1
                log.warning("lost the server, dialling again: %s", error)
                self.close()

    def close(self) -> None:
        """End the stream; the server forgets its sessions."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _again(self) -> None:
        """Dial all servers until one answers or time is up."""
        backoff = Backoff(self._give_up_s, longest_s=2.0)
        while True:
            try:
                self.connect()
            except FedloraError as error:
                pause_s = backoff.next_s()
                if pause_s is None:
                    raise ClientLost(f"{error}; given up after {self._give_up_s:g} s") from None
                self._sleep(pause_s)
            else:
                return

    def _dial(self, address: str) -> AskingStream:
        credentials = self._credentials
        authority = credentials.authority_pem if credentials else None
        stream = AskingStream(address, authority, self._max_frame_bytes)
        try:
            self._greet(stream)
        except BaseException:
            stream.close()
            raise
        return stream

    def _greet(self, stream: AskingStream) -> None:
        host = stream.address.rpartition(":")[0]
        challenge, protocol = _challenge(stream.first(), stream.address)
        if protocol != PROTOCOL:
            raise ProtocolError(
                f"{stream.address} speaks protocol {protocol!r:.20}, this device {PROTOCOL}; "
                "install the same fedlora release on both sides"
            )
        shown = {"key": "", "proof": "", "host": host, **self._agreed}
        if self._credentials is not None:
            key = self._credentials.key
            shown |= {"key": fingerprint(key.public_key()), "proof": prove(key, host, challenge)}
        public = {name: self._door.public(value) for name, value in shown.items()}
        claimed = "" if self._credentials else self._claimed
        answer = stream.ask(self._door.message(m.GEN_HELLO, claimed, 0, public))
        if answer.kind == m.GEN_REFUSED:
            reason = printable(str(answer.fields.get("reason", "")), 400)
            raise ProtocolError(f"{stream.address} refuses this device: {reason}")
        client, adapter = (answer.fields.get(name) for name in ("client", "adapter"))
        if answer.kind != m.GEN_WELCOME or not (isinstance(client, str) and client):
            raise ProtocolError(f"{stream.address} answered a hello with {answer.kind!r:.40}")
        client = printable(client, 40)
        named = self.client or self._claimed
        if named and client != named:
            raise ProtocolError(
                f"{stream.address} calls this device client {client}, and it is client {named}; "
                f"name its own node key, or bind that as node{named}.pub there"
            )
        if self._adapter not in ("", adapter):
            raise ProtocolError(
                f"{stream.address} has adapter {printable(adapter, 12)}, and this package is for "
                f"{self._adapter[:12]}; make it anew with fedlora slice RUN, or dial a server of "
                "its run"
            )
        self.client = client


def _challenge(frame: Frame, address: str) -> tuple[bytes, object]:
    challenge = frame.fields.get("challenge")
    try:
        drawn = bytes.fromhex(challenge) if isinstance(challenge, str) else b""
    except ValueError:
        drawn = b""
    if frame.kind != m.GEN_CHALLENGE or len(drawn) != CHALLENGE_BYTES:
        raise ProtocolError(f"{address} began with {frame.kind!r:.40}; name a fedlora serve")
    return drawn, frame.fields.get("protocol")
