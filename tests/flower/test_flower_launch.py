"""The start of a SuperLink, which is played here: other programs may take its port meanwhile."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest

from fedlora.errors import FedloraError
from fedlora.launch import flower_commands, guarded, simulation as launch
from fedlora.launch.guarded import free_port
from fedlora.launch.simulation import FlowerSimulation, SimulationRequest

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

FLWR = """#!/bin/sh
case $1 in
run) echo '{"success": true, "run-id": "7"}' ;;
log) echo "the log of run $2" ;;
list) echo '{"runs": [{"status-details": "Simulation failed"}]}' ;;
esac
"""


@pytest.fixture
def tools(tmp_path, monkeypatch):
    folder = tmp_path / "tools"
    folder.mkdir()
    for name, text in (("flower-superlink", SUPERLINK), ("flwr", FLWR)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    for module in (guarded, flower_commands):
        monkeypatch.setattr(module, "TOOLS", folder)
    return folder


def ask_for(folder: Path) -> FlowerSimulation:
    return FlowerSimulation(SimulationRequest(folder / "scenario.toml", folder, 2))


def test_a_port_that_was_taken_meanwhile_is_given_up_for_another(tools, tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        free = free_port()
        ports = [taken.getsockname()[1], free]
        monkeypatch.setattr(guarded, "free_port", lambda: ports.pop(0))
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


def test_what_flower_knows_of_a_run_that_ended_is_asked_for_and_its_log_is_kept(tools, tmp_path):
    with ask_for(tmp_path) as simulation:
        assert simulation.last_words() == "Simulation failed"
        (tools / "flwr").write_text("#!/bin/sh\necho something else\n")
        assert simulation.last_words() == ""
    assert simulation.last_words() == ""
    assert "the log of run 7\n" in (tmp_path / "flower.txt").read_text()


@pytest.mark.parametrize(("load", "times"), [(1.0, 3), (1.5, 5)])
def test_a_run_whose_ray_was_late_is_begun_again_more_often_the_busier_the_machine(
    tools, tmp_path, monkeypatch, load, times
):
    monkeypatch.setattr(launch, "stretch", lambda: load)
    with ask_for(tmp_path) as simulation:
        assert not simulation.begins_again()
        said = "Exception: The current node timed out during startup."
        (tools / "flwr").write_text(FLWR.replace("the log of run $2", said).replace("7", "8"))
        assert [simulation.begins_again() for _ in range(7)] == [True] * times + [False] * (
            7 - times
        )
        assert simulation._run_id == "8"
    assert not simulation.begins_again()


def test_a_run_that_flower_does_not_take_is_told_with_its_reason(tools, tmp_path):
    refusal = json.dumps({"success": False, "error-message": "Failed\nno such app"})
    (tools / "flwr").write_text(f"#!{sys.executable}\nprint({refusal!r})\n")
    with pytest.raises(FedloraError, match=r"\(no such app\); see .*flower.txt"):
        ask_for(tmp_path).__enter__()
