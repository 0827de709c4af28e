"""The port on which devices ask for generation: one stream for each, over TLS.

A stream is one device's for as long as it lives, and so are the sessions that it opens: where it
breaks, they are closed at once, and the device sends its tokens again.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc

from fedlora.errors import FedloraError, ProtocolError, printable
from fedlora.generation.admission import Admission
from fedlora.generation.server import GenerationServer
from fedlora.generation.usage import Usage
from fedlora.link import PROTOCOL, Frame, decode_frame, encode_frame, messages as m
from fedlora.link.stream import (
    CHALLENGE_BYTES,
    GENERATION_METHOD,
    GENERATION_SERVICE,
    MAX_HELLO_BYTES,
    channel_options,
    check_listens,
    keep_freed_memory,
    tls,
)
from fedlora.link.stream.server.refusals import Refusals

log = logging.getLogger("fedlora.generation")

MOST_OF_ONE: Final = 8
"""Streams of one client at one time; one on which nothing was asked for ``IDLE_S`` makes place."""
IDLE_S: Final = 30.0
MOST_STRANGERS: Final = 64
"""Streams at one time on which nobody was admitted yet; the oldest makes place."""


class GenerationListener:
    """Accepts devices, and answers what they ask one after the other.

    Parameters
    ----------
    server
        Answers requests.
    admission
        Decides which client a device is.
    usage
        Counts what passes.
    host, port
        Address to bind; port 0 takes any free one.
    identity
        Certificate and key; None means plain text, on loopback only.
    max_frame_bytes
        Largest frame that is sent or accepted.
    most_streams
        Devices at one time.
    hello_timeout_s
        A stream is ended when no client was admitted on it within this time.
    keepalive_s, keepalive_timeout_s
        A peer that is silent this long is pinged, and given up when it does not answer in time.

    Attributes
    ----------
    port
        That is listened on.

    Raises
    ------
    FedloraError
        When the address cannot be bound, or plain text is asked for beyond loopback.
    """

    def __init__(
        self,
        server: GenerationServer,
        admission: Admission,
        usage: Usage,
        host: str,
        port: int,
        *,
        identity: tls.TlsIdentity | None,
        max_frame_bytes: int,
        most_streams: int = 256,
        hello_timeout_s: float = 10.0,
        keepalive_s: float = 20.0,
        keepalive_timeout_s: float = 10.0,
    ) -> None:
        if identity is None:
            tls.require_loopback(host)
        check_listens(
            host.strip("[]"), port, "--port", "--host"
        )  # gRPC says it in lines of its own
        keep_freed_memory()
        self._server, self._admission, self._usage = server, admission, usage
        self._max_frame_bytes, self._hello_timeout_s = max_frame_bytes, hello_timeout_s
        self._lock = threading.Lock()
        self._streams: dict[str, list[_Stream]] = {}
        self._strangers: list[_Stream] = []
        self._admitted = 0
        self._refusals = Refusals(log)
        options = [
            *channel_options(max_frame_bytes, keepalive_s, keepalive_timeout_s),
            ("grpc.so_reuseport", 0),  # or a port that is taken would be shared in silence
            ("grpc.max_connection_idle_ms", 30_000),
            ("grpc.server_handshake_timeout_ms", round(1000 * hello_timeout_s)),
            ("grpc.http2.min_ping_interval_without_data_ms", round(500 * keepalive_s)),
        ]
        self._grpc = grpc.server(
            ThreadPoolExecutor(most_streams, "fedlora-generation"),
            options=options,
            maximum_concurrent_rpcs=most_streams,
        )
        handler = grpc.stream_stream_rpc_method_handler(self._serve)
        self._grpc.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    GENERATION_SERVICE, {GENERATION_METHOD: handler}
                ),
            )
        )
        self.port = tls.bind(self._grpc, host, port, identity, "--port", "--host")
        self._grpc.start()

    def stop(self, grace_s: float = 1.0) -> None:
        """End every stream, giving answers that are on their way so many seconds."""
        self._grpc.stop(grace_s).wait()
        self._refusals.flush()

    def __enter__(self) -> GenerationListener:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _serve(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        """Run one stream from its challenge to its end."""
        stream = _Stream(self._server, self._usage, context, lambda: self._admitted == 1)
        self._note_stranger(stream)
        context.add_callback(lambda: self._forget(stream))
        late = threading.Timer(self._hello_timeout_s, context.cancel)
        late.daemon = True
        late.start()
        try:
            challenge = secrets.token_bytes(CHALLENGE_BYTES)
            told = {"challenge": challenge.hex(), "protocol": PROTOCOL}
            yield encode_frame(Frame(m.GEN_CHALLENGE, fields=told))
            data = next(requests, None)
            if data is None:
                return
            try:
                hello = decode_frame(data, MAX_HELLO_BYTES)
                self._take_in(stream, self._admission.admit(hello, challenge))
            except FedloraError as error:
                said = printable(error)
                self._say("%s is refused: %s", printable(context.peer()), said)
                fields = {"refusal": "wrong", "reason": said}
                yield encode_frame(Frame(m.GEN_REFUSED, fields=fields))
                return
            late.cancel()
            if not context.is_active():  # it ended meanwhile, and nobody will call
                self._forget(stream)
                return
            version = self._server.engine.version
            told = {"client": stream.client, "adapter": version, "protocol": PROTOCOL}
            yield encode_frame(Frame(m.GEN_WELCOME, stream.client, fields=told))
            for data in requests:
                yield stream.answer(data, self._max_frame_bytes)
        except grpc.RpcError:
            return  # the device is gone
        except ProtocolError as error:
            said = printable(error)
            self._say("client %s is dropped: %s", printable(stream.client), said)
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, said)
        finally:
            late.cancel()

    def _say(self, text: str, *values: object) -> None:
        with self._lock:
            self._refusals.write(text, *values)

    def _note_stranger(self, stream: _Stream) -> None:
        with self._lock:
            crowd = len(self._strangers) >= MOST_STRANGERS
            oldest = self._strangers.pop(0) if crowd else None
            self._strangers.append(stream)
        if oldest is not None:
            oldest.cancel()

    def _take_in(self, stream: _Stream, client: str) -> None:
        """Make a stream a client's; refuse it where the client uses as many as it may."""
        with self._lock:
            own, idle = self._streams.setdefault(client, []), None
            if len(own) >= MOST_OF_ONE:
                idle = min(own, key=lambda other: other.asked_s)
                if time.monotonic() - idle.asked_s < IDLE_S:
                    raise ProtocolError(
                        f"client {client} uses {len(own)} streams at once, of {MOST_OF_ONE}; "
                        "end one"
                    )
                own.remove(idle)
                self._admitted -= 1
                self._usage.left(client)
            if stream in self._strangers:
                self._strangers.remove(stream)
            stream.client = client
            own.append(stream)
            self._admitted += 1
            self._usage.joined(client)
        if idle is not None:
            idle.cancel()

    def _forget(self, stream: _Stream) -> None:
        """Close all that a stream has opened; gRPC calls it once when the stream is over."""
        with self._lock:
            if stream in self._strangers:
                self._strangers.remove(stream)
            own = self._streams.get(stream.client, [])
            if stream in own:
                own.remove(stream)
                self._admitted -= 1
                self._usage.left(stream.client)
        stream.close()


class _Stream:
    """One device's stream and its sessions.

    ``asked_s`` is when something was last asked or answered on it. Where ``alone`` says that there
    is no other, requests are computed in its own thread.
    """

    def __init__(
        self, server: GenerationServer, usage: Usage, context: Any, alone: Callable[[], bool]
    ) -> None:
        self.client = ""
        self._server, self._usage, self._alone = server, usage, alone
        self.cancel = context.cancel
        self.asked_s = time.monotonic()
        self._lock = threading.Lock()
        self._sessions: set[str] = set()
        self._over = False

    def answer(self, data: bytes, most_bytes: int) -> bytes:
        """Return the answer to a request as it came.

        Raises
        ------
        ProtocolError
            When it is no frame, so that nothing that follows can be trusted either.
        """
        began_s = self.asked_s = time.monotonic()
        request = decode_frame(data, most_bytes)
        if request.client != self.client:
            raise ProtocolError(
                f"a request is of client {printable(request.client, 40)!r} on a stream of client "
                f"{self.client}"
            )
        answer = self._server.handle(request, here=self._alone())
        self._keep(answer, request)
        encoded = encode_frame(answer)
        self._usage.note(request, answer, (len(data), len(encoded)), began_s)
        self.asked_s = time.monotonic()
        return encoded

    def close(self) -> None:
        """Close its sessions, and any that a request under way is about to open."""
        with self._lock:
            self._over = True
            names, self._sessions = self._sessions, set()
        for name in names:
            self._server.sessions.close(name, self.client)
            self._usage.forget(name)

    def _keep(self, answer: Frame, request: Frame) -> None:
        if answer.kind == m.GEN_OPENED:
            name = answer.fields["session"]
            with self._lock:
                over = self._over
                if not over:
                    self._sessions.add(name)
            if over:
                self._server.sessions.close(name, self.client)
        elif answer.kind == m.GEN_CLOSED:
            name = request.fields["session"]
            with self._lock:
                self._sessions.discard(name)
            self._usage.forget(name)
