"""Who takes part is what nodes say, and one that says nonsense is left out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

import fedlora.server.nodes
from fedlora.config import FederationConfig, Scenario
from fedlora.errors import FedloraError
from fedlora.report.run_folder import RunFolder
from fedlora.server.nodes import Node, find_nodes

SAYS = {
    1: RecordDict({"fedlora": ConfigRecord({"client": 0, "clients": 2, "simulated": False})}),
    2: RecordDict({"fedlora": ConfigRecord({"client": 1, "clients": 2, "simulated": False})}),
    3: RecordDict({"fedlora": ConfigRecord({"client": "zero", "clients": 2, "simulated": False})}),
    4: RecordDict({"fedlora": ConfigRecord({"clients": 2})}),
    5: RecordDict({"fedlora": ArrayRecord()}),
    6: RecordDict(),
    8: RecordDict({"fedlora": ConfigRecord({"error": "its partition-id is 'two'"})}),
    7: RecordDict({"fedlora": ConfigRecord({"client": 1, "clients": 2, "simulated": False})}),
}


class Nodes:
    def __init__(self, *ids: int) -> None:
        self.ids = ids

    def get_node_ids(self):
        return self.ids

    def send_and_receive(self, messages, timeout):
        assert timeout > 0
        return [
            SimpleNamespace(
                metadata=SimpleNamespace(src_node_id=message.id),
                has_error=lambda: False,
                content=SAYS[message.id],
            )
            for message in messages
        ]


@pytest.fixture(autouse=True)
def question(monkeypatch):
    monkeypatch.setattr(
        fedlora.server.nodes,
        "Message",
        lambda content, *, dst_node_id, message_type: SimpleNamespace(id=dst_node_id),
    )


def scenario(**limits: float) -> Scenario:
    return Scenario(federation=FederationConfig(clients=2, **limits))


def test_nodes_are_sorted_by_client_and_nonsense_is_left_out_with_a_sentence(tmp_path, caplog):
    nodes = find_nodes(Nodes(6, 5, 4, 3, 2, 1), scenario(), RunFolder.create(tmp_path))
    assert nodes == [Node(1, 0, False), Node(2, 1, False)]
    told = [r.message for r in caplog.records if "does not say who it is" in r.message]
    assert {message.split()[1] for message in told} <= {"3", "4", "5", "6"}
    assert len(told) >= 3


def test_a_node_that_says_what_is_wrong_is_quoted(tmp_path, caplog):
    assert len(find_nodes(Nodes(8, 2, 1), scenario(), RunFolder.create(tmp_path))) == 2
    assert "node 8 cannot take part: its partition-id is 'two'" in caplog.messages


def test_two_nodes_of_one_partition_are_refused(tmp_path):
    with pytest.raises(FedloraError, match=r"partition-ids \[1, 1\]; give each SuperNode its own"):
        find_nodes(Nodes(2, 7), scenario(), RunFolder.create(tmp_path))


def test_too_few_nodes_end_the_wait_with_a_sentence(tmp_path):
    with pytest.raises(FedloraError, match=r"0 nodes answered within 1 s.*start more SuperNodes"):
        find_nodes(Nodes(), scenario(connect_timeout_s=1.0), RunFolder.create(tmp_path))
