"""A site's log, audit file and ``fedlora site`` after a real run agree with server and ledger."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.deployment import ROOT, TOOLS, Deployment

from fedlora.config import scenario_from_toml, scenario_to_toml, with_overrides
from fedlora.launch.guarded import free_port
from fedlora.privacy.ledger import Ledger

pytestmark = pytest.mark.e2e

MODEL = ROOT / "simulations" / "quickstart" / "decoder"
SCENARIO = """
name = "wards"
[model]
path = "package:simulations/quickstart/decoder"
[task]
max_length = 16
labels = ["neg", "pos"]
[data]
label = "label"
[federation]
clients = 3
min_clients = 2
[train]
rounds = 4
steps = 75
batch_size = 4
[head]
share = "step"
[lora]
r_max = 2
[privacy]
epsilon = 4.0
release = "logits"
[link]
step_timeout_s = 30
give_up_s = 3
[evaluate]
baseline = false
"""
TENSORS = ("activations", "identifiers", "lengths", "gradients", "head")
LIMITS = {0: 5.0, 1: 8.0, 2: 0.5}


class Sites:
    """Three devices with data of their own; the last one's limit pays for nothing."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment, self.folder = deployment, deployment.folder
        for node in LIMITS:
            rng = random.Random(node)
            rows = [f"ward {node} asks {n} {rng.random():.3f},{'np'[n % 2]}" for n in range(48)]
            text = "\n".join(["text,label", *rows]).replace(",n", ",neg").replace(",p", ",pos")
            (self.folder / f"own{node}.csv").write_text(text + "\n")
            deployment.register(node)
            deployment.supernode(node, self.config(node))

    def config(self, node: int) -> str:
        """Return a device's node configuration."""
        own = {"data": self.folder / f"own{node}.csv", "text": "text", "label": "label"}
        own |= {"model": MODEL, "privacy-ledger": self.folder / f"ledger{node}"}
        pairs = " ".join(f'{key}="{value}"' for key, value in own.items())
        return f"partition-id={node} privacy-epsilon={LIMITS[node]} {pairs}"

    def submit(self, name: str, *overrides: str) -> Path:
        """Submit a run; return its folder."""
        scenario = with_overrides(scenario_from_toml(SCENARIO), [*overrides, f"name={name}"])
        scenario = with_overrides(scenario, [f"link.port={free_port()}"])
        path = self.folder / f"{name}.toml"
        path.write_text(scenario_to_toml(scenario))
        self.deployment.run(path, self.folder / name)
        return self.folder / name

    def facts(self, node: int) -> tuple[dict[str, Any], str]:
        """Return what ``fedlora site`` writes and prints."""
        file = self.folder / f"site{node}.json"
        command = ["site", self.deployment.states(node), "--json", file, "--overwrite"]
        done = subprocess.run(
            [TOOLS / "fedlora", *command], capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(file.read_text()), done.stdout

    def console(self, node: int) -> str:
        """Return what a SuperNode's terminal has shown."""
        return (self.folder / f"node{node}.txt").read_text()


def rounds_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def total(rounds: list[dict[str, Any]], client: str, key: str) -> int:
    return sum(record["clients"].get(client, {}).get(key, 0) for record in rounds)


def tensor_bits(session: dict[str, Any]) -> int:
    """Return the bits of all tensors that left a device, as the server counts them."""
    return 8 * sum(session["left"].get(kind, 0) for kind in TENSORS)


def test_every_figure_of_a_site_agrees_with_the_ledger_and_the_server(tmp_path: Path) -> None:
    with Deployment(tmp_path) as deployment:
        sites = Sites(deployment)
        out = sites.submit("first")
        deployment.until((out / "metrics.jsonl").exists, "the first round", 240)
        running, _ = sites.facts(0)
        assert running["sessions"][0]["state"] == "going on"
        assert deployment.kill_client_app(1)
        assert deployment.ended(out, 240)["status"] == "finished", deployment.words()
        again = sites.submit(
            "second", "train.rounds=1"
        )  # which the first device's limit does not pay for
        deployment.until(lambda: "second" in sites.console(0), "the second invitation", 240)
        deployment.ended(again, 240)
        found = {node: sites.facts(node) for node in LIMITS}
        check_undisturbed(sites, out, *found[0])
        check_killed(sites, out, *found[1])
        check_refused(sites, out, *found[2])
        for node in LIMITS:
            check_files(deployment.states(node), sites.console(node))


def check_undisturbed(sites: Sites, out: Path, facts: dict[str, Any], text: str) -> None:
    """The first device took part in one run from end to end, and refuses the next."""
    rounds = rounds_of(out)
    first, second = facts["sessions"]
    assert (first["name"], first["state"], first["round"]) == ("first", "finished", 4)
    assert f"scenario of sha256 {first['scenario']}" in (out / "log.txt").read_text()
    assert first["rows"] == {"train": 48, "held_out": 0, "left_out": 0}
    assert first["samples"] == total(rounds, "0", "rows") == 1200
    assert tensor_bits(first) == total(rounds, "0", "bits_up")
    assert first["ledger_after"]["epsilon"] == pytest.approx(rounds[-1]["clients"]["0"]["epsilon"])
    with Ledger(sites.folder / "ledger0", "0") as ledger:
        assert first["ledger_after"]["rho"] == facts["ledgers"][0]["rho"] == ledger.rho
        assert facts["ledgers"][0]["charges"] == ledger.seq
        assert facts["ledgers"][0]["epsilon"] == ledger.epsilon(1e-5)
    assert not second["accepted"] and second["left"] == {}
    assert "refused    it refuses the run, as its owner's terms do not allow it" in text
    assert "this device does not take part: what this run still needs" in sites.console(0)
    server = (sites.folder / "second" / "log.txt").read_text()
    assert "its owner's terms do not allow it" in server and "still needs" not in server


def check_killed(sites: Sites, out: Path, facts: dict[str, Any], text: str) -> None:
    """The second one's process was killed, and nothing of what it sent is lost."""
    first, *others = [s for s in facts["sessions"] if s["name"] == "first"]
    assert "killed" in first["state"] and first["left"]["activations"] > 0
    assert all(s["state"] == "finished" for s in others)  # none where the run was over before
    sent = sum(map(tensor_bits, [first, *others]))
    received = total(rounds_of(out), "1", "bits_up")
    assert received <= sent  # the last answer may not have arrived, or its round was left
    with Ledger(sites.folder / "ledger1", "1") as ledger:
        assert facts["ledgers"][0]["rho"] == ledger.rho
    assert "stopped or killed, or lost power" in text


def check_refused(sites: Sites, out: Path, facts: dict[str, Any], text: str) -> None:
    """The third one took part in nothing."""
    assert [(s["accepted"], s["left"]) for s in facts["sessions"]] == [(False, {})] * 2
    assert facts["ledgers"] == [] and "no run was accepted" in text
    assert "beyond its privacy-epsilon 0.5" in sites.console(2)
    assert "2" in json.loads((out / "summary.json").read_text())["lost_clients"]


def check_files(states: Path, console: str) -> None:
    """Both files are the owner's alone, whole, and the audit file holds no word of a record."""
    log, audit = states / "device.log", states / "audit.jsonl"
    assert [path.stat().st_mode & 0o777 for path in (log, audit)] == [0o600] * 2
    assert all(json.loads(line) for line in audit.read_text().splitlines())
    assert "asks " not in audit.read_text()
    assert set(log.read_text().splitlines()) <= set(console.splitlines())
