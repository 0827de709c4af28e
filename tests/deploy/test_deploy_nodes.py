"""Who takes part is what nodes say, and one that says nonsense is left out."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from support.patience import patient

import fedlora.server.flower.nodes
import fedlora.server.flower.questions
from fedlora.config import FederationConfig, Scenario
from fedlora.errors import FedloraError
from fedlora.report import RunFolder
from fedlora.server.flower.nodes import Node, Seats, find_nodes
from fedlora.server.flower.questions import Questions

SAYS = {
    1: RecordDict({"fedlora": ConfigRecord({"client": 0, "clients": 2})}),
    2: RecordDict({"fedlora": ConfigRecord({"client": 1, "clients": 2})}),
    3: RecordDict({"fedlora": ConfigRecord({"client": "zero", "clients": 2})}),
    4: RecordDict({"fedlora": ConfigRecord({"clients": 2})}),
    5: RecordDict({"fedlora": ArrayRecord()}),
    6: RecordDict(),
    8: RecordDict({"fedlora": ConfigRecord({"error": "its partition-id is 'two'"})}),
    7: RecordDict({"fedlora": ConfigRecord({"client": 1, "clients": 2})}),
}


class Nodes:
    """Answers as ``SAYS`` tells; a node that is not there says nothing."""

    def __init__(self, *ids: int, also: dict[int, RecordDict] | None = None) -> None:
        self.ids = ids
        self.says = SAYS | (also or {})

    def get_node_ids(self):
        return self.ids

    def push_messages(self, messages):
        return [str(message.id) for message in messages]

    def pull_messages(self, names):
        return [
            SimpleNamespace(
                metadata=SimpleNamespace(reply_to_message_id=name),
                has_error=lambda: False,
                content=self.says[int(name)],
            )
            for name in names
            if int(name) in self.says
        ]


@pytest.fixture(autouse=True)
def question(monkeypatch):
    monkeypatch.setattr(
        fedlora.server.flower.questions,
        "Message",
        lambda content, *, dst_node_id, message_type: SimpleNamespace(id=dst_node_id),
    )


@pytest.fixture
def quick(monkeypatch):
    """A run that waits for nobody who may be a refused node."""
    monkeypatch.setattr(fedlora.server.flower.nodes, "_ASK_AGAIN_S", 0.5)


def scenario(**limits: Any) -> Scenario:
    return Scenario(federation=FederationConfig(**{"clients": 2} | limits))


def says(client: int, *, clients: int = 2, **more: bool) -> RecordDict:
    return RecordDict({"fedlora": ConfigRecord({"client": client, "clients": clients, **more})})


def test_nodes_are_sorted_by_client_and_nonsense_is_left_out_with_a_sentence(tmp_path, caplog):
    nodes = find_nodes(Nodes(6, 5, 4, 3, 2, 1), scenario(), RunFolder.create(tmp_path))
    assert nodes == [Node(1, 0, False), Node(2, 1, False)]
    told = [r.message for r in caplog.records if "does not say who it is" in r.message]
    assert {message.split()[1] for message in told} <= {"3", "4", "5", "6"}
    assert len(told) >= 3


def test_a_node_that_says_what_is_wrong_is_quoted(tmp_path, caplog):
    assert len(find_nodes(Nodes(8, 2, 1), scenario(), RunFolder.create(tmp_path))) == 2
    assert "node 8 cannot take part: its partition-id is 'two'" in caplog.messages


def test_who_says_anothers_number_is_refused_and_the_run_goes_on(tmp_path, caplog, quick):
    grid = Nodes(2, 7, 1, 9, also={9: says(2)})
    nodes = find_nodes(grid, scenario(clients=4, min_clients=2), RunFolder.create(tmp_path))
    assert nodes == [Node(1, 0, False), Node(2, 1, False), Node(9, 2, False)]
    assert sum("node 7 is refused: it says partition-id 1" in line for line in caplog.messages) == 1


def test_a_number_whose_node_is_gone_is_free_for_another(tmp_path):
    grid = Nodes(2, 1)
    seats = Seats(FederationConfig(), Questions(grid))
    assert seats.take(2, 1, [2, 7], simulated=False)
    assert not seats.take(7, 1, [2, 7], simulated=False)
    assert seats.take(7, 1, [7], simulated=False)
    assert seats.nodes == {1: Node(7, 1, False)}


def test_bound_nodes_alone_are_their_clients(tmp_path, caplog):
    grid = Nodes(7, 1, 2, 9, also={9: says(1)})
    bound = scenario(clients=2, nodes=("1", "2"))
    nodes = find_nodes(grid, bound, RunFolder.create(tmp_path))
    assert nodes == [Node(1, 0, False), Node(2, 1, False)]


def test_a_bound_node_that_says_another_number_takes_nobodys_place(tmp_path, caplog, quick):
    grid = Nodes(7, 1, 2, also={7: says(0)})
    bound = scenario(clients=3, nodes=("1", "2", "7"), min_clients=2)
    nodes = find_nodes(grid, bound, RunFolder.create(tmp_path))
    assert nodes == [Node(1, 0, False), Node(2, 1, False)]
    assert any("federation.nodes binds it to client 2" in line for line in caplog.messages)


def test_no_node_can_make_a_deployment_a_simulation(tmp_path):
    grid = Nodes(9, 2, 1, also={9: says(2, clients=1, simulated=True)})
    nodes = find_nodes(grid, scenario(clients=3), RunFolder.create(tmp_path))
    assert nodes == [Node(1, 0, False), Node(2, 1, False), Node(9, 2, False)]


def test_a_node_that_answers_after_it_was_asked_again_takes_part(tmp_path, quick):
    """As one does whose ClientApp takes long to start; each question starts another."""
    slow = Nodes(2, 1)
    asked: list[tuple[str, float]] = []

    def push(messages):
        names = [f"{message.id}.{len(asked) + k}" for k, message in enumerate(messages)]
        asked.extend((name, time.monotonic() + 1.2) for name in names)
        return names

    def pull(names):
        due = {name for name, at in asked if at < time.monotonic()}
        replies = [Nodes(2, 1).pull_messages([name.split(".")[0]])[0] for name in names]
        for name, reply in zip(names, replies, strict=True):
            reply.metadata.reply_to_message_id = name
        return [r for n, r in zip(names, replies, strict=True) if n in due]

    slow.push_messages, slow.pull_messages = push, pull
    nodes = find_nodes(slow, scenario(connect_timeout_s=20.0), RunFolder.create(tmp_path))
    assert nodes == [Node(1, 0, False), Node(2, 1, False)]
    assert 2 < len(asked) <= 6  # asked again, at ever longer intervals


def test_a_node_that_does_not_answer_keeps_nobody_waiting(tmp_path):
    began = time.monotonic()
    nodes = find_nodes(Nodes(99, 2, 1), scenario(), RunFolder.create(tmp_path))
    assert [node.id for node in nodes] == [1, 2]
    assert time.monotonic() - began < patient(20.0)  # it was waited for a minute


@pytest.mark.parametrize("client", [-1, 10**30, 2**70])
def test_numbers_no_client_can_have_are_refused(tmp_path, client):
    grid = Nodes(9, 2, 1)
    grid.says = grid.says | {9: {"fedlora": {"client": client, "clients": 2}}}
    nodes = find_nodes(grid, scenario(), RunFolder.create(tmp_path))
    assert [node.id for node in nodes] == [1, 2]


def test_too_few_nodes_end_the_wait_with_a_sentence(tmp_path):
    with pytest.raises(FedloraError, match=r"0 nodes answered within 1 s.*start more SuperNodes"):
        find_nodes(Nodes(), scenario(connect_timeout_s=1.0), RunFolder.create(tmp_path))


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        (("1", "x"), "federation.nodes has 'x'"),
        (("1", "1"), "has 1 twice"),
        (("1",), "has 1 entries, federation.clients is 2"),
        ((str(1 << 64), "1"), "write ids as"),
    ],
)
def test_bindings_that_bind_nothing_are_refused(nodes, reason):
    with pytest.raises(FedloraError, match=reason):
        FederationConfig(clients=2, nodes=nodes)


@pytest.mark.parametrize(("clients", "carriers"), [(5, [1, 2, 1, 2, 1]), (2, [1, 2]), (1, [1])])
def test_a_simulation_has_the_scenarios_clients_however_many_nodes_flower_simulates(
    tmp_path, monkeypatch, clients, carriers
):
    monkeypatch.setattr(fedlora.server.flower.nodes, "in_simulation", lambda: True)
    folder = RunFolder.create(tmp_path)
    nodes = find_nodes(Nodes(2, 1), scenario(clients=clients, min_clients=clients), folder)
    assert nodes == [Node(carrier, client, True) for client, carrier in enumerate(carriers)]
    said = [event["text"] for event in folder.read_events()[0]]
    told = f"Flower simulates 2 nodes; they carry the scenario's {clients} clients"
    assert said == ([] if clients == 2 else [told])
