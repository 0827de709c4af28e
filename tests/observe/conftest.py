"""A run of four clients that is observed while it goes on."""

from __future__ import annotations

import socket
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.patience import patient

from clients.edge_client import EdgeClient
from fedlora.config import Scenario, scenario_to_toml, with_overrides
from fedlora.errors import ClientLost
from fedlora.link import Frame, messages as m
from fedlora.observe.recorder import observed
from fedlora.report import RunFolder
from simulations.in_process import Handler, connect

SETTINGS = (
    "name=watched",
    "data.label=intent",
    "data.max_rows=120",
    "task.max_length=24",
    "federation.clients=4",
    "lora.r_max=4",
    "head.share=step",
    "train.rounds=2",
    "train.steps=3",
    "train.batch_size=2",
    "channel.model=rayleigh",
    "channel.deliver_every=1",
    "evaluate.baseline=false",
    "observe.tensorboard=true",
    "observe.status_every_s=0.001",
    "compute.threads=1",
)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=patient(10)) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        return str(answer.read().decode())


@dataclass
class Watched:
    """A run that is over, and what was seen of it on the way."""

    folder: RunFolder
    port: int
    scraped: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Client 3 is lost in the second round; client 0 scrapes at every step, as Prometheus would."""
    pytest.importorskip("prometheus_client")
    pytest.importorskip("tensorboard")
    run = Watched(RunFolder.create(tmp_path_factory.mktemp("watched") / "run"), free_port())
    scenario: Scenario = with_overrides(
        Scenario(), [*SETTINGS, f"observe.prometheus_port={run.port}"]
    )
    run.folder.write_scenario(scenario_to_toml(scenario))

    def wrap(client: EdgeClient) -> Handler:
        def handle(frame: Frame) -> Frame:
            if frame.kind == m.STEP and client.name == "0":
                run.scraped.append(scrape(run.port))
            if frame.kind == m.STEP and client.name == "3" and frame.fields["step"] == 4:
                raise ClientLost("client 3 went [red]out[/red] of reach")
            return client.handle(frame)

        return handle

    with observed(run.folder, scenario) as recorder:
        server = connect(scenario, recorder, 1, wrap)
        recorder.clients = server.clients
        server.training.run()
        run.scraped.append(scrape(run.port))
    run.folder.append_event("done", status="finished", text="")
    return run


@pytest.fixture(scope="session")
def folder(watched: Watched) -> Path:
    """Folder of the run."""
    return watched.folder.path
