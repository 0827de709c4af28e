"""Whole sessions of one client, frame by frame, as ``docs/protocol.md`` refers to them.

``PYTHONPATH=.:tests python -m support.exchanges`` records them anew, where the wire format changes.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from clients.build import hello, load_parts
from clients.simulated_data import SimulatedData
from fedlora.link import Frame, LocalLink, decode_frame, edge_executor, encode_frame
from fedlora.link.messages import WELCOME
from fedlora.server.run import ServerRun
from support.federation import Recorder, add_tokenizer, scenario, write_records
from support.tiny_models import random_model

FOLDER = Path(__file__).parents[1] / "link" / "exchanges"
_SMALL = (
    *("federation.clients=2", "task.max_length=4", "partition.kind=iid", "partition.min_rows=2"),
    *("train.rounds=1", "train.steps=2", "train.batch_size=2", "evaluate.batch_size=4"),
)
EXCHANGES = {
    "classifier": ("llama", ["data.label=label", "head.share=step", "channel.model=rayleigh"]),
    "language-model": (
        "gpt2",
        ["task.kind=causal_lm", "data.label=", "link.activation=int8", "train.embedding=true"],
    ),
}
Session = list[tuple[str, bytes]]
"""Who sent it, ``client`` or ``server``, and the frame."""


def record(name: str, folder: Path) -> Session:
    """Return all that client 0 and the server say to each other."""
    kind, own = EXCHANGES[name]
    torch.manual_seed(0)
    random_model(kind).save_pretrained(folder / "model")
    add_tokenizer(folder / "model", kind)
    data = write_records(folder / "rows.csv", 24, words=6)
    config = scenario(folder / "model", data, *_SMALL, *own)
    spread = SimulatedData(config, 2)
    parts, server = load_parts(config, spread.labels), ServerRun(config, Recorder())
    clients = [spread.build(parts, number) for number in range(2)]
    session: Session = []
    for client in clients:
        handle = client.handle
        if client is clients[0]:

            def handle(frame: Frame, own=client) -> Frame:
                session.append(("server", encode_frame(frame)))
                reply = own.handle(frame)
                session.append(("client", encode_frame(reply)))
                return reply

        opening = hello(parts, client, token="an invitation's")
        fields = {**server.admit(opening), "resume": "a secret of this session's"}
        if client is clients[0]:
            session.append(("client", encode_frame(opening)))
            handle(Frame(WELCOME, client.name, 0, fields))
        server.join(LocalLink(client.name, handle, edge_executor(1)), opening)
    server.training.run()
    server.end()
    return session


def recorded(name: str) -> Session:
    """Return a session as it is kept."""
    lines = (FOLDER / f"{name}.jsonl").read_text().splitlines()
    return [(line["from"], bytes.fromhex(line["frame"])) for line in map(json.loads, lines)]


def write(name: str) -> None:
    """Keep a session."""
    with tempfile.TemporaryDirectory() as folder:
        session = record(name, Path(folder))
    lines = [
        json.dumps({"from": who, "kind": decode_frame(data, 1 << 20).kind, "frame": data.hex()})
        for who, data in session
    ]
    (FOLDER / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    for each in EXCHANGES:
        write(each)
