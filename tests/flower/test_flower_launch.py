"""The start of a SuperLink, which is played here: other programs may take its port meanwhile."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from fedlora import launch
from fedlora.errors import FedloraError
from fedlora.launch import FlowerSimulation, SimulationRequest, free_port

SUPERLINK = f"""#!{sys.executable}
import http.server, sys

class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Health).serve_forever()
"""


@pytest.fixture
def tools(tmp_path, monkeypatch):
    folder = tmp_path / "tools"
    folder.mkdir()
    for name, text in (("flower-superlink", SUPERLINK), ("flwr", "#!/bin/sh\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setattr(launch, "TOOLS", folder)
    return folder


def ask_for(folder: Path) -> FlowerSimulation:
    return FlowerSimulation(SimulationRequest(folder / "scenario.toml", folder, 2))


def test_a_port_that_was_taken_meanwhile_is_given_up_for_another(tools, tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        free = free_port()
        ports = [taken.getsockname()[1], free]
        monkeypatch.setattr(launch, "free_port", lambda: ports.pop(0))
        with ask_for(tmp_path) as simulation:
            home = Path(simulation._home.name)
            assert simulation.running
            assert f"127.0.0.1:{free}" in (home / "config.toml").read_text()
    assert not home.exists()
    assert ports == []


def test_a_superlink_that_ends_for_another_reason_is_not_started_again(tools, tmp_path):
    (tools / "flower-superlink").write_text("#!/bin/sh\necho begun\nexit 3\n")
    with pytest.raises(FedloraError, match="flower-superlink did not start"), ask_for(tmp_path):
        pass
    assert (tmp_path / "flower.txt").read_text() == "begun\n"
