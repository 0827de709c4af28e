"""A TCP relay that makes loopback a slow and unreliable link: rate, delay, stalls and resets.

In a test: ``with Relay(port) as relay: dial(relay.port); relay.reset()``. As a process of its own:
``python tests/relay.py PORT --rate-bps 10e6 --delay-s 0.05``, which prints the port to dial.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import socket
import struct
import threading
import time

CHUNK_BYTES = 8192
QUEUE_CHUNKS = 16  # what a router would hold
BURST_S = 0.05  # depth of the bucket
BUFFER_BYTES = 65536  # of the sockets: else the kernel would swallow megabytes at once


class Relay:
    """Forwards connections to a port of loopback, each direction through its own token bucket.

    Parameters
    ----------
    target
        Port that connections are forwarded to.
    rate_bps
        Rate of each direction in bit/s, shared by all connections; 0 is unlimited.
    delay_s
        Delay of each direction, in seconds.
    stall_every_s, stall_s
        Mean time between stalls of both directions, and their mean length; 0 means none.
    reset_every_s
        Mean time between resets of all connections; 0 means none.
    seed
        Of the random times, which are exponential.
    """

    def __init__(
        self,
        target: int,
        *,
        rate_bps: float = 0.0,
        delay_s: float = 0.0,
        stall_every_s: float = 0.0,
        stall_s: float = 0.0,
        reset_every_s: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.target = target
        self.rate_bps = rate_bps
        self.delay_s = delay_s
        self.bytes = {"up": 0, "down": 0}
        self.connections = self.resets = self.stalls = 0
        self.refusing = False
        self._chance = random.Random(seed)
        self._stalling = (stall_every_s, stall_s)
        self._reset_every_s = reset_every_s
        self._open: set[asyncio.StreamWriter] = set()
        self._free_at = {"up": 0.0, "down": 0.0}
        self._flowing = {"up": asyncio.Event(), "down": asyncio.Event()}
        for way in self._flowing.values():
            way.set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._started = threading.Event()

    def __enter__(self) -> Relay:
        self._thread.start()
        assert self._started.wait(10.0)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10.0)

    def reset(self) -> None:
        """Reset every connection, as when a device changes its network."""
        asyncio.run_coroutine_threadsafe(self._reset(), self._loop).result(10.0)

    def stall(self, stalled: bool, *ways: str) -> None:
        """Let nothing through one way or both, or everything again; connections stay."""
        for way in ways or self._flowing:
            flowing = self._flowing[way]
            self._loop.call_soon_threadsafe(flowing.clear if stalled else flowing.set)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            self.port = listening.getsockname()[1]
            server = await asyncio.start_server(self._accept, sock=listening, limit=CHUNK_BYTES)
            tasks = [asyncio.create_task(self._disturb()), asyncio.create_task(self._break())]
            self._started.set()
            await self._stop.wait()
            server.close()
            await self._reset()
            for task in (*tasks, *asyncio.all_tasks() - {asyncio.current_task()}):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, OSError):
                    await task

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        if self.refusing:
            self._abort(writer)
            return
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        plain.setblocking(False)
        try:
            await self._loop.sock_connect(plain, ("127.0.0.1", self.target))
        except OSError:
            plain.close()
            self._abort(writer)
            return
        far_reader, far_writer = await asyncio.open_connection(sock=plain, limit=CHUNK_BYTES)
        self._open.add(far_writer)
        ways = (("up", reader, far_writer), ("down", far_reader, writer))
        pumps = [asyncio.create_task(self._pump(*way)) for way in ways]
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(*pumps)
        for end in (writer, far_writer):
            self._abort(end)

    async def _pump(
        self, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Carry one direction: each chunk leaves when the bucket pays, and arrives later."""
        writer.transport.set_write_buffer_limits(high=CHUNK_BYTES)
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUE_CHUNKS)
        arriving = asyncio.create_task(self._arrive(way, queue, writer))
        try:
            while data := await reader.read(CHUNK_BYTES):
                await self._flowing[way].wait()
                now = time.monotonic()
                took_s = 8 * len(data) / self.rate_bps if self.rate_bps else 0.0
                # A pump that was woken late may catch up, or a busy machine would be a slower link.
                leaves = self._free_at[way] = max(now - BURST_S, self._free_at[way]) + took_s
                await asyncio.sleep(max(0.0, leaves - now))
                await queue.put((max(now, leaves) + self.delay_s, data))
            await queue.put((0.0, b""))
            await arriving
        finally:
            arriving.cancel()

    async def _arrive(
        self, way: str, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        while True:
            due, data = await queue.get()
            if not data:
                writer.write_eof()
                return
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await self._flowing[way].wait()
            self.bytes[way] += len(data)
            writer.write(data)
            await writer.drain()

    async def _disturb(self) -> None:
        every_s, length_s = self._stalling
        while every_s > 0:
            await asyncio.sleep(self._chance.expovariate(1 / every_s))
            self.stalls += 1
            self.stall(True)
            await asyncio.sleep(self._chance.expovariate(1 / length_s))
            self.stall(False)

    async def _break(self) -> None:
        while self._reset_every_s > 0:
            await asyncio.sleep(self._chance.expovariate(1 / self._reset_every_s))
            await self._reset()

    async def _reset(self) -> None:
        self.resets += bool(self._open)
        for writer in list(self._open):
            self._abort(writer)

    def _abort(self, writer: asyncio.StreamWriter) -> None:
        self._open.discard(writer)
        plain = writer.get_extra_info("socket")
        if plain is not None and not writer.transport.is_closing():
            with contextlib.suppress(OSError):
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


def main() -> None:
    """Relay until standard input ends, then print what was carried."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target", type=int)
    for name in ("rate-bps", "delay-s", "stall-every-s", "stall-s", "reset-every-s"):
        parser.add_argument(f"--{name}", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    with Relay(**vars(parser.parse_args())) as relay:
        print(relay.port, flush=True)
        with contextlib.suppress(EOFError):
            input()
        print(relay.bytes["up"], relay.bytes["down"], relay.resets, relay.stalls, flush=True)


if __name__ == "__main__":
    main()
