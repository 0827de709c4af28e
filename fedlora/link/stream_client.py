"""The edge's end of the tensor stream: answers the server's requests for one or many clients."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import grpc

from fedlora.errors import ClientLost, FedloraError, ProtocolError
from fedlora.link import tls
from fedlora.link.frame import Frame, decode_frame, encode_frame, peek_frame
from fedlora.link.heap import keep_freed_memory
from fedlora.link.local import Handler, edge_executor
from fedlora.link.messages import END, LEAVE, WELCOME
from fedlora.link.stream import (
    CLOSED,
    METHOD,
    REFUSED,
    SERVICE,
    TOKEN_KEY,
    channel_options,
    printable,
    reason_of,
)

log = logging.getLogger("fedlora.link")


class _Session:
    """One client on the stream; its requests are answered one at a time, in order."""

    def __init__(self, client: str, handler: Handler) -> None:
        self.client = client
        self.handler = handler
        self.over: Future[None] = Future()
        self.over.set_running_or_notify_cancel()  # nobody cancels it: detach does that
        self.requests: deque[bytes] = deque()
        self.begun = False
        self.busy = False


class _Stream:
    """One open stream; ``outgoing`` feeds the thread in which gRPC writes."""

    def __init__(self, channel: Any, token: str) -> None:
        self.channel = channel
        self.outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.call = channel.stream_stream(f"/{SERVICE}/{METHOD}")(
            iter(self.outgoing.get, None), metadata=((TOKEN_KEY, token),)
        )
        self.reader: threading.Thread | None = None


class StreamClient:
    """Answers the server's requests with the handlers of the clients that are attached.

    On a device: ``with StreamClient(...) as stream: stream.serve({name: edge.handle}, [hello])``.
    In a simulation an edge host calls ``attach`` for each client that it is given, and looks at
    the futures later. The stream is opened by the first client and again by the next one after it
    ended. All methods may be called from any thread.

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
    keepalive_s, keepalive_timeout_s
        A server that is silent this long is pinged, and given up when it does not answer in time.
    """

    def __init__(
        self,
        address: str,
        certificate_pem: bytes | None,
        *,
        max_frame_bytes: int,
        workers: int = 1,
        keepalive_s: float = 20.0,
        keepalive_timeout_s: float = 10.0,
    ) -> None:
        keep_freed_memory()
        self._address = address
        self._certificate_pem = certificate_pem
        self._max_frame_bytes = max_frame_bytes
        self._options: list[Any] = channel_options(
            max_frame_bytes, keepalive_s, keepalive_timeout_s
        )
        if tls.is_loopback(address.rpartition(":")[0]):
            self._options.append(("grpc.enable_http_proxy", 0))
        self._executor = edge_executor(workers)
        self._lock = threading.RLock()
        self._sessions: dict[str, _Session] = {}
        self._stream: _Stream | None = None
        self._closed = False

    def serve(self, clients: Mapping[str, Handler], hellos: Sequence[Frame]) -> None:
        """Attach clients, answer the server until it has ended each session, and close.

        Parameters
        ----------
        clients
            Handler of each client, by identifier.
        hellos
            A ``hello`` of each client, with its token.

        Raises
        ------
        ClientLost
            When the server refused or dropped a client, or the stream broke.
        FedloraError
            What a handler raised, after the server was told that the client leaves.
        """
        with self:
            sessions = [self.attach(h.client, clients[h.client], h) for h in hellos]
            errors = [session.exception() for session in sessions]
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
        session = _Session(client, handler)
        with self._lock:
            if self._closed:
                raise FedloraError(f"client {client} is attached to a stream that was closed")
            if client in self._sessions:
                raise FedloraError(f"client {client} is attached already; detach it first")
            if self._stream is None:
                self._stream = self._open(str(hello.fields.get("token", "")))
            self._sessions[client] = session
            self._stream.outgoing.put(encode_frame(hello))
        return session.over

    def detach(self, client: str) -> None:
        """Stop answering for a client; the server learns it when it next asks."""
        with self._lock:
            session = self._sessions.get(client)
        if session is not None:
            self._finish(session, ClientLost(f"client {client} was detached"))

    def close(self, timeout_s: float = 10.0) -> None:
        """Send what is queued, end the stream, and give up the sessions that are still open."""
        with self._lock:
            self._closed = True
            stream = self._stream
        if stream is not None and stream.reader is not None:
            stream.outgoing.put(None)
            stream.reader.join(timeout_s)
            stream.call.cancel()
            stream.reader.join(timeout_s)
        self._executor.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> StreamClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _open(self, token: str) -> _Stream:
        stream = _Stream(
            tls.open_channel(self._address, self._certificate_pem, self._options), token
        )
        stream.reader = threading.Thread(
            target=self._read, args=(stream,), name="fedlora-stream", daemon=True
        )
        stream.reader.start()
        return stream

    def _read(self, stream: _Stream) -> None:
        """Route the server's frames until the stream ends, then tell every session why."""
        reason = "the server ended the stream"
        try:
            for data in stream.call:
                self._route(data)
        except grpc.RpcError as error:
            reason = self._explain(error)
        except ProtocolError as error:
            reason = f"the server broke the protocol: {printable(error)}"
        with self._lock:
            if self._stream is stream:
                self._stream = None
            sessions = list(self._sessions.values())
        for session in sessions:
            self._finish(session, ClientLost(f"client {session.client} lost the server: {reason}"))
        stream.outgoing.put(None)
        stream.call.cancel()
        stream.channel.close()

    def _route(self, data: bytes) -> None:
        frame = peek_frame(data, self._max_frame_bytes)
        with self._lock:
            session = self._sessions.get(frame.client)
            if session is not None and not session.begun:
                session.begun = frame.kind in (WELCOME, REFUSED)
                if not session.begun:
                    return  # meant for an earlier session of this client
            if frame.kind in (REFUSED, CLOSED):
                if session is not None:
                    verb = "was refused" if frame.kind == REFUSED else "was dropped"
                    reason = f"client {session.client} {verb} by the server: {reason_of(frame)}"
                    self._finish(session, ClientLost(reason))
            elif session is None:
                self._put(_leave(frame.client, frame.seq, "the client is not here any more"))
            else:
                session.requests.append(data)
                if not session.busy:
                    session.busy = True
                    self._executor.submit(self._work, session)

    def _work(self, session: _Session) -> None:
        """Answer a session's requests until none is left."""
        while True:
            with self._lock:
                if not session.requests:
                    session.busy = False
                    return
                data = session.requests.popleft()
            self._answer(session, data)

    def _answer(self, session: _Session, data: bytes) -> None:
        error: BaseException | None = None
        request = peek_frame(data, self._max_frame_bytes)
        try:
            request = decode_frame(data, self._max_frame_bytes)
            reply = session.handler(request)
            data = encode_frame(reply)
            if len(data) > self._max_frame_bytes:
                raise FedloraError(
                    f"reply {reply.kind} has {len(data)} bytes and exceeds the frame limit of "
                    f"{self._max_frame_bytes}; raise link.max_frame_mib"
                )
            if reply.kind == LEAVE:
                error = FedloraError(f"client {session.client} left: {reason_of(reply)}")
        except FedloraError as refusal:
            error = refusal
            data = _leave(request.client, request.seq, str(refusal))
        except Exception as failure:
            log.exception("client %s failed to answer %s", session.client, request.kind)
            error = failure
            data = _leave(request.client, request.seq, "the client failed; its own log says why")
        with self._lock:
            if self._sessions.get(session.client) is not session:
                return  # dropped or detached meanwhile
            self._put(data)
            if error is not None or request.kind == END:
                self._finish(session, error)

    def _put(self, data: bytes) -> None:
        if self._stream is not None:
            self._stream.outgoing.put(data)

    def _finish(self, session: _Session, error: BaseException | None) -> None:
        with self._lock:
            if self._sessions.get(session.client) is not session:
                return
            del self._sessions[session.client]
        if error is None:
            session.over.set_result(None)
        else:
            session.over.set_exception(error)

    def _explain(self, error: grpc.RpcError) -> str:
        code, details = error.code(), printable(error.details())
        if "CERTIFICATE_VERIFY_FAILED" in details:
            return f"{self._address} does not hold the certificate of this run"
        if code == grpc.StatusCode.UNAVAILABLE:
            return (
                f"no connection to {self._address} ({details}); check link.public_host, link.port "
                "and that the server runs"
            )
        return details


def _leave(client: str, seq: int, reason: str) -> bytes:
    return encode_frame(Frame(LEAVE, client, seq, {"reason": reason}))
