"""Messages: one dataclass each, and the bytes of whole sessions as they are written down."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.exchanges import EXCHANGES, record, recorded

from clients.owner.table import TABLE
from fedlora.errors import ProtocolError
from fedlora.link import Frame, Message, decode_frame, encode_frame, replies, requests

MESSAGES: dict[str, type[Message]] = {
    found.KIND: found
    for module in (requests, replies)
    for found in vars(module).values()
    if isinstance(found, type) and issubclass(found, Message) and found is not Message
}
MOST = 1 << 20
AT_RANDOM = ("ids",)  # numbers that the client draws


@pytest.mark.parametrize("name", EXCHANGES)
def test_todays_code_reads_and_writes_the_recorded_bytes(name):
    session, last = recorded(name), {}
    assert [who for who, _ in session[:2]] == ["client", "server"]
    for who, data in session:
        frame = decode_frame(data, MOST)
        assert encode_frame(frame) == data
        message = MESSAGES[frame.kind].from_frame(frame)
        assert encode_frame(message.to_frame(frame.client, frame.seq)) == data, frame.kind
        if who == "client" and frame.kind != "hello":
            assert frame.seq == last["seq"]
        last = {"seq": frame.seq}


@pytest.mark.parametrize("name", EXCHANGES)
def test_a_session_of_today_is_the_recorded_one_but_for_rounding(name, tmp_path):
    old, new = recorded(name), record(name, tmp_path)
    assert len(old) == len(new)
    for (who, before), (now_who, now) in zip(old, new, strict=True):
        a, b = decode_frame(before, MOST), decode_frame(now, MOST)
        assert (who, a.kind, a.client, a.seq) == (now_who, b.kind, b.client, b.seq)
        assert list(a.fields) == list(b.fields) and list(a.tensors) == list(b.tensors)
        for key, value in a.fields.items():
            digest = key.endswith("_digest")  # of files that a library writes
            assert digest or near(value, b.fields[key]), key
        for key, tensor in a.tensors.items():
            assert (tensor.dtype, tensor.shape) == (b.tensors[key].dtype, b.tensors[key].shape)
            apart = 1.0 if key.endswith(".int8") else 1e-4
            assert key in AT_RANDOM or (tensor.double() - b.tensors[key]).abs().max() <= apart


def near(a: Any, b: Any) -> bool:
    """Tell whether JSON values are equal but for rounding."""
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(near(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(near, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-6)
    return type(a) is type(b) and a == b


def test_the_page_of_the_protocol_names_every_part_of_every_message():
    page = (Path(__file__).parents[2] / "docs/protocol.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    for kind, message in MESSAGES.items():
        told = set(re.findall(r"`([a-z_]+)(?:\.\*)?`", rows[kind].split("|", 2)[2]))
        assert set(message.parts()) <= told, kind
    frames = {data.hex() for name in EXCHANGES for _, data in recorded(name)}
    shown = re.findall(r"^    ([0-9a-f ]{30,})$", page, re.MULTILINE)
    assert "".join(shown).replace(" ", "") in frames


def test_what_may_leave_a_device_is_what_its_messages_have():
    of_devices = {kind: set(parts) for kind, parts in TABLE.items() if kind in MESSAGES}
    assert set(of_devices) == {m.KIND for m in vars(replies).values() if m in MESSAGES.values()}
    for kind, parts in of_devices.items():
        assert parts == set(MESSAGES[kind].parts()), kind


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("round", {}, "round needs round as an integer from 0, not nothing"),
        ("round", {"round": -1}, "not -1"),
        ("round", {"round": True}, "not True"),
        ("round", {"round": 1.0}, "not 1.0"),
        ("step", {"step": 0, "update": "yes"}, "step needs update as true or false, not 'yes'"),
        ("step", {"step": 0, "rank": "x" * 100}, "step needs rank as a finite number, not 'xxx"),
        ("step", {"step": None}, "not None"),
        ("phase", {"name": 3}, "phase needs name as a text, not 3"),
        ("gradient", {"weight": math.inf}, "gradient needs weight as a finite number, not inf"),
        ("gradient", {"weight": 10**400}, "gradient needs weight as a finite number, not 1000"),
        ("gradient", {"weight": 1.0, "loss": []}, "gradient needs loss as a finite number"),
        ("metrics", {}, "metrics needs counts as an object, not nothing"),
        ("metrics", {"counts": [1]}, "metrics needs counts as an object"),
    ],
)
def test_a_value_of_another_type_is_one_sentence(kind, fields, said):
    with pytest.raises(ProtocolError) as caught:
        MESSAGES[kind].from_frame(Frame(kind, fields=fields))
    assert said in str(caught.value) and len(str(caught.value)) < 120


def test_another_message_is_refused_and_what_is_not_known_is_left_unread():
    with pytest.raises(ProtocolError, match="'step' came where round was due"):
        requests.Round.from_frame(Frame("step", fields={"round": 1}))
    frame = Frame("round", fields={"round": 1, "new": 2}, tensors={"new": torch.zeros(1)})
    assert requests.Round.from_frame(frame) == requests.Round(1)


def test_a_group_of_tensors_takes_its_own_alone():
    names = ("representation", "representation.scale", "representations", "head_weight.bias")
    frame = Frame("step", fields={"step": 0}, tensors={n: torch.zeros(1) for n in names})
    step = requests.Step.from_frame(frame)
    assert list(step.representation) == ["representation", "representation.scale"]
    assert list(step.head) == ["head_weight.bias"]
