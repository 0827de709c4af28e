"""A federation whose clients come over the TLS stream, spread over one or several edge hosts."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from clients.build import hello, load_parts
from clients.simulated_data import SimulatedData
from fedlora.config import Scenario
from fedlora.link.stream import TokenStore
from fedlora.link.stream.client.client import StreamClient
from fedlora.link.stream.server.listener import StreamServer
from fedlora.link.stream.tls import create_identity
from fedlora.server.run import ServerRun
from support.federation import Recorder


def run_over_stream(
    config: Scenario, hosts: int, beside: Callable[[StreamServer], object] | None = None
) -> dict[str, torch.Tensor]:
    """Run a scenario over TLS and return the adapter; something else may go on meanwhile."""
    server, tokens, count = ServerRun(config, Recorder()), TokenStore(), config.federation.clients
    limit = config.link.max_frame_mib << 20
    stream = StreamServer(
        "127.0.0.1",
        0,
        identity=create_identity(""),
        max_frame_bytes=limit,
        admit=lambda opening, grantee: server.admit(opening),
        tokens=tokens,
    )
    edges = [
        StreamClient(f"127.0.0.1:{stream.port}", stream.certificate_pem, max_frame_bytes=limit)
        for _ in range(hosts)
    ]
    try:
        data = SimulatedData(config, count)
        parts = [load_parts(config, data.labels) for _ in range(hosts)]
        sessions = []
        for number in reversed(range(count)):  # the order of arrival must not matter
            host = number % hosts
            client = data.build(parts[host], number)
            opening = hello(parts[host], client, tokens.grant(client.name, 60))
            sessions.append(edges[host].attach(client.name, client.handle, opening))
        for _ in range(count):
            link = stream.accept(30)
            assert link is not None
            link.receive(30)
            server.join(link, link.hello)
        with ThreadPoolExecutor(1) as other:
            going_on = other.submit(beside, stream) if beside else None
            server.training.run()
            if going_on is not None:
                going_on.result()
        assert not server.cohort.lost
        server.end()
        for session in sessions:
            session.result(30)
        return server.engine.adapter()
    finally:
        for edge in edges:
            edge.close()
        stream.stop()
