"""A deployment of real processes gives what the in-process federation gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.deployment import Deployment

from clients.simulated_data import SimulatedData
from fedlora.commands.doctor_server import examine_server
from fedlora.config import Scenario, scenario_from_toml, scenario_to_toml, with_overrides
from fedlora.launch.guarded import free_port
from fedlora.server.results import export
from fedlora.split import slice_checkpoint
from simulations.in_process import Record, run

pytestmark = pytest.mark.e2e

DECODER = Path(__file__).parents[2] / "simulations" / "quickstart" / "decoder"
TELLS = 2  # the node whose owner lets statistics of its text be told
SCENARIO = """
name = "tiny"
[model]
path = "package:simulations/quickstart/decoder"
[task]
max_length = 24
[data]
label = "intent"
max_rows = 160
[federation]
clients = 3
[train]
rounds = 2
steps = 2
batch_size = 2
[head]
share = "step"
[lora]
r_max = 4
[evaluate]
baseline = false
"""


def tiny(*overrides: str) -> Scenario:
    return with_overrides(scenario_from_toml(SCENARIO), overrides)


def submit(deployment: Deployment, name: str, *overrides: str) -> Path:
    """Submit the tiny scenario with the tensor stream on a port of its own."""
    scenario, out = deployment.folder / f"{name}.toml", deployment.folder / name
    scenario.write_text(scenario_to_toml(tiny(f"link.port={free_port()}", *overrides)))
    deployment.run(scenario, out)
    return out


@pytest.fixture(scope="module")
def deployment(tmp_path_factory):
    with Deployment(tmp_path_factory.mktemp("deployment")) as running:
        for node in range(3):
            running.register(node)
            consent = 'privacy-statistics="true"' if node == TELLS else ""
            running.supernode(node, f"partition-id={node} num-partitions=3 {consent}".rstrip())
        yield running


def test_adapter_equals_the_in_process_one_bit_for_bit(deployment):
    out = submit(deployment, "plain")
    assert deployment.ended(out, 240)["status"] == "finished", deployment.words()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["clients"] == 3
    assert summary["steps"] == 4
    server = run(tiny(), Record())
    saved = load_file(out / "adapter" / "adapter_model.safetensors")
    factors = export(server).factors
    assert len(saved) == 2 * len(factors)
    for name, (A, B) in factors.items():
        assert torch.equal(saved[f"base_model.model.{name}.lora_A.weight"], A)
        assert torch.equal(saved[f"base_model.model.{name}.lora_B.weight"], B)


def test_only_the_device_whose_owner_agrees_tells_of_its_text(deployment):
    out = submit(deployment, "statistics", "ranks.statistics=true")
    assert deployment.ended(out, 240)["status"] == "finished", deployment.words()
    rounds = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    server = Record()
    run(tiny("ranks.statistics=true"), server)
    assert len(rounds) == len(server.rounds) == 2
    for record, simulated in zip(rounds, server.rounds, strict=True):
        told = {c: own["statistics"] for c, own in record["clients"].items() if "statistics" in own}
        assert told == {str(TELLS): simulated["clients"][str(TELLS)]["statistics"]}
    assert "2 of 3 clients" in (out / "log.txt").read_text()


def own_data(folder: Path, labels: list[str]) -> Path:
    """Write a device's own records."""
    path = folder / "own.csv"
    rows = [f"please do thing {i},{labels[i % len(labels)]}" for i in range(20)]
    path.write_text("\n".join(["text,intent", *rows]) + "\n")
    return path


def test_a_device_has_its_own_data_and_package_and_a_broken_one_is_reported(deployment):
    slice_checkpoint(DECODER, deployment.folder / "package")
    data = own_data(deployment.folder, ["alpha", "beta"])
    deployment.restart(1, f'partition-id=1 data="{data}" model="{deployment.folder / "package"}"')
    deployment.restart(2, 'partition-id=2 data="/nowhere/data.csv"')
    findings = examine_server(f"127.0.0.1:{deployment.port}", deployment.certs / "ca.crt")
    assert [f for f in findings if f.mend] == []
    labels = sorted({*SimulatedData(tiny(), 3).labels, "alpha", "beta"})
    out = submit(deployment, "own", f"task.labels={json.dumps(labels)}", "federation.min_clients=2")
    assert deployment.ended(out, 240)["status"] == "finished", deployment.words()
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["lost_clients"]) == {"2"}
    log = (out / "log.txt").read_text()
    assert "client 2 does not take part" in log
    assert "cannot use its data" in log and "/nowhere" not in log
    assert "there is no such" in (deployment.folder / "node2.txt").read_text()
    rounds = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [sorted(r["clients"]) for r in rounds] == [["0", "1"], ["0", "1"]]


@pytest.mark.slow
def test_devices_that_die_in_a_step_rejoin_while_the_others_go_on(deployment):
    """One loses its ClientApp, one its power; Flower holds both for connected for a while."""
    for node in range(3):
        deployment.restart(node, f"partition-id={node} num-partitions=3")
    out = submit(
        deployment,
        "killed",
        "federation.min_clients=3",
        "train.rounds=4",
        "train.steps=25",
        "link.step_timeout_s=30",
        "link.give_up_s=3",
    )
    metrics = out / "metrics.jsonl"
    deployment.until(metrics.exists, "the first round", 240)
    assert deployment.kill_client_app(1)
    deployment.cut_power(2)
    deployment.supernode_comes_up(2)
    assert deployment.ended(out, 240)["status"] == "finished", deployment.words()
    rounds = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [r["round"] for r in rounds] == [1, 2, 3, 4]
    assert sorted(client for r in rounds for client in r["lost"]) == ["1", "2"]
    rows = [{c: own["rows"] for c, own in r["clients"].items()} for r in rounds]
    assert min(r.get("1", 0) for r in rows) < 50  # nothing of it, if lost before the first step
    assert min(r.get("2", 0) for r in rows) < 50
    assert [r["0"] for r in rows] == [50, 50, 50, 50]
    assert rows[-1] == {"0": 50, "1": 50, "2": 50}
    assert json.loads((out / "summary.json").read_text())["lost_clients"] == {}
    assert "the run pauses" in (out / "log.txt").read_text()
