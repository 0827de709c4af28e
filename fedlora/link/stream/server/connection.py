"""One stream on the server: its clients' handshakes, and the way of their frames."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import grpc.aio
import torch

from fedlora.errors import FedloraError, ProtocolError, printable
from fedlora.link import Frame, encode_frame, peek_frame
from fedlora.link.messages import HELLO, LEAVE, WELCOME
from fedlora.link.stream import (
    CLOSED,
    MAX_HELLO_BYTES,
    PAD,
    PROBE,
    REFUSED,
    RESUME,
    SECRET,
    TokenStore,
    farewell,
    reason_of,
)
from fedlora.link.stream.link_rate import MOST_BYTES
from fedlora.link.stream.server.link import StreamLink
from fedlora.link.stream.server.terms import StreamTerms

log = logging.getLogger("fedlora.link")

ANEW = "the client connected anew"
MAX_REFUSALS = 16  # hellos that are refused on one stream before it is ended
MAX_CLIENT_ID = 128  # characters
_MAX_ECHOES = 2


class ServerStream:
    """Reads frames and hands them to links, and writes what links have queued.

    All of it runs on the server's event loop, except ``post``.

    Parameters
    ----------
    terms
        What holds for every stream of the server.
    context
        The gRPC call.

    Attributes
    ----------
    links
        Every client that was admitted on the stream.
    ended
        Why the stream ended, once it has.
    """

    def __init__(self, terms: StreamTerms, context: grpc.aio.ServicerContext) -> None:
        self.links: dict[str, StreamLink] = {}
        # What holds unless the server ends the stream; gRPC does not tell these apart.
        self.ended = (
            "its stream broke: the client was cut off, died, or exceeded link.max_frame_mib"
        )
        self._terms = terms
        self._context = context
        self.peer = str(context.peer())
        self._outgoing: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._echoes: deque[bytes] = deque()  # answers to probes that are on their way
        self._joining: dict[str, asyncio.Task[None]] = {}
        # What shows that its client has received its latest secret: any frame. By client.
        self._unconfirmed: dict[str, Callable[[], None]] = {}
        self._refusals = 0
        self._token: dict[str, str] = {}  # that admitted each client
        self._deaf = False
        self._aborted = asyncio.Event()

    async def run(self) -> None:
        """Carry frames until either side ends the stream or the peer breaks the protocol."""
        reader, writer = asyncio.create_task(self._read()), asyncio.create_task(self._write())
        aborted = asyncio.create_task(self._wait_for_abort())
        tasks = {reader, writer, aborted}
        try:
            done: set[asyncio.Task[None]] = set()
            while not done:
                limit_s = None if self.links else self._terms.hello_timeout_s
                done, _ = await asyncio.wait(
                    tasks, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED
                )
                if not (done or self.links or self._joining):
                    raise ProtocolError(f"no client was admitted within {limit_s:g} s")
            for task in done:
                task.result()
            if reader in done:  # the client has no more to say; let it have what is queued
                self._outgoing.put_nowait(None)
                await asyncio.wait({writer}, timeout=self._terms.hello_timeout_s)
        finally:
            for task in (*tasks, *self._joining.values()):
                task.cancel()

    def finish(self, reason: str) -> None:
        """End the stream after everything that is queued."""
        self.ended = reason
        self._outgoing.put_nowait(None)

    @property
    def aborted(self) -> bool:
        """Whether it was ended to make place for another."""
        return self._aborted.is_set()

    def abort(self, reason: str) -> None:
        """End the stream at once, whether its peer reads or not."""
        self.ended = reason
        self._aborted.set()

    def release(self, client: str) -> None:
        """Forget a client that another stream carries now; end the stream if it was the last."""
        self.links.pop(client, None)
        self._unconfirmed.pop(client, None)
        if not self.links and not self._joining:
            self.finish("its clients came back on another stream")

    def post(self, data: bytes) -> None:
        """Queue bytes for the client, from any thread."""
        self._terms.loop.call_soon_threadsafe(self._outgoing.put_nowait, data)

    async def _wait_for_abort(self) -> None:
        await self._aborted.wait()

    async def _write(self) -> None:
        while (data := await self._outgoing.get()) is not None:
            await self._context.write(data)
            if self._echoes and data is self._echoes[0]:
                self._echoes.popleft()

    async def _read(self) -> None:
        while not self._deaf and (data := await self._context.read()) is not grpc.aio.EOF:
            self._route(data)

    def _route(self, data: bytes) -> None:
        frame = peek_frame(data, self._terms.max_frame_bytes)
        if frame.kind in (HELLO, RESUME):
            self._check_opening(frame, len(data))
            if frame.kind == HELLO:
                self._joining[frame.client] = asyncio.create_task(self._join(frame, len(data)))
            else:
                self._take_up(frame)
            return
        link = self.links.get(frame.client)
        if link is None:
            raise ProtocolError(f"client {frame.client!r} sent {frame.kind!r} before hello")
        confirm = self._unconfirmed.pop(frame.client, None)
        if confirm is not None:
            confirm()
        if frame.kind == PROBE:
            self._echo(link, frame, len(data))
            return
        if frame.kind == CLOSED:
            link.lose(f"the client closed its stream: {reason_of(frame)}")
            return
        if link.deliver(frame.seq, data):
            if link.lost or frame.kind == LEAVE:
                link.acknowledge()
            return
        if link.lost:
            raise ProtocolError(f"client {link.client} went on after its session had ended")
        log.warning("client %s is dropped: it sent an unasked frame", link.client)
        link.close(printable(f"frame {frame.seq} answers no request"))

    def _check_opening(self, hello: Frame, size: int) -> None:
        """Refuse a hello, or a resume in its place, that no honest client sends."""
        client = hello.client
        if not 0 < len(client) <= MAX_CLIENT_ID or not client.isprintable():
            raise ProtocolError(
                f"client identifier {client!r} is not 1 to {MAX_CLIENT_ID} printable characters"
            )
        if size > MAX_HELLO_BYTES:
            raise ProtocolError(f"hello of {size} bytes exceeds the limit of {MAX_HELLO_BYTES}")
        again = hello.kind == HELLO and self._token.get(client) == hello.fields.get("token", "")
        if client in self._joining or again:
            raise ProtocolError(f"client {client} said hello twice")
        if len({client, *self.links, *self._joining}) > self._terms.max_clients:
            raise ProtocolError(f"the stream carries {self._terms.max_clients} clients already")

    async def _join(self, hello: Frame, size: int) -> None:
        """Claim a client's token, ask whether it is admitted, and answer it."""
        terms, client, token = self._terms, hello.client, str(hello.fields.get("token", ""))
        try:
            grantee = terms.tokens.claim(token, client)
            fields = await terms.loop.run_in_executor(terms.admissions, terms.admit, hello, grantee)
            session, secret = terms.secrets.open(client)
            link = StreamLink(
                hello,
                grantee,
                self.post,
                terms.max_frame_bytes,
                terms.queue_frames,
                session,
                lambda reason: terms.secrets.void(session, reason),
            )
            link.wire_bytes_up = size
            if client in self.links:  # without a word, which its new session would hear
                self.links[client].lose(ANEW)
            link.send(Frame(WELCOME, client, 0, {**fields, SECRET: secret}))
        except FedloraError as error:
            self._refuse(client, str(error))
        except Exception:
            log.exception("admission of client %s failed", client)
            self._refuse(client, "the server failed to admit the client; its log says why")
        else:
            self.links[client], self._token[client] = link, token
            self._unconfirmed[client] = lambda: _use_up(terms.tokens, token)
            terms.offer(link)
        finally:
            del self._joining[client]

    def _echo(self, link: StreamLink, probe: Frame, size: int) -> None:
        """Answer a probe; a few at a time, so that nobody fills the queue with them.

        A client probes again when it has its answer, which may be before the write of that answer
        is known to have ended here.
        """
        wanted = probe.fields.get("size")
        if not isinstance(wanted, int) or isinstance(wanted, bool) or not 0 <= wanted <= MOST_BYTES:
            raise ProtocolError(f"a probe wants {wanted!r:.40} bytes; 0 to {MOST_BYTES} are given")
        if len(self._echoes) >= _MAX_ECHOES or link.lost:
            raise ProtocolError(f"client {link.client} probes before it was answered")
        pad = {PAD: torch.zeros(wanted, dtype=torch.uint8)} if wanted else {}
        echo = encode_frame(Frame(PROBE, link.client, probe.seq, tensors=pad))
        self._echoes.append(echo)
        link.wire_bytes_up += size
        link.wire_bytes_down += len(echo)
        self._outgoing.put_nowait(echo)

    def _take_up(self, frame: Frame) -> None:
        """Let a client whose stream broke go on over this one."""
        secrets, client, received = self._terms.secrets, frame.client, frame.fields.get("received")
        try:
            if not isinstance(received, int) or isinstance(received, bool):
                raise ProtocolError(f"received is {received!r}; expected the number of a request")
            session, secret = secrets.redeem(str(frame.fields.get(SECRET, "")), client, received)
            link = self._terms.move(client, session)
            if link is None:
                raise ProtocolError("the session is over")
            try:
                link.resume(self.post, secret, received)
            except ProtocolError as error:  # it shows the right secret and yet is not the client
                link.lose(str(error))
                raise
        except FedloraError as error:
            self._refuse(client, str(error))
            return
        log.info("client %s is back on another stream (%s)", client, self.peer)
        self.links[client] = link
        self._unconfirmed[client] = lambda: secrets.confirm(session)

    def _refuse(self, client: str, reason: str) -> None:
        self._terms.refusals.write(
            "client %s from %s is refused: %s", client, self.peer, printable(reason)
        )
        self._refusals += 1
        self._outgoing.put_nowait(encode_frame(farewell(REFUSED, client, reason)))
        if self._refusals >= MAX_REFUSALS:
            self._deaf = True  # whether its peer takes the answers or not
            self.finish(f"{MAX_REFUSALS} hellos were refused")


def _use_up(tokens: TokenStore, token: str) -> None:
    with suppress(FedloraError):  # it expired since it was claimed
        tokens.redeem(token)
