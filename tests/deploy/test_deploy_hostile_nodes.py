"""Nodes that lie to Flower about who they are neither end a deployment nor take another's place."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.deployment import Deployment

import clients
from fedlora.launch.guarded import free_port

pytestmark = pytest.mark.hostile
SCENARIO = """
name = "lies"
[model]
path = "package:simulations/quickstart/decoder"
[task]
max_length = 16
[data]
label = "intent"
max_rows = 100
[federation]
clients = 5
min_clients = 3
[train]
rounds = 2
steps = 2
batch_size = 2
[lora]
r_max = 2
[evaluate]
baseline = false
"""
# Of a SuperNode whose owner has replaced what the app imports there.
LYING_APP = """
from pathlib import Path

from flwr.app import ConfigRecord, RecordDict, Message
from flwr.clientapp import ClientApp

from clients.device import take_part

app = ClientApp()


def reply(message, record):
    return Message(RecordDict({"fedlora": ConfigRecord(record)}), reply_to=message)


@app.query("hello")
def hello(message, context):
    Path(__file__).with_name("said").touch()
    return reply(message, {"client": 3, "clients": 1, "simulated": True})


@app.train("session")
def session(message, context):
    record = message.content["fedlora"]
    return reply(message, take_part({str(k): record[k] for k in record}, context.node_config))
"""


def lying_app(folder: Path) -> str:
    """Return a path for Python on which the ClientApp is another."""
    package = folder / "lies" / "clients"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"__path__.append({str(Path(clients.__file__).parent)!r})")
    (package / "app.py").write_text(LYING_APP)
    return os.pathsep.join(filter(None, [str(package.parent), os.environ.get("PYTHONPATH", "")]))


def test_a_node_that_says_simulated_and_one_with_anothers_number_stop_nobody(tmp_path):
    out, path = tmp_path / "run", tmp_path / "lies.toml"
    path.write_text(SCENARIO + f"[link]\nport = {free_port()}\n")
    with Deployment(tmp_path, keys=5) as deployment:
        for node in range(5):
            deployment.register(node)
        for node in range(3):
            deployment.supernode(node, f"partition-id={node} num-partitions=5")
        deployment.supernode(3, "partition-id=3 num-partitions=5", PYTHONPATH=lying_app(tmp_path))
        deployment.supernode(4, "partition-id=1 num-partitions=5")
        deployment.run(path, out)
        assert deployment.ended(out, 240)["status"] == "finished", deployment.words()
    assert (tmp_path / "lies" / "clients" / "said").exists()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["lost_clients"] == {}
    rounds = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [sorted(record["clients"]) for record in rounds] == [["0", "1", "2", "3"]] * 2
    log = (out / "log.txt").read_text()
    assert "is refused: it says partition-id 1, which is that of node" in log
