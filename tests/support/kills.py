"""Runs a federation of real processes over the stream and kills them at random moments.

``python -m support.kills FOLDER KILLS SEED`` plays Flower with files: an engine process writes
invitations, edge processes take them up. Processes are forked from this one, which has loaded
everything and never opens a stream, so that one is back within a moment. Prints what came of it as
JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import fedlora.server.flower.sessions
from clients.device import take_part
from clients.release.messages import MessageRelease
from clients.release.private import UploadRelease
from fedlora.config import scenario_from_toml, scenario_to_toml
from fedlora.link import through_flower
from fedlora.report import RunFolder
from fedlora.server.checkpoint import open_run
from fedlora.server.flower.edge_hosts import EdgeHosts
from fedlora.server.flower.nodes import RECORD, Node
from fedlora.server.flower.run import _train
from fedlora.server.results import write_results
from fedlora.server.run import ServerRun
from fedlora.storage.state import RoundStates
from support.patience import patient

SCENARIO = """
[model]
path = "package:simulations/quickstart/decoder"
[task]
max_length = 12
[data]
label = "intent"
max_rows = 60
[federation]
clients = 3
min_clients = 1
connect_timeout_s = 40
[train]
rounds = 6
steps = 8
batch_size = 4
[head]
share = "personal"
[lora]
r_max = 2
[privacy]
sigma = 4.0
uploads = 60  # with a reserve for rounds that are repeated
[link]
step_timeout_s = 5
give_up_s = 0.5
[evaluate]
baseline = false
every = 6
[compute]
threads = 1
"""
CLIENTS = 3
KILLS_A_RUN = 5
LIMIT_S = 240.0


class Post:
    """Flower's part: letters are files, and a letter in another's box is an answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def push_messages(self, messages: list[Any]) -> list[str]:
        names = []
        for message in messages:
            session = dict(message.content[RECORD])
            session["certificate"] = session["certificate"].decode()
            names.append(f"{session['client']}-{uuid.uuid4().hex}")
            put(self.folder / f"{names[-1]}.invitation", session)
        return names

    def pull_messages(self, names: list[str]) -> list[Any]:
        found = []
        for name in names:
            answer = self.folder / f"{name}.answer"
            if answer.exists():
                metadata = SimpleNamespace(reply_to_message_id=name)
                content = json.loads(answer.read_text())
                found.append(
                    SimpleNamespace(
                        metadata=metadata,
                        has_error=lambda died="died" in content: died,
                        error=SimpleNamespace(code=None, reason=content.get("died")),
                        content={RECORD: content},
                    )
                )
        return found

    def get_node_ids(self) -> list[int]:
        return list(range(CLIENTS))

    def send_and_receive(self, messages: list[Any], timeout: float | None = None) -> list[Any]:
        return []

    def open(self, client: int) -> list[Path]:
        """Return a client's invitations that nobody has answered."""
        return [
            path
            for path in sorted(self.folder.glob(f"{client}-*.invitation"))
            if not path.with_suffix(".answer").exists()
        ]


def put(path: Path, value: Any) -> None:
    aside = path.with_suffix(".aside")
    aside.write_text(json.dumps(value))
    aside.rename(path)


def engine(post: Post, out: Path, text: str = SCENARIO) -> None:
    """Run a scenario from the start, or from the last checkpoint."""
    fedlora.server.flower.sessions.Message = lambda content, **more: SimpleNamespace(
        content=content
    )
    scenario = scenario_from_toml(text)
    summary = RunFolder(out).read_summary()
    if summary is not None and not summary.get("unfinished"):
        return  # killed between its last word and its end
    if RoundStates(out / "checkpoint").rounds():
        scenario, folder = open_run(out)
    else:
        folder = RunFolder.create(out)
        folder.write_scenario(scenario_to_toml(scenario))
    server = ServerRun(scenario, folder)
    nodes = [Node(id=client, client=client, simulated=False) for client in range(CLIENTS)]
    write_results(
        folder,
        server,
        _train(post, server, nodes, EdgeHosts(server.scenario, nodes, 0, folder), folder),
    )
    folder.append_event("done", status="finished", text="")


def edge(post: Post, home: Path, client: int) -> None:
    """Take up one invitation after the other."""
    note_uploads(home / f"sent-{client}")
    node = {
        "partition-id": client,
        "scenario-data": "true",
        "state": str(home / "states"),
        "privacy-ledger": str(home / f"ledger-{client}"),
        "privacy-personal-head": "true",
    }
    while True:
        for invitation in post.open(client):
            session = json.loads(invitation.read_text())
            session["certificate"] = session["certificate"].encode()
            put(invitation.with_suffix(".answer"), through_flower(take_part(session, node)))
        time.sleep(0.02)


def note_uploads(path: Path) -> None:
    """Write down which samples' gradients are about to leave, whatever the ledger says."""
    for kind in (UploadRelease, MessageRelease):
        _note_uploads(kind, path)


def _note_uploads(kind: Any, path: Path) -> None:
    genuine = kind.__call__

    def noted(self: Any, gradient: Any, lengths: Any, samples: Any) -> Any:
        released = genuine(self, gradient, lengths, samples)
        with path.open("a") as file:
            file.write(json.dumps([self._charges.record(sample) for sample in samples]) + "\n")
        return released

    kind.__call__ = noted


def fork(work: Callable[[], None], log: Path) -> int:
    """Start work in a process of its own; its words go to a file."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = 1
    try:
        work()
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    finally:
        os._exit(code)


class Federation:
    """One run and its processes."""

    def __init__(self, home: Path, number: int, chance: random.Random) -> None:
        self.home, self.chance = home, chance
        self.post = Post(home / f"post-{number}")
        self.post.folder.mkdir()
        self.out = home / f"run-{number}"
        self.engine = self.start_engine()
        self.edges = {client: self.start_edge(client) for client in range(CLIENTS)}

    def start_engine(self) -> int:
        if not RoundStates(self.out / "checkpoint").rounds() and self.out.exists():
            self.out = self.out.with_name(self.out.name + "-anew")  # no round was finished
        return fork(lambda: engine(self.post, self.out), self.home / "engine.txt")

    def start_edge(self, client: int) -> int:
        work = lambda: edge(self.post, self.home, client)  # noqa: E731
        return fork(work, self.home / f"edge-{client}.txt")

    def kill(self) -> str:
        """Kill a process and start it again; who played Flower notices a dead edge."""
        victim = self.chance.choice(["engine", *self.edges])
        child = self.engine if victim == "engine" else self.edges[victim]
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        self.start_again(victim)
        return victim if victim == "engine" else f"edge {victim}"

    def start_again(self, victim: Any) -> None:
        """Start the engine or an edge that was killed."""
        if victim == "engine":
            for client in range(CLIENTS):  # the letters of a run that ended are void
                self.answer(client, "the run ended")
            self.engine = self.start_engine()
        else:
            self.answer(victim, "its ClientApp failed")
            self.edges[victim] = self.start_edge(victim)

    def answer(self, client: int, error: str) -> None:
        for invitation in self.post.open(client):
            put(invitation.with_suffix(".answer"), {"died": error})

    def over(self) -> int | None:
        """Return the engine's exit status once it has ended by itself."""
        child, status = os.waitpid(self.engine, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if child else None

    def end(self) -> None:
        for child in self.edges.values():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def main() -> None:
    home, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    chance = random.Random(seed)
    killed: Counter[str] = Counter()
    runs = []
    while killed.total() < kills:
        federation = Federation(home, len(runs), chance)
        began, due, here = time.monotonic(), time.monotonic() + chance.uniform(0.5, 3.0), 0
        while (code := federation.over()) is None and time.monotonic() - began < patient(LIMIT_S):
            if here < KILLS_A_RUN and killed.total() < kills and time.monotonic() > due:
                killed[federation.kill()] += 1
                here += 1
                due = time.monotonic() + chance.uniform(0.3, 3.0)
            time.sleep(0.01)
        federation.end()
        if code is None:
            os.kill(federation.engine, signal.SIGKILL)
        runs.append({"out": str(federation.out), "code": code, "kills": here})
        if code != 0:
            break
    print(json.dumps({"killed": killed, "runs": runs}))


if __name__ == "__main__":
    main()
