"""A stream server for each test, on a free port of loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.link_peers import LIMIT, HostilePeer, ask, echo, hello

from fedlora.link import Frame, messages as m
from fedlora.link.stream import TokenStore
from fedlora.link.stream.client.client import StreamClient
from fedlora.link.stream.server.link import StreamLink
from fedlora.link.stream.server.listener import StreamServer
from fedlora.link.stream.tls import TlsIdentity, create_identity


@pytest.fixture(scope="session")
def identity() -> TlsIdentity:
    return create_identity("device.example")


@pytest.fixture
def start(identity: TlsIdentity) -> Iterator[Callable[..., StreamServer]]:
    """Start servers with given options; they are stopped when the test ends."""
    servers: list[StreamServer] = []

    def begin(port: int = 0, **options: Any) -> StreamServer:
        defaults: dict[str, Any] = {
            "identity": identity,
            "max_frame_bytes": LIMIT,
            "admit": lambda hello, grantee: {"grantee": grantee},
            "tokens": TokenStore(),
            "give_up_s": 0.0,
        }
        servers.append(StreamServer("127.0.0.1", port, **defaults | options))
        return servers[-1]

    yield begin
    for server in servers:
        server.stop(grace_s=0.5)


@pytest.fixture
def server(start: Callable[..., StreamServer]) -> StreamServer:
    return start()


@pytest.fixture
def connect(identity: TlsIdentity) -> Iterator[Callable[[StreamServer], StreamClient]]:
    """Open stream clients to a server; they are closed when the test ends."""
    clients: list[StreamClient] = []

    def begin(server: StreamServer, **options: Any) -> StreamClient:
        address = f"localhost:{server.port}"
        defaults: dict[str, Any] = {"max_frame_bytes": LIMIT, "give_up_s": 0.0}
        clients.append(StreamClient(address, server.certificate_pem, **defaults | options))
        return clients[-1]

    yield begin
    for client in clients:
        client.close(timeout_s=1.0)


@pytest.fixture
def join(connect: Callable[..., StreamClient]) -> Callable[..., StreamLink]:
    """Attach a client, by default an echo on a stream of its own, and return the server's link."""

    def begin(
        server: StreamServer, client: str, handler: Any = echo, stream: StreamClient | None = None
    ) -> StreamLink:
        stream = stream or connect(server)
        stream.attach(client, handler, hello(client, server.tokens.grant(client, 60.0)))
        link = server.accept(10.0)
        assert link is not None
        assert link.client == client
        assert link.receive(10.0).kind == m.READY
        return link

    return begin


@pytest.fixture
def hostile(server: StreamServer) -> Iterator[HostilePeer]:
    peer = HostilePeer(server.port, server.certificate_pem)
    yield peer
    peer.close()


@pytest.fixture
def bystander(server: StreamServer, join: Callable[..., StreamLink]) -> Iterator[StreamLink]:
    """An honest client on a stream of its own, which must work before and after the test."""
    link = join(server, "bystander")
    yield link
    assert ask(link, Frame(m.PHASE, link.client, 999_999)).kind == m.READY
    assert link.lost == ""
