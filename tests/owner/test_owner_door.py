"""Only the door makes what leaves, and it takes nothing that is not public, paid for or allowed."""

from __future__ import annotations

import ast
import copy
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from clients.head import ClientHead
from clients.owner import Door, Leaving, OwnerTerms, Private, PrivateSamples
from clients.owner.table import TABLE, rows
from fedlora.config import HeadConfig, NodeKeys, TrainConfig
from fedlora.errors import FedloraError
from fedlora.link import KINDS, messages as m
from fedlora.privacy.accounting import Charge
from fedlora.privacy.ledger import Ledger
from fedlora.tasks import Sample

ROOT = Path(__file__).parents[2]
STRICT = OwnerTerms.of(
    NodeKeys.read({"data": "own.csv", "text": "text", "model": "package", "privacy-epsilon": 1})
)


@pytest.mark.parametrize(
    "use",
    [
        bool,
        len,
        list,
        float,
        int,
        json.dumps,
        pickle.dumps,
        copy.deepcopy,
        lambda value: value == 7.5,
        lambda value: value[0],
        lambda value: 1 in value,
        lambda value: {value: 1},
        torch.tensor,
    ],
)
def test_a_private_value_has_no_length_truth_text_or_bytes(use: Any) -> None:
    with pytest.raises((TypeError, RuntimeError)):
        use(Private([7.5]))
    assert "7.5" not in f"{Private([7.5])} {Private([7.5])!r}"


def test_nobody_else_makes_what_leaves() -> None:
    with pytest.raises(TypeError, match="only the door"):
        Leaving(object(), 1, "public")
    door = Door(STRICT)
    with pytest.raises(TypeError, match="a private value is not public"):
        door.public(Private(1))
    for part in (1, Private(1), torch.zeros(1)):
        with pytest.raises(TypeError, match="did not come through the door"):
            door.message(m.RESULT, "0", 1, {"samples": part})  # type: ignore[dict-item]


def test_a_message_has_no_part_beside_those_of_the_table() -> None:
    door = Door(STRICT)
    with pytest.raises(TypeError, match="no result has a part label"):
        door.message(m.RESULT, "0", 1, {"label": door.public(1)})
    with pytest.raises(TypeError, match="no gossip has a part"):
        door.message("gossip", "0", 1, {"reason": door.public("x")})
    with pytest.raises(TypeError, match="loss of gradient may not leave as public"):
        door.message(m.GRADIENT, "0", 1, {"loss": door.public(0.5)})
    with pytest.raises(TypeError, match=r"gradient\.int8 of gradient may not leave as public"):
        door.message(m.GRADIENT, "0", 1, {}, {"gradient.int8": door.public(torch.zeros(1))})


@pytest.mark.parametrize("key", ["data", "privacy-report", "privacy-statistics", "nonsense"])
def test_what_no_key_allows_stays(key: str) -> None:
    with pytest.raises(FedloraError, match="nothing leaves"):
        Door(STRICT).allowed(Private(1.0), key)


def test_what_is_released_is_covered_by_entries_of_the_own_ledger(tmp_path: Path) -> None:
    with Ledger(tmp_path / "own", "0") as own, Ledger(tmp_path / "other", "0") as other:
        door = Door(STRICT, own)
        ids = own.sample_ids([b"a", b"b", b"c"])
        first, theirs = (
            own.charge(ids[:2], Charge.gaussian(5.0)),
            other.charge(ids, Charge.gaussian(5.0)),
        )
        assert door.released(Private(1.0), ids[:2], [first]).value == 1.0
        for records, receipts in ((ids, [first]), (ids[:1], []), (ids, [theirs])):
            with pytest.raises(FedloraError, match="has not been paid for"):
                door.released(Private(1.0), records, receipts)


def test_a_head_leaves_free_only_before_it_has_learnt() -> None:
    head = ClientHead(
        torch.nn.Linear(4, 2), trains=True, config=HeadConfig(share="round"), train=TrainConfig()
    )
    door = Door(STRICT)
    assert set(door.untrained(head).value) == {"head_weight.weight", "head_weight.bias"}
    head.module.weight.grad = torch.ones(2, 4)
    head.update(1.0, 0, last=True)
    with pytest.raises(FedloraError, match="has learnt from labels"):
        door.untrained(head)
    state = head.state_dict()
    head.reset()
    door.untrained(head)
    head.load_state_dict(state)
    with pytest.raises(FedloraError, match="has learnt from labels"):
        door.untrained(head)


def test_of_an_error_leaves_its_kind_and_in_a_simulation_its_sentence() -> None:
    for error in (FedloraError("quixotic"), ValueError("quixotic"), KeyError("quixotic")):
        told = Door(STRICT).told(error)
        assert set(told) == {"reason"} and told["reason"] in KINDS
    assert Door(OwnerTerms()).told(FedloraError("quixotic")) == {"reason": "quixotic"}


def test_the_samples_of_a_device_are_its_owners() -> None:
    samples = PrivateSamples([Sample((1, 2), 0)])
    assert Door(OwnerTerms()).truth(samples) == [Sample((1, 2), 0)]
    with pytest.raises(FedloraError, match="its owner's"):
        Door(STRICT).truth(samples)


def calls(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, (ast.Name, ast.Attribute)):
                yield called.id if isinstance(called, ast.Name) else called.attr


def test_no_module_of_the_clients_but_the_door_makes_messages_or_opens_private_values() -> None:
    makers = {"Frame": {"owner/door.py"}, "encode_frame": set(), "Message": {"app.py"}}
    makers |= {"ConfigRecord": {"app.py"}, "open_private": {"owner/door.py", "owner/private.py"}}
    for path in sorted((ROOT / "clients").rglob("*.py")):
        name = path.relative_to(ROOT / "clients").as_posix()
        for call in calls(path):
            assert call not in makers or name in makers[call], f"{name} calls {call}"
        assert "_Private__value" not in path.read_text() or name == "owner/private.py"


def test_the_table_in_the_docs_is_that_of_the_code() -> None:
    text = (ROOT / "docs/privacy.md").read_text(encoding="utf-8")
    shown = [f"| {' | '.join(row)} |" for row in rows()]
    start = text.index(shown[0])
    assert text[start:].split("\n\n", 1)[0].splitlines() == shown
    replies = {m.READY, m.REPORT, m.ACTIVATION, m.GRADIENT, m.ROUND_REPORT, m.METRICS, m.RESULT}
    assert replies | {m.HELLO, m.LEAVE} <= TABLE.keys()
