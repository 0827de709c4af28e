"""A device that comes when a run is under way is taken in where there is a place for it."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.deployment import Deployment
from support.patience import patient
from test_deploy_sessions import NODES, Devices, letters, tiny  # noqa: F401  # letters: a fixture

import clients.device
from clients.state_store import ClientStateStore
from fedlora.config import FederationConfig, load_scenario, scenario_to_toml
from fedlora.launch.guarded import free_port
from fedlora.link import messages as m
from fedlora.link.stream import TokenStore
from fedlora.report import RunFolder
from fedlora.server.flower import late_nodes, questions
from fedlora.server.flower.edge_hosts import EdgeHosts
from fedlora.server.flower.late_nodes import LateNodes
from fedlora.server.flower.nodes import Node
from fedlora.server.flower.run import _train
from fedlora.server.run import ServerRun

FIRST = NODES[:1]


@pytest.fixture(autouse=True)
def always_due(monkeypatch):
    monkeypatch.setattr(late_nodes, "_LOOK_S", 0.0)


class Kept(Devices):
    """Devices whose clients can be looked at, and which may hold back answers."""

    def __init__(self, states: Path) -> None:
        super().__init__(states)
        self.heads: dict[tuple[str, int], dict[str, torch.Tensor]] = {}
        self.invitations: list[dict[str, Any]] = []
        self.hold: dict[str, float] = {}  # kind of request: seconds, of client 1

    def push_messages(self, messages):
        for message in messages:
            if message.kind == "train.session":
                self.invitations.append(dict(message.content["fedlora"]))
        return super().push_messages(messages)


def train_late(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *overrides: str,
    online: Sequence[Sequence[int]] = ([10], [10, 11]),
    nodes: Sequence[Node] = FIRST,
    **played: Any,
) -> tuple[Kept, ServerRun, RunFolder]:
    scenario = tiny(*("federation.min_clients=1", "train.rounds=6", "evaluate.every=6", *overrides))
    folder = RunFolder.create(tmp_path / "run")
    folder.write_scenario(scenario_to_toml(scenario))
    devices, server = Kept(tmp_path / "states"), ServerRun(scenario, folder)
    devices.online = list(online)
    for name, value in played.items():
        setattr(devices, name, value)

    class Watched(ClientStateStore):
        def handle(self, frame):
            if frame.kind == m.ROUND:
                own = self._client.head._parameters
                key = (frame.client, frame.fields["round"])
                devices.heads[key] = {name: p.detach().clone() for name, p in own.items()}
            if frame.client == "1":
                time.sleep(devices.hold.get(frame.kind, 0.0))
            return super().handle(frame)

    monkeypatch.setattr(clients.device, "ClientStateStore", Watched)
    _train(devices, server, nodes, EdgeHosts(server.scenario, nodes, 0, folder), folder)
    return devices, server, folder


def rounds_of(folder: RunFolder) -> list[list[str]]:
    return [sorted(record["clients"]) for record in folder.read_metrics()]


@pytest.mark.parametrize("share", ["step", "round", "personal"])
def test_a_device_that_comes_late_takes_part_from_the_next_round_on(
    tmp_path, monkeypatch, caplog, share
):
    caplog.set_level("INFO")
    devices, server, folder = train_late(tmp_path, monkeypatch, f"head.share={share}")
    taken = rounds_of(folder)
    first = taken.index(["0", "1"])
    assert 1 <= first < 5
    assert taken == [["0"]] * first + [["0", "1"]] * (6 - first)
    assert all(r["clients"]["1"]["rows"] == 4 for r in folder.read_metrics()[first:])
    assert devices.sent == [10, 11]
    assert [told["clients"] for told in devices.invitations] == [2, 2]  # parts of trial data differ
    assert server.cohort.lost == {}
    assert "the run begins with 1 of 2 clients (federation.clients)" in caplog.text
    assert "node 11 is invited as client 1, late" in caplog.text
    assert f"client 1 has come after round {first} and takes part" in caplog.text
    own, other = devices.heads["1", first + 1], devices.heads["0", first + 1]
    equal = all(torch.equal(own[name], other[name]) for name in own)
    assert equal == (share != "personal") and own


def test_late_devices_leave_the_rounds_before_them_bit_for_bit_as_they_are(tmp_path, monkeypatch):
    (tmp_path / "late").mkdir()
    (tmp_path / "alone").mkdir()
    _, _, late = train_late(tmp_path / "late", monkeypatch, "head.share=step")
    _, _, alone = train_late(tmp_path / "alone", monkeypatch, "head.share=step", online=[[10]])
    first = rounds_of(late).index(["0", "1"])
    losses = [[r["train_loss"] for r in folder.read_metrics()] for folder in (late, alone)]
    assert losses[0][:first] == losses[1][:first]
    assert losses[0][first:] != losses[1][first:]


def test_under_privacy_a_late_device_states_its_plan_and_its_sampling_counts(tmp_path, monkeypatch):
    """Its rows are few, so that its sampling rate is the federation's largest."""
    private = ["privacy.sigma=2.0", "head.share=personal", "partition.min_rows=2"]
    skewed = ["partition.kind=dirichlet", "partition.alpha=0.3", "seed=3"]
    _, server, folder = train_late(tmp_path, monkeypatch, *private, *skewed)
    assert rounds_of(folder)[-1] == ["0", "1"]
    events, _ = folder.read_events()
    assert [e["client"] for e in events if e["event"] == "budget"] == ["0", "1"]
    spending = server.training.spending
    rows = [server.cohort[client].rows for client in "01"]
    assert spending._rate == 2 / min(rows)
    assert spending._rho.keys() == {"0", "1"}


def test_a_resumed_run_takes_in_who_had_not_come_before(tmp_path, monkeypatch):
    folder = train_late(tmp_path, monkeypatch, online=[[10]])[2]
    gc.collect()  # the run that has ended holds its folder no longer
    assert load_scenario(folder.scenario).federation.clients == 2
    again = tiny("federation.min_clients=1", "train.rounds=9", "evaluate.every=9")
    devices, server = Devices(tmp_path / "states"), ServerRun(again, folder)
    _train(devices, server, NODES, EdgeHosts(server.scenario, NODES, 0, folder), folder)
    assert rounds_of(folder) == [["0"]] * 6 + [["0", "1"]] * 3


REFUSED = {
    "another's number": ({11: 0}, {}, "it says partition-id 0, which is that of node 10"),
    "a number beyond": ({11: 2}, {}, "it says partition-id 2, and federation.clients is 2"),
    "no number": ({11: "one"}, {}, "does not say who it is"),
    "a negative one": ({11: -1}, {}, "does not say who it is"),
    "not named": ({11: 1}, {"nodes": '["10","12"]'}, "federation.nodes names it not"),
    "bound to another": ({11: 0}, {"nodes": '["10","11"]'}, "federation.nodes binds it to clie"),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_a_late_node_without_a_free_place_is_told_of_and_the_run_goes_on(
    tmp_path, monkeypatch, caplog, refused
):
    says, keys, reason = REFUSED[refused]
    more = [f"federation.{key}={value}" for key, value in keys.items()]
    devices, _, folder = train_late(tmp_path, monkeypatch, *more, says=says)
    assert rounds_of(folder) == [["0"]] * 6
    assert devices.sent == [10]
    told = [line for line in caplog.messages if reason in line]
    assert len(told) == 1
    assert told[0].startswith("node 11 ")


def test_a_full_federation_asks_nobody_and_says_so(tmp_path, monkeypatch, caplog):
    online = ([10, 11], [10, 11, 12])
    devices, _, folder = train_late(tmp_path, monkeypatch, nodes=NODES, online=online)
    assert rounds_of(folder) == [["0", "1"]] * 6
    assert devices.asked == []
    told = [line for line in caplog.messages if "node 12" in line]
    assert len(told) == 1
    assert "the run has had all its clients, federation.clients is 2; set more for" in told[0]


def test_of_two_late_nodes_with_one_number_one_is_taken(tmp_path, monkeypatch, caplog):
    devices, _, folder = train_late(tmp_path, monkeypatch, online=([10], [10, 11, 12]))
    assert devices.sent == [10, 11]
    assert rounds_of(folder)[-1] == ["0", "1"]
    assert any("node 12 is refused: it says partition-id 1" in line for line in caplog.messages)


def test_no_late_node_takes_the_place_of_a_client_that_flower_cannot_reach(
    tmp_path, monkeypatch, caplog
):
    """Its stream is up, and so it takes part."""
    online = ([10], [11])
    devices, _, folder = train_late(tmp_path, monkeypatch, online=online, says={11: 0})
    assert rounds_of(folder) == [["0"]] * 6
    assert devices.sent == [10]


def test_a_late_node_that_does_not_say_who_it_is_holds_up_nobody(tmp_path, monkeypatch):
    began = time.monotonic()
    (tmp_path / "silent").mkdir()
    devices, _, folder = train_late(tmp_path / "silent", monkeypatch, silent={11})
    silent_s = time.monotonic() - began
    began = time.monotonic()
    (tmp_path / "alone").mkdir()
    train_late(tmp_path / "alone", monkeypatch, online=[[10]])
    assert rounds_of(folder) == [["0"]] * 6
    assert devices.asked == [11]
    assert silent_s < patient(2 * (time.monotonic() - began) + 2.0)


@pytest.mark.parametrize("kind", [m.RESTORE, m.HEAD])
def test_a_late_device_that_does_not_begin_costs_the_others_one_limit_in_all(
    tmp_path, monkeypatch, caplog, kind
):
    limits = ["link.step_timeout_s=1", "link.give_up_s=0", "head.share=step"]
    _, _, folder = train_late(tmp_path, monkeypatch, *limits, hold={kind: 3.0})
    assert len(rounds_of(folder)) == 6
    assert all("0" in taken for taken in rounds_of(folder))
    assert caplog.text.count("client 1 gave no reply") <= 1  # then their patience is used up
    assert "client 1 is away, and is invited again: client 1 was late" in caplog.text
    assert "1" not in rounds_of(folder)[1]


def test_a_late_device_that_never_connects_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(
        Devices,
        "_run",
        lambda self, name, message, run=Devices._run: (
            run(self, name, message) if message.metadata.dst_node_id == 10 else None
        ),
    )
    began = time.monotonic()
    devices, server, folder = train_late(tmp_path, monkeypatch)
    assert rounds_of(folder) == [["0"]] * 6
    assert devices.sent == [10, 11]
    assert server.cohort.lost == {"1": "it has come late, and has not connected"}
    assert time.monotonic() - began < patient(30.0)


def test_a_device_that_was_too_slow_to_connect_has_longer_the_next_time(tmp_path, monkeypatch):
    granted: list[tuple[str, float]] = []
    monkeypatch.setattr(
        TokenStore,
        "grant",
        lambda self, client, valid_s, grant=TokenStore.grant: (
            granted.append((client, valid_s)) or grant(self, client, valid_s)
        ),
    )

    def slow(self, name, message, run=Devices._run):
        time.sleep(1.2 if message.metadata.dst_node_id == 11 else 0.0)
        run(self, name, message)

    monkeypatch.setattr(Devices, "_run", slow)
    settings = ["federation.connect_timeout_s=1", "train.rounds=60", "evaluate.every=60"]
    _, _, folder = train_late(tmp_path, monkeypatch, *settings)
    times = [valid_s for client, valid_s in granted if client == "1"]
    assert times == [1.0, 2.0, 4.0, 8.0, 16.0][: len(times)]
    assert len(times) > 1
    assert rounds_of(folder)[-1] == ["0", "1"]


class Clock:
    """Goes on by what is slept."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(questions, "time", made)
    return made


def test_a_silent_node_is_asked_less_and_less_and_little_of_a_round_is_waited(clock):
    grid = Devices(Path())
    grid.silent = {11}
    late = LateNodes(grid, FederationConfig(clients=2), clock.monotonic)
    nodes = {"0": FIRST[0]}
    waited = 0.0
    for _ in range(500):
        clock.now += 20.0  # a round
        before = clock.now
        assert late.seat([10, 11], nodes, []) == {}
        assert clock.now - before <= 0.05 * 20.0 + 0.11  # a share of the round, and one look
        waited += clock.now - before
    assert 15 < len(grid.asked) < 30  # 10 s, 20 s, 40 s and so on to 600 s
    assert waited < 0.01 * clock.now


def test_the_waiting_for_lost_devices_is_bounded_over_the_run(clock):
    grid = Devices(Path())
    late = LateNodes(grid, FederationConfig(clients=2), clock.monotonic)
    nodes = {"0": NODES[0], "1": NODES[1]}
    for stranger in range(100, 200):  # each looks like the lost one, until it is asked
        grid.silent = {stranger}
        assert late.seat([10, stranger], nodes, ["1"]) == {}
    assert clock.now < late_nodes._FOR_LOST_S + 1.0
    grid.silent = set()
    assert late.seat([10, 300], nodes, ["1"]) == {"1": Node(300, 1, simulated=False)}


SCENARIO_E2E = """
name = "late"
[model]
path = "package:simulations/quickstart/decoder"
[task]
max_length = 24
[data]
label = "intent"
max_rows = 160
[federation]
clients = 2
min_clients = 1
connect_timeout_s = CONNECT_S
[train]
rounds = 5000
steps = 20
batch_size = 2
[lora]
r_max = 2
[evaluate]
every = 100000
baseline = false
"""


@pytest.mark.e2e
@pytest.mark.slow
def test_a_supernode_that_is_started_after_the_first_rounds_takes_part(tmp_path):
    with Deployment(tmp_path, keys=2) as running:
        for node in range(2):
            running.register(node)
        running.supernode(0, "partition-id=0")
        scenario, out = tmp_path / "late.toml", tmp_path / "run"
        text = SCENARIO_E2E.replace("CONNECT_S", f"{patient(40.0):.0f}")
        scenario.write_text(f"{text}[link]\nport = {free_port()}\n")
        running.run(scenario, out)
        folder = RunFolder(out)
        running.until(lambda: len(folder.read_metrics()) > 1, "two rounds of one client", 300)
        assert rounds_of(folder)[0] == ["0"]
        running.supernode(1, "partition-id=1")
        running.until(lambda: rounds_of(folder)[-1] == ["0", "1"], "the late device", 240)
        log = (out / "log.txt").read_text()
        assert "the run begins with 1 of 2 clients" in log
        assert "client 1 has come after round" in log
