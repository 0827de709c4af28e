"""What the TLS stream itself costs: an exchange without computing, and idle connections."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from fedlora.link.frame import Frame
from fedlora.link.link import Link
from fedlora.link.local import LocalLink, edge_executor
from fedlora.link.messages import END, STEP
from simulations.bench.context import Context, Tick
from simulations.bench.federation import Door, EdgeProcess, accept_all, admit_all
from simulations.bench.figures import Figure
from simulations.bench.machine import memory_mib

_TIMEOUT_S = 60.0


def exchange(context: Context, _model: str, tick: Tick) -> list[Figure]:
    """Send every client a frame and wait for all answers of the same size."""
    settings, clients = context.settings, range(context.settings.speed_clients)
    door = Door(admit_all)
    processes = [EdgeProcess("echo", [door.session(client)]) for client in clients]
    try:
        links: list[Link] = list(accept_all(door.stream, processes, len(clients)))
        over_tls = _exchange_ms(links, settings.exchange_bytes, settings.exchanges)
        tick()
        for link in links:
            link.send(Frame(END, link.client, 1 << 30))
            link.receive(_TIMEOUT_S)
        for process in processes:
            process.end()
    finally:
        door.stream.stop()
        for process in processes:
            process.process.kill()
    executor = edge_executor(2)
    local: list[Link] = [LocalLink(str(client), _echo, executor) for client in clients]
    in_process = _exchange_ms(local, settings.exchange_bytes, settings.exchanges)
    tick()
    return [Figure("tls", over_tls, "ms"), Figure("in_process", in_process, "ms")]


def idle_streams(context: Context, _model: str, tick: Tick) -> list[Figure]:
    """Open connections from another process, and see what they add to this one."""
    count = context.settings.idle_streams
    door = Door(admit_all)
    warm = EdgeProcess("idle", [door.session(0)])  # so that TLS and gRPC are loaded already
    processes = [warm]
    try:
        list(accept_all(door.stream, [warm], 1))
        before = memory_mib("VmRSS")
        processes.append(EdgeProcess("idle", [door.session(1 + i) for i in range(count)]))
        links = list(accept_all(door.stream, processes, count))
        grown = memory_mib("VmRSS") - before
        tick()
        for process in processes:
            process.end()
    finally:
        door.stream.stop()
        for process in processes:
            process.process.kill()
    return [
        Figure("streams", len(links), "streams"),
        Figure("server", grown, "MiB"),
        Figure("server_per_stream", 1024 * grown / count, "KiB"),
    ]


def _exchange_ms(links: Sequence[Link], size: int, exchanges: int) -> float:
    payload = {"payload": torch.zeros(size // 4)}
    durations = []
    for number in range(1, exchanges + 1):
        begun = time.perf_counter()
        for link in links:
            link.send(Frame(STEP, link.client, number, {}, payload))
        for link in links:
            link.receive(_TIMEOUT_S)
        durations.append(time.perf_counter() - begun)
    return 1000 * statistics.median(durations)


def _echo(frame: Frame) -> Frame:
    return frame
