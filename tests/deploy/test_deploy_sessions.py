"""Sessions of devices: opened by an invitation, lost, and opened again; Flower's part is played."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.relay import Relay

import clients.device
import fedlora.server.flower.questions
import fedlora.server.flower.sessions
from clients.device import take_part
from clients.state_store import ClientStateStore
from fedlora.config import NodeKeys, Scenario, scenario_from_toml, scenario_to_toml, with_overrides
from fedlora.errors import FedloraError
from fedlora.launch.guarded import free_port
from fedlora.link import Frame, through_flower
from fedlora.link.stream.client.client import StreamClient
from fedlora.privacy.ledger import Ledger
from fedlora.report import RunFolder
from fedlora.server.flower.edge_hosts import EdgeHosts
from fedlora.server.flower.nodes import RECORD, Node
from fedlora.server.flower.run import _train
from fedlora.server.flower.sessions import Places, Sessions, session_ttl_s
from fedlora.server.run import ServerRun

SCENARIO = """
[model]
path = "package:simulations/quickstart/decoder"
[task]
max_length = 12
[data]
label = "intent"
max_rows = 30
[federation]
clients = 2
min_clients = 2
connect_timeout_s = 60
[train]
rounds = 3
steps = 2
batch_size = 2
[lora]
r_max = 2
[evaluate]
baseline = false
every = 3
"""
NODES = [Node(id=10, client=0, simulated=False), Node(id=11, client=1, simulated=False)]


def tiny(*overrides: str) -> Scenario:
    return with_overrides(scenario_from_toml(SCENARIO), overrides)


class Devices:
    """Plays Flower: each session message starts the device's part in a thread."""

    def __init__(self, states: Path, port: int = 0) -> None:
        self.states = states
        self.port = port  # that devices dial in place of the server's
        self.sent: list[int] = []
        self.asked: list[int] = []  # who they are
        self.says: dict[int, object] = {}  # which client a node says to be; 1 where it is not here
        self.silent: set[int] = set()
        self.online = [[node.id for node in NODES]]  # at each look; the last from then on
        self._replies: list[SimpleNamespace] = []
        self._lock = threading.Lock()

    def push_messages(self, messages):
        names = []
        for message in messages:
            if message.kind == "query.hello":
                node = message.metadata.dst_node_id
                names.append(f"question-{node}-{len(self.asked)}")
                self.asked.append(node)
                if node in self.silent:
                    continue
                told = {"client": self.says.get(node, 1), "clients": 2}
                self._replies.append(
                    SimpleNamespace(
                        metadata=SimpleNamespace(reply_to_message_id=names[-1]),
                        has_error=lambda: False,
                        content={RECORD: told},
                    )
                )
                continue
            names.append(f"message-{len(self.sent)}")
            self.sent.append(message.metadata.dst_node_id)
            threading.Thread(target=self._run, args=(names[-1], message), daemon=True).start()
        return names

    def pull_messages(self, ids):
        with self._lock:
            found = [r for r in self._replies if r.metadata.reply_to_message_id in ids]
            self._replies = [r for r in self._replies if r not in found]
        return found

    def get_node_ids(self):
        return self.online.pop(0) if len(self.online) > 1 else self.online[0]

    def _run(self, name, message):
        ledger = self.states.with_name(f"ledger-{message.content[RECORD]['client']}")
        node = {
            "scenario-data": "true",
            "state": str(self.states),
            "privacy-ledger": str(ledger),
            "privacy-personal-head": "true",
        }
        session = dict(message.content[RECORD])
        if self.port:
            session["address"] = f"127.0.0.1:{self.port}"
        told = take_part(session, node)
        metadata = SimpleNamespace(
            reply_to_message_id=name, src_node_id=message.metadata.dst_node_id
        )
        reply = SimpleNamespace(
            metadata=metadata,
            has_error=lambda: False,
            content={RECORD: through_flower(told)},
        )
        with self._lock:
            self._replies.append(reply)


def letter(content, *, dst_node_id, message_type, ttl):
    """A message that can be written outside Flower's processes."""
    assert message_type == "train.session"
    assert ttl > 0
    metadata = SimpleNamespace(dst_node_id=dst_node_id)
    return SimpleNamespace(content=content, metadata=metadata, kind=message_type)


def question(content, *, dst_node_id, message_type):
    assert message_type == "query.hello"
    metadata = SimpleNamespace(dst_node_id=dst_node_id)
    return SimpleNamespace(content=content, metadata=metadata, kind=message_type)


@pytest.fixture(autouse=True)
def letters(monkeypatch):
    monkeypatch.setattr(fedlora.server.flower.sessions, "Message", letter)
    monkeypatch.setattr(fedlora.server.flower.questions, "Message", question)


class CutOff:
    """Breaks the stream of some clients when they are asked for some of their steps, or others."""

    def __init__(self) -> None:
        self.clients = {"1"}
        self.kind = "step"
        self.steps = [3]
        self.streams: dict[str, StreamClient] = {}
        self.asked: Counter[str] = Counter()
        self.kept: defaultdict[str, list[int]] = defaultdict(list)

    def look(self, client: str, kind: str) -> None:
        if client in self.clients and kind == self.kind:
            self.asked[client] += 1
            if self.asked[client] in self.steps:
                self.streams[client]._stream.call.cancel()


@pytest.fixture
def cut_off(monkeypatch):
    breaks = CutOff()

    class Noted(StreamClient):
        def serve(self, clients, hellos, **limits):
            breaks.streams |= dict.fromkeys(clients, self)
            super().serve(clients, hellos, **limits)

    class Unlucky(ClientStateStore):
        def handle(self, frame):
            breaks.look(frame.client, frame.kind)
            reply = super().handle(frame)
            if frame.kind == "keep":
                breaks.kept[frame.client].append(reply.fields["round"])
            return reply

    monkeypatch.setattr(clients.device, "StreamClient", Noted)
    monkeypatch.setattr(clients.device, "ClientStateStore", Unlucky)
    return breaks


def train(
    scenario: Scenario,
    tmp_path: Path,
    port: int = 0,
    online: Sequence[Sequence[int]] = (),
    nodes: Sequence[Node] = NODES,
) -> tuple[Devices, ServerRun, RunFolder]:
    folder = RunFolder.create(tmp_path / "run")
    devices, server = Devices(tmp_path / "states", port), ServerRun(scenario, folder)
    devices.online = list(online) or devices.online
    _train(devices, server, nodes, EdgeHosts(server.scenario, nodes, 0, folder), folder)
    return devices, server, folder


FEW_BITS = (
    "task.kind=causal_lm",
    "link.activation=rotated",
    "link.representation=entropy",
    "link.gradient=entropy",
    "partition.kind=iid",
    "train.steps=6",
)
"""Each round is a pass, so that from the second on what is left of representations goes down."""


@pytest.mark.parametrize("more", [(), FEW_BITS], ids=["exact", "few bits"])
def test_a_device_whose_stream_breaks_goes_on_where_it_was(tmp_path, cut_off, more):
    cut_off.steps = [1, 3, 4, 6, 8, 13, 15, 18]
    (tmp_path / "broken").mkdir()
    (tmp_path / "whole").mkdir()
    devices, server, folder = train(tiny(*more), tmp_path / "broken")
    assert devices.sent == [10, 11]
    assert [r["lost"] for r in folder.read_metrics()] == [[], [], []]
    cut_off.steps = []
    _, undisturbed, whole = train(tiny(*more), tmp_path / "whole")
    expected, found = undisturbed.engine.adapter(), server.engine.adapter()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    held_to_the_same_bits(folder, whole, residuals=bool(more))


def held_to_the_same_bits(folder: RunFolder, whole: RunFolder, *, residuals: bool) -> None:
    """Hold a disturbed run's account to another's, in which rounds after the first take less."""
    first, second = ([r["bits"] for r in own.read_metrics()] for own in (folder, whole))
    assert first == second
    down = [bits["down"]["representation"] for bits in first]
    assert (max(down[1:]) < 0.9 * down[0]) == residuals


@pytest.mark.parametrize("public", ["::1", "[::1]"])
def test_devices_find_a_server_by_its_ipv6_address(tmp_path, public):
    hosts = ["link.host=::1", f'link.public_host="{public}"', "train.rounds=1"]
    devices, _, folder = train(tiny(*hosts, "federation.connect_timeout_s=20"), tmp_path)
    assert devices.sent == [10, 11]
    assert folder.read_metrics()[0]["lost"] == []


@pytest.mark.e2e
def test_a_slow_link_that_stalls_and_breaks_changes_no_bit_and_is_reported(tmp_path):
    """10 Mbit/s and 50 ms each way; rates are measured under the disturbances, so only roughly."""
    measured = ["channel.model=measured", "train.steps=6"]
    (tmp_path / "slow").mkdir()
    (tmp_path / "plain").mkdir()
    listening = free_port()
    shape = {"stall_every_s": 2.0, "stall_s": 0.3, "reset_every_s": 3.0, "seed": 3}
    with Relay(listening, rate_bps=10e6, delay_s=0.05, **shape) as relay:
        _, server, folder = train(
            tiny(f"link.port={listening}", *measured), tmp_path / "slow", relay.port
        )
    assert relay.resets > 0
    assert relay.stalls > 0
    rounds = folder.read_metrics()
    assert [r["lost"] for r in rounds] == [[], [], []]
    for record in rounds:
        for own in record["clients"].values():
            assert 1e5 < own["rate_bps"] < 12e6
    _, whole, _ = train(tiny(*measured), tmp_path / "plain")
    expected, found = whole.engine.adapter(), server.engine.adapter()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_broken_stream_charges_no_sample_twice(tmp_path, cut_off):
    cut_off.steps = range(1, 7)
    private = ["privacy.sigma=2.0", "head.share=personal", "train.rounds=3"]
    (tmp_path / "broken").mkdir()
    (tmp_path / "whole").mkdir()
    _, server, _ = train(tiny(*private), tmp_path / "broken")
    cut_off.steps = []
    _, whole, _ = train(tiny(*private), tmp_path / "whole")
    assert server.training.spending.state_dict() == whole.training.spending.state_dict()
    charges = []
    for folder in ("broken", "whole"):
        with Ledger(tmp_path / folder / "ledger-1", "1") as ledger:
            charges.append(sorted(ledger._book.spent.values()))
    assert charges[0] == charges[1] != []


def test_a_device_that_is_gone_is_left_out_and_rejoins(tmp_path, cut_off):
    devices, server, folder = train(tiny("link.give_up_s=0"), tmp_path)
    rounds = folder.read_metrics()
    assert [r["round"] for r in rounds] == [1, 2, 3]
    assert [r["lost"] for r in rounds] == [[], ["1"], []]
    assert [{c: own["rows"] for c, own in r["clients"].items()} for r in rounds] == [
        {"0": 4, "1": 4},
        {"0": 4, "1": 0},
        {"0": 4, "1": 4},
    ]
    assert devices.sent == [10, 11, 11]
    assert server.cohort.lost == {}
    assert server.cohort.times_lost["1"] == 1
    assert cut_off.kept == {"0": [0, 1, 2, 3], "1": [0, 1, 3]}
    [run] = [path for path in (tmp_path / "states").iterdir() if path.is_dir()]
    assert list(run.iterdir()) == []  # the run has ended, and so have its states


def test_a_device_that_is_lost_too_often_is_not_invited_again(tmp_path, cut_off):
    cut_off.steps = range(100)
    devices, server, folder = train(
        tiny(
            "train.rounds=6",
            "federation.min_clients=1",
            "evaluate.every=6",
            "link.give_up_s=0",
        ),
        tmp_path,
    )
    assert len(folder.read_metrics()) == 6
    assert devices.sent.count(11) <= 4
    assert server.cohort.clients == ["0"]
    assert "gone" in server.cohort.lost["1"]


@pytest.mark.parametrize(
    ("step", "more"), [(1, ()), (3, ()), (15, FEW_BITS)], ids=["first", "third", "few bits"]
)
def test_a_round_that_everybody_left_is_begun_again_from_the_checkpoint(
    tmp_path, cut_off, step, more
):
    cut_off.clients, cut_off.steps = {"0", "1"}, [step]
    (tmp_path / "broken").mkdir()
    (tmp_path / "whole").mkdir()
    devices, server, folder = train(tiny("link.give_up_s=0", *more), tmp_path / "broken")
    assert sorted(devices.sent) == [10, 10, 11, 11]
    assert [r["round"] for r in folder.read_metrics()] == [1, 2, 3]
    cut_off.clients = set()
    _, whole, undisturbed = train(tiny(*more), tmp_path / "whole")
    expected, found = whole.engine.adapter(), server.engine.adapter()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    held_to_the_same_bits(folder, undisturbed, residuals=bool(more))


@pytest.mark.parametrize("kind", ["welcome", "phase", "keep", "round"])
def test_a_federation_that_dies_before_its_first_step_is_begun_again(tmp_path, cut_off, kind):
    cut_off.clients, cut_off.kind, cut_off.steps = {"0", "1"}, kind, [1]
    devices, _, folder = train(tiny("link.give_up_s=0", "evaluate.baseline=true"), tmp_path)
    assert sorted(devices.sent) == [10, 10, 11, 11]
    assert [r["round"] for r in folder.read_metrics()] == [1, 2, 3]


def test_a_device_that_is_away_is_invited_when_it_can_be_reached(tmp_path, cut_off):
    cut_off.steps = [1]
    limits = ["link.give_up_s=0", "federation.min_clients=1"]
    devices, *_ = train(tiny(*limits), tmp_path, online=[[10]])
    assert devices.sent == [10, 11]
    cut_off.asked.clear()
    (tmp_path / "seen").mkdir()
    devices, *_ = train(tiny(*limits), tmp_path / "seen", online=[[10], [10, 11]])
    assert devices.sent == [10, 11, 11]


def test_a_device_that_starts_again_under_another_node_number_is_found(tmp_path, cut_off):
    cut_off.steps = [1]
    devices, _, folder = train(tiny("link.give_up_s=0"), tmp_path, online=[[10], [10, 37]])
    assert devices.sent == [10, 11, 37]
    assert set(folder.read_metrics()[-1]["clients"]) == {"0", "1"}


def test_a_device_that_never_returns_ends_the_run_after_a_while(tmp_path, cut_off, monkeypatch):
    """The server's clock goes on by half of the limit at each look for the device."""
    cut_off.steps = [3]
    looks: list[None] = []

    def look(self) -> list[int]:
        looks.append(None)
        return [10]

    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 30.0 * len(looks))
    monkeypatch.setattr(fedlora.server.flower.sessions, "time", clock)
    monkeypatch.setattr(Devices, "get_node_ids", look)
    with pytest.raises(FedloraError, match=r"1 of 2 clients are connected.*client 1: .*gone"):
        train(tiny("link.give_up_s=0"), tmp_path)
    assert len(looks) == 2
    assert [r["round"] for r in RunFolder(tmp_path / "run").read_metrics()] == [1, 2]


def test_too_few_devices_end_the_run_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(clients.device, "hello", _wrong_hello)
    with pytest.raises(FedloraError, match=r"1 of 2 clients are connected.*protocol"):
        train(tiny(), tmp_path)


def test_a_client_that_is_refused_is_left_out_of_a_deployment_and_ends_a_simulation(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(clients.device, "hello", _wrong_hello)
    scenario = tiny("federation.min_clients=1", "train.rounds=1")
    _, server, _ = train(scenario, tmp_path / "deployment")
    assert set(server.cohort.lost) == {"1"}
    simulated = [replace(node, simulated=True) for node in NODES]
    with pytest.raises(FedloraError, match=r"client 1 of the simulation .*protocol"):
        train(scenario, tmp_path / "simulation", nodes=simulated)


def _wrong_hello(parts, client, token=""):
    from clients.build import hello

    frame = hello(parts, client, token)
    if client.name == "0":
        return frame
    return replace(frame, fields={**frame.fields, "protocol": 99})


REFUSALS = {
    "leaves": (lambda ready: Frame("leave", "0", 0, {"reason": "no room"}), "no room", "failed"),
    "another kind": (
        lambda ready: dataclasses.replace(ready, kind="gradient"),
        "'gradient' where",
        "dropped",
    ),
    "no channel": (lambda ready: dataclasses.replace(ready, fields={}), "channel state", "dropped"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_device_that_is_refused_on_joining_is_told_and_set_free(
    tmp_path, monkeypatch, caplog, refusal
):
    change, reason, kind = REFUSALS[refusal]
    told: dict[str, dict[str, Any]] = {}
    free = threading.Event()

    class Odd(ClientStateStore):
        def handle(self, frame):
            reply = super().handle(frame)
            return change(reply) if frame.kind == "welcome" and frame.client == "0" else reply

    def noted(session, node):
        answer = clients.device.take_part(session, node)
        told[str(session["client"])] = dict(answer)
        if session["client"] == 0:
            Ledger(Path(node["privacy-ledger"]), "0").close()  # nobody holds it any more
            free.set()
        return answer

    monkeypatch.setattr(clients.device, "ClientStateStore", Odd)
    monkeypatch.setitem(globals(), "take_part", noted)
    scenario = tiny(
        "channel.model=measured",
        "privacy.sigma=2.0",
        "head.share=personal",
        "federation.connect_timeout_s=30",
    )
    folder = RunFolder.create(tmp_path / "run")
    devices, server = Devices(tmp_path / "states"), ServerRun(scenario, folder)
    places = Places(run="0123456789abcdef")
    with Sessions(devices, server, NODES, places) as sessions:
        with pytest.raises(FedloraError, match=r"1 of 2 clients are connected") as ended:
            sessions.open()
        assert free.wait(60.0)  # while the stream is still up
    assert reason in str(ended.value)
    assert told["0"] == {"reason": kind}
    own = [record.getMessage() for record in caplog.records if record.name == "fedlora.edge"]
    assert any("does not take part" in line and reason in line for line in own)
    assert list(server.cohort.clients) == ["1"]


def test_a_session_outlives_its_exchanges():
    scenario = tiny("train.steps=1000", "train.rounds=100")
    exchanges = scenario.train.rounds * scenario.train.steps
    assert session_ttl_s(scenario) > exchanges * scenario.link.step_timeout_s


@pytest.mark.parametrize("value", ["soon", 0, -3.0, "nan", "inf", None])
def test_an_idle_limit_that_is_none_is_refused(value):
    assert NodeKeys.read({}).idle_limit_s == 43_200
    assert NodeKeys.read({"idle-limit-s": "90"}).idle_limit_s == 90
    with pytest.raises(FedloraError, match=r"idle-limit-s is .*; set seconds above 0"):
        NodeKeys.read({"idle-limit-s": value})


@pytest.mark.parametrize("name", ["", "../../etc", "0123456789abcdeg", "0" * 17])
def test_a_run_name_cannot_lead_out_of_the_state_folder(tmp_path, caplog, name):
    session = {
        "scenario": scenario_to_toml(tiny()),
        "address": "127.0.0.1:1",
        "certificate": b"",
        "token": "",
        "client": 0,
        "clients": 2,
        "run": name,
    }
    states = tmp_path / "states"
    told = take_part(session, {"partition-id": 0, "scenario-data": "true", "state": str(states)})
    assert told == {"reason": "invitation"}
    assert "the run is called" in caplog.text
    assert {path.name for path in states.iterdir()} == {"audit.jsonl", "device.log"}
