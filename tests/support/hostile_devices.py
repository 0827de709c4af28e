"""Runs federations of real processes in which one device is hostile.

``python -m support.hostile_devices FOLDER`` reads kinds of hostility from its standard input, a
line each, and for each plays Flower with files: a server process runs a scenario in
``FOLDER/KIND``, three honest devices and a hostile one take up its invitations. Prints what came of
each as a line of JSON. Processes are forked from this one, which has loaded everything and never
opens a stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import psutil
import torch

import clients.device
import clients.state_store
import fedlora.server.flower.questions
import fedlora.server.flower.sessions
from fedlora.link import Frame, encode_frame, messages as m, through_flower
from fedlora.link.stream import METHOD, SERVICE, TOKEN_KEY
from fedlora.link.stream.client.client import StreamClient
from fedlora.server.flower.nodes import RECORD
from fedlora.server.flower.questions import HELLO
from fedlora.server.flower.run import run_over_flower
from support.kills import Post, fork, put
from support.patience import patient

STEP_TIMEOUT_S = 5.0
SCENARIO = f"""
name = "hostile"
[model]
path = "package:simulations/quickstart/decoder"
[task]
max_length = 16
[data]
label = "intent"
max_rows = 120
[federation]
clients = 4
min_clients = 3
connect_timeout_s = 60
[train]
rounds = 3
steps = 10
batch_size = 4
[head]
share = "step"
[lora]
r_max = 4
[link]
step_timeout_s = {STEP_TIMEOUT_S}
give_up_s = 2
[evaluate]
baseline = false
[compute]
threads = 1
[observe]
json_log = true
"""
HONEST = 3
BAD = "3"
LIMIT_S = 150.0
FORGED = "2026-01-01 00:00:00,000 WARNING fedlora.server: client 0 leaves the run: forged"
WORDS = f"\x1b[2J\x1b[31mgone\r\n{FORGED}\n\x85{FORGED}\u2028{FORGED}\x00"
"""Ends a line in five ways, and clears the screen of who reads it."""

Handler = Callable[[Frame], Frame]
Change = Callable[[Frame, Callable[[], Frame]], Frame]
"""What a hostile device answers to a request; the honest answer is a call away."""


class Grid(Post):
    """Flower's part; a node's number is that of its process and 10, which says who it is."""

    def __init__(self, folder: Path, says: Mapping[int, Mapping[str, Any]]) -> None:
        super().__init__(folder)
        self._says = says
        self._asked: dict[str, int] = {}

    def get_node_ids(self) -> list[int]:
        return list(self._says)

    def push_messages(self, messages: list[Any]) -> list[str]:
        names = []
        for message in messages:
            if message.message_type == HELLO:
                names.append(f"hello-{uuid.uuid4().hex}")
                self._asked[names[-1]] = message.dst_node_id
            else:
                names += super().push_messages([message])
        return names

    def pull_messages(self, names: list[str]) -> list[Any]:
        hellos = [
            SimpleNamespace(
                metadata=SimpleNamespace(reply_to_message_id=name),
                has_error=lambda: False,
                content={RECORD: self._says[self._asked[name]]},
            )
            for name in names
            if name in self._asked
        ]
        return hellos + super().pull_messages([name for name in names if name not in self._asked])


def server(grid: Grid, out: Path) -> None:
    message = lambda content, **more: SimpleNamespace(content=content, **more)  # noqa: E731
    fedlora.server.flower.sessions.Message = fedlora.server.flower.questions.Message = message
    run_over_flower(grid, {"scenario": SCENARIO, "out": str(out)}, 1)


def device(post: Post, home: Path, client: int) -> None:
    """Take up one invitation after the other, each in a thread of its own."""
    node = {"partition-id": client, "scenario-data": "true", "state": str(home / "states")}

    def take_part(invitation: Path) -> None:
        session = json.loads(invitation.read_text())
        session["certificate"] = session["certificate"].encode()
        answer(invitation, clients.device.take_part(session, node))

    taken: set[Path] = set()
    while True:
        for invitation in post.open(client):
            if invitation not in taken:
                taken.add(invitation)
                threading.Thread(target=take_part, args=[invitation], daemon=True).start()
        time.sleep(0.02)


def answer(invitation: Path, content: Mapping[str, Any]) -> None:
    if not invitation.with_suffix(".answer").exists():
        put(invitation.with_suffix(".answer"), through_flower(content))


# Hostile devices that speak for themselves


def leave(reason: str) -> Callable[[Frame], Frame]:
    return lambda request: Frame(m.LEAVE, request.client, request.seq, {"reason": reason})


def at(kind: str, act: Callable[[Frame], Frame]) -> Change:
    return lambda request, honest: act(request) if request.kind == kind else honest()


def spoilt(kind: str, name: str) -> Change:
    def change(request: Frame, honest: Callable[[], Frame]) -> Frame:
        reply = honest()
        if request.kind != kind:
            return reply
        tensor = reply.tensors[name].clone()
        tensor.view(-1)[0] = 3.3e38
        return dataclasses.replace(reply, tensors={**reply.tensors, name: tensor})

    return change


def slow(request: Frame, honest: Callable[[], Frame]) -> Frame:
    if request.kind == m.STEP:
        time.sleep(0.9 * STEP_TIMEOUT_S)
    return honest()


def class_names(request: Frame, honest: Callable[[], Frame]) -> Frame:
    reply = honest()
    if request.kind not in (m.END, m.ROUND_END):
        return reply
    told = {"labels": ["<script>", WORDS, "alarm"], "label_rows": [1 << 70, -1, 3]}
    return dataclasses.replace(reply, fields={**reply.fields, **told, "classes": told["labels"]})


def evaluates_without_end() -> Change:
    first: list[Frame] = []

    def change(request: Frame, honest: Callable[[], Frame]) -> Frame:
        if request.kind == m.EVAL_BEGIN:
            first[:] = [honest()]
            return first[0]
        if request.kind == m.EVAL:
            return dataclasses.replace(first[0], seq=request.seq)
        return honest()

    return change


def answers(change: Change) -> Callable[[], None]:
    """Let the device answer as told."""

    def arm() -> None:
        handle = clients.state_store.ClientStateStore.handle

        def hostile(self: Any, request: Frame) -> Frame:
            return change(request, lambda: handle(self, request))

        clients.state_store.ClientStateStore.handle = hostile  # type: ignore[method-assign]

    return arm


def claims(rows: int) -> Callable[[], None]:
    """Let the device say hello with so many held-out rows."""

    def arm() -> None:
        hello = clients.device.hello

        def hostile(*arguments: Any) -> Frame:
            frame = hello(*arguments)
            return dataclasses.replace(frame, fields={**frame.fields, "held_out_rows": rows})

        clients.device.hello = hostile

    return arm


def both(*arms: Callable[[], None]) -> Callable[[], None]:
    return lambda: [arm() for arm in arms] and None


# Hostile devices that open streams by hand


def opens(flood: Callable[[Path, str, bytes, Frame], Any]) -> Callable[[], None]:
    """Let the device do as it likes with streams, as long as the run lasts."""

    def arm() -> None:
        os.nice(19)  # its own toil is that of another machine

        class Flood(StreamClient):
            def serve(self, _: Any, hellos: Sequence[Frame], **more: Any) -> None:
                asyncio.run(flood(self._address, self._certificate_pem, hellos[0]))

        clients.device.StreamClient = Flood

    return arm


async def stream(channel: Any, token: str, frames: Any) -> None:
    """Open a stream, send frames as fast as they are taken, and read until it ends."""
    call = channel.stream_stream(f"/{SERVICE}/{METHOD}")(frames, metadata=((TOKEN_KEY, token),))
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        async for _ in call:
            pass


def dial(address: str, certificate: bytes) -> Any:
    credentials = grpc.ssl_channel_credentials(certificate)
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    return grpc.aio.secure_channel(address, credentials, options)


async def hellos_without_end(address: str, certificate: bytes, hello: Frame) -> None:
    """Show one token again and again: under its own name, under others', and with another."""
    token = str(hello.fields["token"])
    guess = {**hello.fields, "token": "guess"}
    same = [encode_frame(hello)]
    names = [encode_frame(dataclasses.replace(hello, client=f"{n}")) for n in range(100, 200)]
    guesses = [
        encode_frame(dataclasses.replace(hello, client=f"{n}", fields=guess)) for n in (0, 1)
    ]
    for hellos in itertools.cycle((same, names, guesses)):

        async def frames(hellos: list[bytes] = hellos) -> Any:
            for frame in itertools.cycle(hellos):
                yield frame

        async with dial(address, certificate) as channel:
            await stream(channel, token, frames())


async def streams_without_end(address: str, certificate: bytes, hello: Frame) -> None:
    """Open streams at once and again, on several connections; each says hello and stays."""
    token, opening = str(hello.fields["token"]), encode_frame(hello)

    async def frames() -> Any:
        yield opening
        await asyncio.sleep(LIMIT_S)

    async def again(channel: Any) -> None:
        while True:
            await stream(channel, token, frames())

    channels = [dial(address, certificate) for _ in range(8)]
    await asyncio.gather(*(again(channel) for channel in channels for _ in range(64)))


# Hostile devices that say it to Flower


def flower_says(content: Mapping[str, Any]) -> Callable[[], None]:
    def arm() -> None:
        clients.device.take_part = lambda session, node: dict(content)

    return arm


KINDS: Mapping[str, Callable[[], None]] = {
    "honest": lambda: None,
    "refuses": flower_says({"reason": "terms"}),
    "leaves at its first batch": answers(at(m.BATCH, leave("terms"))),
    "leaves at its first step": answers(at(m.STEP, leave("terms"))),
    "hellos without end": opens(hellos_without_end),
    "streams without end": opens(streams_without_end),
    "claims 2^40 rows": claims(1 << 40),
    "claims all rows allowed": both(claims(100_000), answers(evaluates_without_end())),
    "slow": answers(slow),
    "gradient of 3.3e38": answers(spoilt(m.STEP, "gradient")),
    "activation of 3.3e38": answers(spoilt(m.BATCH, "activation")),
    "says simulated": lambda: None,
    "says another's number": lambda: None,
    "class names in its last words": answers(class_names),
    "escapes in its reason": answers(at(m.STEP, leave(WORDS))),
    "escapes in its answer to Flower": flower_says({"reason": WORDS}),
    "escapes in its error at Flower": flower_says({"died": WORDS}),
}
SAYS: Mapping[str, Mapping[str, Any]] = {
    "says simulated": {"client": 3, "clients": 1, "simulated": True},
    "says another's number": {"client": 1, "clients": 4},
}
FLOODS = ("hellos without end", "streams without end")


def bound(work: Callable[[], None]) -> Callable[[], None]:
    """Let a process end with this one, however that ends."""
    parent = os.getpid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    def watched() -> None:
        threading.Thread(target=watch, daemon=True).start()
        work()

    return watched


def run(home: Path, kind: str) -> dict[str, Any]:
    """Run one federation; return its server's exit status, and what its memory came to."""
    home.mkdir()
    says = {10 + client: {"client": client, "clients": 4} for client in range(HONEST)}
    says[10 + int(BAD)] = dict(SAYS.get(kind, {"client": int(BAD), "clients": 4}))
    grid = Grid(home / "post", says)
    grid.folder.mkdir()

    def hostile() -> None:
        KINDS[kind]()
        device(grid, home, int(BAD))

    engine = fork(bound(lambda: server(grid, home / "run")), home / "server.txt")
    others = [
        fork(bound(lambda client=client: device(grid, home, client)), home / f"device-{client}.txt")
        for client in range(HONEST)
    ]
    others.append(fork(bound(hostile), home / "hostile.txt"))
    began, code, memory = time.monotonic(), None, []
    first: dict[Path, float] = {}
    process = psutil.Process(engine)
    while code is None and time.monotonic() - began < patient(LIMIT_S):
        child, status = os.waitpid(engine, os.WNOHANG)
        if child:
            code = os.waitstatus_to_exitcode(status)
            break
        invitations = grid.open(int(BAD))
        if invitations or memory or kind in SAYS:
            memory.append(process.memory_info().rss)
        for invitation in invitations if kind in FLOODS else ():
            # Flower notices a ClientApp that goes on and on for dead, and it is invited again.
            if time.monotonic() > first.setdefault(invitation, time.monotonic()) + 3.0:
                answer(invitation, {"died": "it hangs"})
        time.sleep(0.05)
    for child in (*others, *([engine] if code is None else [])):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    peak = max(memory, default=0)
    return {"code": code, "before": memory[0] if memory else 0, "peak": peak}


def main() -> None:
    home = Path(sys.argv[1])
    torch.set_num_threads(1)
    for number, line in enumerate(sys.stdin):
        folder = home / f"{number}"
        print(json.dumps({"folder": str(folder), **run(folder, line.strip())}), flush=True)


if __name__ == "__main__":
    main()
