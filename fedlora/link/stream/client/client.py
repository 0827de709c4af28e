"""The edge's end of the tensor stream: opened, and opened again, for one or many clients."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import grpc

from fedlora.errors import ClientLost, FedloraError, ProtocolError, printable
from fedlora.link import Frame, Handler, Words, closed_words, encode_frame, peek_frame
from fedlora.link.stream import (
    CLOSED,
    PROBE,
    Backoff,
    channel_options,
    farewell,
    keep_freed_memory,
    tls,
)
from fedlora.link.stream.client.connection import ClientStream, explain, is_final
from fedlora.link.stream.client.probes import Probes
from fedlora.link.stream.client.sessions import ClientSessions

log = logging.getLogger("fedlora.link")

_ATTEMPT_S = 15.0  # within which a server that was dialled has to answer


class StreamClient:
    """Answers the server's requests with the handlers of the clients that are attached.

    On a device: ``with StreamClient(...) as stream: stream.serve({name: edge.handle}, [hello])``.
    In a simulation an edge host calls ``attach`` for each client that it is given, and looks at
    the futures later. The stream is opened by the first client and again by the next one after it
    ended. One that breaks is opened again, and every session goes on where it was: a request that
    was lost comes again, a reply that was lost is sent again, byte for byte as it was. All methods
    may be called from any thread.

    Parameters
    ----------
    address
        ``host:port`` of the server.
    certificate_pem
        The server's certificate, which is pinned; None means plain text, on loopback only.
    max_frame_bytes
        Largest frame that is sent or accepted.
    workers
        Threads that run handlers, each with one torch thread.
    give_up_s
        How long a server that cannot be reached is dialled again, each time with a quarter of a
        minute to answer; 0 takes the first break for the end.
    keepalive_s, keepalive_timeout_s
        A server that is silent this long is pinged, and given up when it does not answer in time.
    words
        Turns what a handler raises into what the server is told; by default its kind alone.

    Raises
    ------
    FedloraError
        When plain text is asked for beyond loopback.
    """

    def __init__(
        self,
        address: str,
        certificate_pem: bytes | None,
        *,
        max_frame_bytes: int,
        workers: int = 1,
        give_up_s: float = 60.0,
        keepalive_s: float = 20.0,
        keepalive_timeout_s: float = 10.0,
        words: Words = closed_words,
    ) -> None:
        if certificate_pem is None:
            tls.require_loopback(address.rpartition(":")[0])
        keep_freed_memory()
        self._address = address
        self._certificate_pem = certificate_pem
        self._max_frame_bytes = max_frame_bytes
        self._options: list[Any] = channel_options(
            max_frame_bytes, keepalive_s, keepalive_timeout_s
        )
        if tls.is_loopback(address.rpartition(":")[0]):
            self._options.append(("grpc.enable_http_proxy", 0))
        self._give_up_s = give_up_s
        self._lock = threading.RLock()
        self._sessions = ClientSessions(self._lock, self._put, max_frame_bytes, workers, words)
        self._stream: ClientStream | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._probes = Probes()

    def serve(
        self, clients: Mapping[str, Handler], hellos: Sequence[Frame], *, idle_s: float = math.inf
    ) -> None:
        """Attach clients, answer the server until it has ended each session, and close.

        No handler runs any more when it returns: one that is at work is waited for, as what it uses
        may be closed next.

        Parameters
        ----------
        clients
            Handler of each client, by identifier.
        hellos
            A ``hello`` of each client, with its token.
        idle_s
            How long the server may ask a client nothing.

        Raises
        ------
        ClientLost
            When the server refused or dropped a client, asked it nothing for too long, or the
            stream broke.
        FedloraError
            What a handler raised, after the server was told that the client leaves.
        """
        try:
            with self:
                sessions = [self.attach(h.client, clients[h.client], h) for h in hellos]
                errors = [
                    self._sessions.wait(hello.client, session, idle_s)
                    for hello, session in zip(hellos, sessions, strict=True)
                ]
        finally:
            self._sessions.stop(wait=True)
        for error in errors:
            if error is not None:
                raise error

    def attach(self, client: str, handler: Handler, hello: Frame) -> Future[None]:
        """Let a client say hello, and answer the server's requests to it from now on.

        Returns
        -------
        Future
            Done when the server has ended the session; otherwise it holds ``ClientLost`` (refused,
            dropped, detached, stream broken) or what the handler raised.

        Raises
        ------
        FedloraError
            When the client is attached already, or the stream client was closed.
        """
        with self._lock:
            if self._closing.is_set():
                raise FedloraError(f"client {client} is attached to a stream that was closed")
            session = self._sessions.begin(client, handler, hello)
            if self._stream is not None:
                self._stream.outgoing.put(encode_frame(hello))
            elif self._thread is None:
                self._thread = threading.Thread(
                    target=self._carry, name="fedlora-stream", daemon=True
                )
                self._thread.start()
        return session.over

    def detach(self, client: str) -> None:
        """Stop answering for a client; the server learns it when it next asks."""
        session = self._sessions.find(client)
        if session is not None:
            self._sessions.finish(session, ClientLost(f"client {client} was detached"))

    def probe(self, client: str, up: int, down: int, limit_s: float = 20.0) -> float:
        """Send bytes to the server and have others sent back; return the seconds that took.

        Parameters
        ----------
        client
            An attached client, whose session has begun.
        up, down
            Bytes of each direction.
        limit_s
            How long the answer may take, in seconds.

        Raises
        ------
        ClientLost
            When the stream broke or no answer came.
        """
        with self._probes.turn:
            with self._lock:
                session = self._sessions.find(client)
                if session is None or not session.live or self._stream is None:
                    raise ClientLost(f"client {client} has no stream to measure")
                data, answered = self._probes.begin(client, up, down)
                began = time.monotonic()
                self._put(data)
            try:
                return answered.result(limit_s) - began
            except TimeoutError:
                raise ClientLost(f"client {client} measures, and the server is silent") from None

    def close(self, timeout_s: float = 10.0) -> None:
        """Send what is queued, end the stream, and give up the sessions that are still open."""
        with self._lock:
            self._closing.set()
            stream, thread = self._stream, self._thread
            for session in self._sessions.all():
                self._put(encode_frame(farewell(CLOSED, session.client, "it was closed")))
        if stream is not None:
            stream.outgoing.put(None)
        if thread is not None:
            thread.join(timeout_s)
            if stream is not None:
                stream.call.cancel()
            thread.join(timeout_s)
        self._sessions.stop(wait=False)

    def __enter__(self) -> StreamClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _carry(self) -> None:
        """Keep a stream open for as long as there are sessions and the server can be reached."""
        backoff, retrying = Backoff(self._give_up_s), False
        while (stream := self._open()) is not None:
            watch = threading.Timer(_ATTEMPT_S, stream.give_up)
            watch.daemon = True
            watch.start()
            reason, final = self._read(stream)
            watch.cancel()
            stream.end()
            if stream.answered:
                retrying = False
                backoff.reset()
            with self._lock:
                self._probes.give_up(reason)
                self._stream = None
                sessions = self._sessions.all()
                for session in sessions:
                    session.live = False
            if not final and not self._closing.is_set() and sessions:
                pause_s = backoff.next_s()
                if pause_s is not None:
                    level = logging.DEBUG if retrying else logging.WARNING
                    log.log(level, "no stream to the server, dialling again: %s", reason)
                    retrying = True
                    if not self._closing.wait(pause_s):
                        continue
                elif self._give_up_s > 0:
                    reason += f"; given up after {self._give_up_s:g} s"
            for session in sessions:
                self._sessions.lose(session, "unreachable", f"lost the server: {reason}")
            retrying = False
            backoff.reset()

    def _open(self) -> ClientStream | None:
        """Open a stream and greet the server for every session; None when there is none."""
        with self._lock:
            sessions = self._sessions.all()
            if not sessions:
                self._thread = None
                return None
            opener = next((session for session in sessions if session.secret), sessions[0])
            channel = tls.open_channel(self._address, self._certificate_pem, self._options)
            self._stream = stream = ClientStream(channel, opener)
            for session in sessions:
                stream.outgoing.put(encode_frame(session.opening()))
            if self._closing.is_set():
                stream.outgoing.put(None)
            return stream

    def _read(self, stream: ClientStream) -> tuple[str, bool]:
        """Route the server's frames until the stream ends; return why, and whether for good."""
        try:
            for data in stream.call:
                self._route(stream, data)
        except grpc.RpcError as error:
            reason = explain(error, self._address)
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:  # the others may be welcome
                self._sessions.lose(stream.opener, "unreachable", f"lost the server: {reason}")
                return reason, False
            return reason, is_final(error)
        except ProtocolError as error:
            return f"the server broke the protocol: {printable(error)}", True
        return "the server ended the stream", True

    def _route(self, stream: ClientStream, data: bytes) -> None:
        arrived = time.monotonic()
        frame = peek_frame(data, self._max_frame_bytes)
        if frame.kind == PROBE:
            self._probes.answered(frame.seq, arrived)
        elif self._sessions.take(frame, data):
            stream.answered = True

    def _put(self, data: bytes) -> None:
        if self._stream is not None:
            self._stream.outgoing.put(data)
