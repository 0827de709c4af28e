"""Clients in processes of their own: what they load, and what happens when they die."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from support.link_peers import LIMIT, ask, start_process
from support.patience import patient

from fedlora.errors import ClientLost
from fedlora.link import Frame, messages as m
from fedlora.link.stream.client.client import StreamClient
from fedlora.link.stream.server.link import StreamLink
from fedlora.link.stream.server.listener import StreamServer

TESTS = Path(__file__).parents[1]

Process = subprocess.Popen[bytes]
Spawn = Callable[[StreamServer, list[str]], tuple[list[Process], dict[str, StreamLink]]]


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    """Start client processes side by side and bring them through the handshake."""
    processes: list[Process] = []

    def begin(
        server: StreamServer, clients: list[str]
    ) -> tuple[list[Process], dict[str, StreamLink]]:
        certificate = tmp_path / "certificate.pem"
        certificate.write_bytes(server.certificate_pem or b"")
        for client in clients:
            token = server.tokens.grant(client, 60.0)
            processes.append(start_process(server.port, certificate, token, client))
        links = {}
        for _ in clients:
            link = server.accept(60.0)
            assert link is not None
            assert link.receive(10.0).kind == m.READY
            links[link.client] = link
        return processes, links

    yield begin
    for process in processes:
        process.kill()
        process.wait(10.0)


def test_processes_exchange_tensors_and_end_cleanly(server: StreamServer, spawn: Spawn) -> None:
    processes, links = spawn(server, ["a", "b"])
    z = torch.randn(100, 100)
    for seq in range(1, 4):
        for link in links.values():
            link.send(Frame(m.STEP, link.client, seq, {}, {"z": z + seq}))
        for link in links.values():
            assert torch.equal(link.receive(10.0).tensors["z"], z + seq)
    for link in links.values():
        assert ask(link, Frame(m.END, link.client, 4)).kind == m.RESULT
        link.close()
    assert [process.wait(20.0) for process in processes] == [0, 0]


def test_a_killed_client_is_noticed_at_once_and_others_go_on(
    server: StreamServer, spawn: Spawn
) -> None:
    processes, links = spawn(server, ["a", "b"])
    began = time.monotonic()
    threading.Timer(0.2, processes[0].kill).start()
    with pytest.raises(ClientLost, match="client a is gone"):
        for seq in range(1, 1_000_000):
            ask(links["a"], Frame(m.STEP, "a", seq))
    assert time.monotonic() - began < patient(5.0)
    assert ask(links["b"], Frame(m.STEP, "b", 1)).seq == 1


def test_a_client_that_falls_silent_is_noticed_by_keepalive_and_does_not_hold_up_stop(
    start: Callable[..., StreamServer], spawn: Spawn
) -> None:
    server = start(keepalive_s=0.5, keepalive_timeout_s=2.0)  # which a busy client can keep, too
    processes, links = spawn(server, ["a"])
    processes[0].send_signal(signal.SIGSTOP)
    z = torch.zeros(LIMIT // 8)
    for seq in range(1, 4):  # more than the sockets buffer, so that a write is under way
        links["a"].send(Frame(m.STEP, "a", seq, {}, {"z": z}))
    with pytest.raises(ClientLost, match="died"):
        links["a"].receive(20.0)
    began = time.monotonic()
    server.stop(grace_s=0.5)
    assert time.monotonic() - began < patient(8.0)


def test_stop_does_not_wait_for_a_client_that_does_not_read(
    server: StreamServer, spawn: Spawn
) -> None:
    processes, links = spawn(server, ["a"])
    processes[0].send_signal(signal.SIGSTOP)
    for seq in range(1, 5):
        links["a"].send(Frame(m.STEP, "a", seq, {}, {"z": torch.zeros(LIMIT // 4 - 1000)}))
    began = time.monotonic()
    server.stop(grace_s=0.5)
    assert time.monotonic() - began < patient(8.0)
    with pytest.raises(ClientLost):
        links["a"].receive(1.0)


def test_a_client_ends_when_its_server_dies(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from fedlora.link.stream.server.listener import StreamServer\n"
        "from fedlora.link.stream.tokens import TokenStore\n"
        "tokens = TokenStore()\n"
        "server = StreamServer('127.0.0.1', 0, identity=None, max_frame_bytes=1 << 20,\n"
        "                      admit=lambda hello, grantee: {}, tokens=tokens)\n"
        "print(server.port, tokens.grant('a', 60.0), flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port, token = process.stdout.readline().split()
        greeted = threading.Event()

        def handler(frame: Frame) -> Frame:
            greeted.set()
            return Frame(m.READY, frame.client, frame.seq)

        with StreamClient(
            f"127.0.0.1:{port}", None, max_frame_bytes=LIMIT, give_up_s=0.5
        ) as stream:
            session = stream.attach("a", handler, Frame(m.HELLO, "a", fields={"token": token}))
            assert greeted.wait(10.0)
            process.kill()
            assert isinstance(session.exception(10.0), ClientLost)
    finally:
        process.kill()
        process.wait(10.0)


def test_256_idle_streams_take_no_threads_and_little_memory(
    start: Callable[..., StreamServer], join: Callable[..., StreamLink]
) -> None:
    server = start(identity=None)
    script = (
        "import sys, time\n"
        "from support.link_peers import HostilePeer\n"
        "peers = []\n"
        "for client, token, opening in (line.split() for line in sys.stdin):\n"
        f"    peer = HostilePeer({server.port}, None)\n"
        "    peer.open(opening)\n"
        "    peer.greet(client, token)\n"
        "    peers.append(peer)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, cwd=TESTS, text=True
    )
    try:
        join(server, "first")
        before, memory = psutil.Process().num_threads(), psutil.Process().memory_info().rss
        assert process.stdin is not None
        grant = server.tokens.grant
        for i in range(256):
            process.stdin.write(f"c{i} {grant(f'c{i}', 60.0)} {grant(f'c{i}', 60.0)}\n")
        process.stdin.close()
        assert all(server.accept(30.0) is not None for _ in range(256))
        assert psutil.Process().num_threads() - before < 16
        assert psutil.Process().memory_info().rss - memory < 300e6
    finally:
        process.kill()
        process.wait(10.0)


def test_an_edge_process_loads_no_heavy_library() -> None:
    script = (
        "import sys, fedlora.link.stream.client.client\n"
        "heavy = {'transformers', 'peft', 'ray', 'flwr', 'datasets', 'accelerate', 'opacus'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
