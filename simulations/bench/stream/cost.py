"""What the TLS stream itself costs: an exchange without computing, and idle connections."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence

import torch

from fedlora.link import ClientLink, Frame, LocalLink, edge_executor, messages as m
from simulations.bench.context import Context, Figure, Tick
from simulations.bench.federation import Door, EdgeProcess, accept_all, admit_all
from simulations.bench.machine import memory_mib

_TIMEOUT_S = 60.0


def exchange(context: Context, _model: str, tick: Tick) -> list[Figure]:
    """Send every client a frame and wait for all answers of the same size.

    Once with ``exchange_bytes`` each way for all clients together, as a step of theirs would have
    it, and once with as many for every client. All ends share this machine's cores, so the time is
    the sum of what server and clients need.
    """
    settings, clients = context.settings, range(context.settings.speed_clients)
    each = settings.exchange_bytes
    together = each // len(clients)
    door = Door(admit_all)
    processes = [EdgeProcess("echo", [door.session(client)]) for client in clients]
    try:
        links: list[ClientLink] = list(accept_all(door.stream, processes, len(clients)))
        over_tls = _exchange_ms(links, (together, each), settings.exchanges)
        tick()
        for link in links:
            link.send(Frame(m.END, link.client, 1 << 30))
            link.receive(_TIMEOUT_S)
        for process in processes:
            process.end()
    finally:
        door.stream.stop()
        for process in processes:
            process.process.kill()
    executor = edge_executor(2)
    local: list[ClientLink] = [LocalLink(str(client), _echo, executor) for client in clients]
    in_process = _exchange_ms(local, (together, each), settings.exchanges)
    tick()
    return [
        Figure("tls", over_tls[0], "ms", at_most=10),
        Figure("in_process", in_process[0], "ms"),
        Figure("tls_each", over_tls[1], "ms"),
        Figure("in_process_each", in_process[1], "ms"),
    ]


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
        Figure("server", grown, "MiB", at_most=300),
        Figure("server_per_stream", 1024 * grown / count, "KiB"),
    ]


def _exchange_ms(links: Sequence[ClientLink], sizes: Sequence[int], exchanges: int) -> list[float]:
    numbers, medians = itertools.count(1), []
    for size in sizes:
        payload = {"payload": torch.zeros(size // 4)}
        durations = []
        for number in itertools.islice(numbers, exchanges):
            begun = time.perf_counter()
            for link in links:
                link.send(Frame(m.STEP, link.client, number, {}, payload))
            for link in links:
                link.receive(_TIMEOUT_S)
            durations.append(time.perf_counter() - begun)
        medians.append(1000 * statistics.median(durations))
    return medians


def _echo(frame: Frame) -> Frame:
    return frame
