"""The server of the tensor stream: one event loop for all clients, links for the engine."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio

from fedlora.errors import FedloraError, ProtocolError, printable
from fedlora.link.stream import (
    METHOD,
    RESUME_KEY,
    SERVICE,
    TOKEN_KEY,
    ResumeSecrets,
    TokenStore,
    channel_options,
    keep_freed_memory,
    tls,
)
from fedlora.link.stream.server.admitted import Admitted
from fedlora.link.stream.server.connection import ANEW, ServerStream
from fedlora.link.stream.server.link import StreamLink
from fedlora.link.stream.server.places import StreamPlaces
from fedlora.link.stream.server.refusals import Refusals
from fedlora.link.stream.server.terms import Admit, StreamTerms

log = logging.getLogger("fedlora.link")

STOPPED = "the server stopped"
CROWDED = "the server carries as many streams as it can; it is dialled again"
_STOP_S = 10.0  # beyond the grace
_REFUSED_AT_ONCE = 256  # calls that are being refused


class StreamServer:
    """Accepts clients on a gRPC bidirectional stream and offers a ``Link`` for each.

    One stream carries any number of clients. A stream is opened with an unused token; each client
    on it begins with ``hello``, whose field ``token`` is redeemed. ``admit`` then accepts or
    refuses the client, which is told by ``welcome`` or ``refused``. A client whose stream broke may
    come back on another with the resume secret that it was given last. Everything here runs on one
    background thread and its event loop, ``admit`` on another, one call at a time; frames are
    decoded in the thread that calls ``StreamLink.receive``.

    Parameters
    ----------
    host, port
        Address to bind; port 0 takes any free one.
    identity
        Certificate and key; None means plain text, on loopback only.
    max_frame_bytes
        Largest frame that is sent or accepted.
    admit
        Called with a hello and the grantee of its token; returns the fields of ``welcome``, or
        raises ``FedloraError``, whose sentence the client gets.
    tokens
        Redeems tokens; the same store grants them.
    queue_frames
        Requests that a client may leave unanswered before it is given up.
    hello_timeout_s
        A stream is ended when no client was admitted on it within this time.
    give_up_s
        How long a client whose stream broke may take to come back; 0 loses it at once.
    max_streams, max_clients
        Streams at one time, and clients on each of them. A client whose stream finds no place is
        to dial again; see ``StreamPlaces`` for who makes place.
    keepalive_s, keepalive_timeout_s
        A peer that is silent this long is pinged, and given up when it does not answer in time.

    Raises
    ------
    FedloraError
        When the address cannot be bound, or plain text is asked for beyond loopback.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        identity: tls.TlsIdentity | None,
        max_frame_bytes: int,
        admit: Admit,
        tokens: TokenStore,
        queue_frames: int = 4,
        hello_timeout_s: float = 10.0,
        give_up_s: float = 60.0,
        max_streams: int = 1024,
        max_clients: int = 1024,
        keepalive_s: float = 20.0,
        keepalive_timeout_s: float = 10.0,
    ) -> None:
        if identity is None:
            tls.require_loopback(host)
        keep_freed_memory()
        self.certificate_pem = identity.certificate_pem if identity else None
        self.tokens = tokens
        self._admissions = ThreadPoolExecutor(1, "fedlora-admit")
        self._loop = asyncio.new_event_loop()
        self._give_up_s = give_up_s
        self._secrets = ResumeSecrets()
        self._refusals = Refusals(log)
        self._terms = StreamTerms(
            tokens=tokens,
            refusals=self._refusals,
            secrets=self._secrets,
            admit=admit,
            max_frame_bytes=max_frame_bytes,
            queue_frames=queue_frames,
            hello_timeout_s=hello_timeout_s,
            max_clients=max_clients,
            offer=self._offer,
            move=self._move,
            loop=self._loop,
            admissions=self._admissions,
        )
        self._options = [
            *channel_options(max_frame_bytes, keepalive_s, keepalive_timeout_s),
            ("grpc.so_reuseport", 0),  # or a port that is taken would be shared in silence
            ("grpc.max_connection_idle_ms", 30_000),
            ("grpc.server_handshake_timeout_ms", round(1000 * hello_timeout_s)),
            # Clients ping as well; without this they are cut off for pinging too often.
            ("grpc.http2.min_ping_interval_without_data_ms", round(500 * keepalive_s)),
        ]
        # gRPC refuses beyond that without a word that a client could act upon.
        self._max_calls = 2 * max_streams + _REFUSED_AT_ONCE
        self._streams = StreamPlaces(max_streams)
        self._links: dict[str, StreamLink] = {}
        self._away: dict[str, asyncio.TimerHandle] = {}  # until a client is given up
        self._accepted = Admitted()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fedlora-link", daemon=True)
        self._thread.start()
        try:
            self.port: int = self._call(self._start(host, port, identity), 30.0)
        except BaseException:
            self._loop.call_soon_threadsafe(self._loop.stop)
            raise

    def accept(self, timeout_s: float) -> StreamLink | None:
        """Return the next admitted client, or None when none came in time.

        The client has been sent ``welcome``; the first ``receive`` returns its answer, ``ready``.

        Raises
        ------
        FedloraError
            When the server was stopped.
        """
        link = self._accepted.get(timeout_s)
        if link is None and self._stopped.is_set():
            raise FedloraError("the stream server was stopped; no client can connect any more")
        return link

    def stop(self, grace_s: float = 2.0) -> None:
        """End every stream, giving frames that are queued ``grace_s`` seconds to leave."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        self._accepted.close()
        self._admissions.shutdown(wait=False, cancel_futures=True)
        with suppress(TimeoutError):  # on a machine that stood still; it still ends all streams
            self._call(self._finish(grace_s), grace_s + _STOP_S)
        self._thread.join(1.0)

    def __enter__(self) -> StreamServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    def _call(self, coroutine: Any, timeout_s: float) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)

    async def _start(self, host: str, port: int, identity: tls.TlsIdentity | None) -> int:
        self._server = grpc.aio.server(
            options=self._options, maximum_concurrent_rpcs=self._max_calls
        )
        handler = grpc.stream_stream_rpc_method_handler(self._serve)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),)
        )
        bound = tls.bind(self._server, host, port, identity)
        await self._server.start()
        return bound

    async def _finish(self, grace_s: float) -> None:
        for waiting in self._away.values():
            waiting.cancel()
        for stream in self._streams:
            stream.finish(STOPPED)
        stop = asyncio.ensure_future(self._server.stop(grace_s))
        # Bounded: a connection whose peer does not read holds it up, when all calls have ended.
        await asyncio.wait({stop}, timeout=grace_s + 1.0)
        # And it returns before the tasks of its calls have ended.
        calls = asyncio.all_tasks() - {asyncio.current_task(), stop}
        if calls:
            await asyncio.wait(calls, timeout=1.0)
        for link in self._links.values():
            link.lose(STOPPED)
        self._refusals.flush()
        stop.add_done_callback(lambda _: self._loop.stop())

    async def _serve(self, _requests: Any, context: grpc.aio.ServicerContext) -> None:
        """Run one stream from its opening to its end."""
        shown = dict(context.invocation_metadata() or ())
        try:
            if RESUME_KEY in shown:
                opener = self._secrets.client(self._secrets.check(shown[RESUME_KEY]))
            else:
                opener = self.tokens.check(shown.get(TOKEN_KEY, ""))
        except FedloraError as error:
            self._refusals.write("stream from %s is refused: %s", context.peer(), error)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        stream = ServerStream(self._terms, context)
        if not self._streams.take(stream, opener):
            await context.abort(grpc.StatusCode.UNAVAILABLE, CROWDED)
        breach = ""
        try:
            # At once: while the first write is under way, gRPC could not send it with a status.
            await context.send_initial_metadata(())
            await stream.run()
        except ProtocolError as error:
            breach = stream.ended = printable(error)
        finally:
            self._forget(stream, breach)
        if breach:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, breach)
        if stream.aborted:
            await context.abort(grpc.StatusCode.UNAVAILABLE, stream.ended)

    def _forget(self, stream: ServerStream, breach: str) -> None:
        """Lose the clients of a stream that ended, or wait for them to come back on another."""
        self._streams.leave(stream)
        final = bool(breach) or self._stopped.is_set() or self._give_up_s <= 0
        lost = []
        for client, link in stream.links.items():
            if not final and link.suspend(stream.post, stream.ended):
                self._away[client] = self._loop.call_later(self._give_up_s, self._give_up, link)
                log.warning("client %s is away: %s", client, stream.ended)
                continue
            if link.lose(stream.ended):
                lost.append(client)
            if self._links.get(client) is link:
                del self._links[client]
        if (lost or breach) and not self._stopped.is_set():
            clients = printable(", ".join(lost)) or "none"
            log.warning("stream of %s is ended: %s; lost: %s", stream.peer, stream.ended, clients)

    def _give_up(self, link: StreamLink) -> None:
        """Lose a client that did not come back."""
        self._away.pop(link.client, None)
        if link.lose(f"{link.away}; it did not come back in {self._give_up_s:g} s"):
            log.warning("client %s did not come back in %g s", link.client, self._give_up_s)
        if self._links.get(link.client) is link:
            del self._links[link.client]

    def _move(self, client: str, session: str) -> StreamLink | None:
        """Take a link from the stream that carried it, known to be broken or not."""
        link = self._links.get(client)
        if link is None or link.session != session or link.lost:
            return None
        waiting = self._away.pop(client, None)
        if waiting is not None:
            waiting.cancel()
        for stream in self._streams:
            if stream.links.get(client) is link:
                stream.release(client)
        return link

    def _offer(self, link: StreamLink) -> None:
        """Queue an admitted client's link, in place of an older one of that client."""
        waiting = self._away.pop(link.client, None)
        if waiting is not None:
            waiting.cancel()
        old = self._links.get(link.client)
        if old is not None:
            old.close(ANEW)
        self._links[link.client] = link
        self._accepted.put(link)
