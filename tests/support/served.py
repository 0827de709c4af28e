"""A run of a tiny random chat model as its folder would be, and what serves it over TLS."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clients.generation import Credentials, DraftPace, RemoteRow, ServerConnection, Writer
from clients.owner import Door, OwnerTerms
from fedlora.config import Scenario, scenario_to_toml, with_overrides
from fedlora.generation.admission import Admission
from fedlora.generation.engine import GenerationEngine
from fedlora.generation.listener import GenerationListener
from fedlora.generation.usage import Usage
from fedlora.launch.keys import write_keys
from fedlora.link.stream import read_known_devices, read_node_key
from fedlora.link.stream.tls import read_identity
from fedlora.report import RunFolder
from fedlora.split import Checkpoint
from support.chat_folders import SMOLLM2, write_chat_model
from support.generation import Generation, random_adapter

RANKS = {"0": 4, "1": 1, "2": 2}


def served_run(root: Path, *overrides: str, ranks: Mapping[str, int] = RANKS) -> Path:
    """Return the folder of a run of conversations whose clients have these ranks."""
    model = write_chat_model(root / "model", SMOLLM2)
    settings = [f"model.path={model}", "task.kind=causal_lm", "data.messages=messages"]
    settings += ["lora.r_max=4", "lora.alpha=8", "channel.model=awgn", *overrides]
    config = with_overrides(Scenario(), settings)
    engine = GenerationEngine(Checkpoint(model), config)
    folder = RunFolder.create(root / "run")
    folder.write_scenario(scenario_to_toml(config))
    random_adapter(engine, model).save(folder.adapter)
    width = len(engine.projections)
    clients: Any = {client: {"ranks": [rank] * width} for client, rank in ranks.items()}
    folder.append_round({"round": 1, "clients": clients})
    folder.append_event("done", status="finished", text="")
    folder.release()
    return folder.path


class Served:
    """A tiny model behind a port of loopback, with TLS and a node key for each client.

    Parameters
    ----------
    split
        The model and its clients.
    certs
        Folder of the keys, which are made if need be.
    """

    def __init__(self, split: Generation, certs: Path, port: int = 0) -> None:
        if not certs.exists():
            write_keys(certs, ["localhost"], len(split.ranks))
        self.split, self.certs = split, certs
        identity = read_identity(certs / "server.pem", certs / "server.key")
        known, geometry = read_known_devices(certs), split.engine.geometry
        self.usage = Usage(split.scenario, split.server)
        admission = Admission(split.scenario.link, geometry, known, identity.certificate_pem)
        self.listener = GenerationListener(
            *(split.server, admission, self.usage, "127.0.0.1", port),
            identity=identity,
            max_frame_bytes=1 << 22,
        )
        self.address = f"localhost:{self.listener.port}"

    def connection(self, client: str, *addresses: str, **options: Any) -> ServerConnection:
        """Return a device's way here, or to other addresses; not dialled yet."""
        key = read_node_key(self.certs / f"node{client}")
        credentials = Credentials((self.certs / "ca.crt").read_bytes(), key)
        return ServerConnection(
            *(addresses or (self.address,), credentials, Door(OwnerTerms(deployed=True))),
            *(self.split.scenario.link, self.split.engine.geometry),
            **{"give_up_s": 20.0, **options},
        )

    def writer(
        self, connection: ServerConnection, ends: Sequence[int] = (), longest_draft: int = 0
    ) -> Writer:
        """Return what writes over a connection, which is dialled."""
        connection.connect()
        row = RemoteRow(
            *(connection.ask, connection.client, Door(OwnerTerms(deployed=True))),
            *(self.split.identity, self.split.scenario.link, self.split.engine.geometry),
        )
        return Writer(self.split.text_ends(), row, ends, DraftPace(longest_draft))


@contextlib.contextmanager
def served(split: Generation, certs: Path, port: int = 0) -> Iterator[Served]:
    """Serve a model until the context ends."""
    found = Served(split, certs, port)
    try:
        yield found
    finally:
        found.listener.stop(0.0)
