"""Both halves must be of one checkpoint; a hello that is not as agreed is refused by name."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from support.federation import Federation, scenario

from clients.build import hello, load_parts
from fedlora.errors import FedloraError, ProtocolError


def altered(source: Path, target: Path, part: str) -> Path:
    """Copy a model and change one of its parts a little."""
    shutil.copytree(source, target)
    if part == "weights":
        tensors = load_file(target / "model.safetensors")
        name = sorted(tensors)[0]
        tensors[name].view(-1)[0] += 1
        save_file(tensors, target / "model.safetensors", {"format": "pt"})
    elif part == "config":
        config = json.loads((target / "config.json").read_text())
        config["layer_norm_epsilon"] = 1e-3
        (target / "config.json").write_text(json.dumps(config))
    else:
        table = json.loads((target / "tokenizer.json").read_text())
        vocabulary = table["model"]["vocab"]
        vocabulary["w50"], vocabulary["w51"] = vocabulary["w51"], vocabulary["w50"]
        (target / "tokenizer.json").write_text(json.dumps(table))
    return target


@pytest.mark.parametrize("part", ["weights", "config", "tokenizer"])
def test_halves_of_two_checkpoints_are_refused(tiny, records, tmp_path, part):
    federation = Federation(scenario(tiny["gpt2"], records))
    other = altered(tiny["gpt2"], tmp_path / "other", part)
    parts = load_parts(scenario(other, records, 'task.labels=["a", "b", "c"]'))
    with pytest.raises(ProtocolError, match=f"the client's {part}_digest is .* give both sides"):
        federation.server.admit(hello(parts, federation.clients[0]))


def test_another_precision_is_refused(tiny, records):
    federation = Federation(scenario(tiny["gpt2"], records))
    labels = 'task.labels=["a", "b", "c"]'
    parts = load_parts(scenario(tiny["gpt2"], records, labels, "model.dtype=bf16"))
    with pytest.raises(ProtocolError, match="dtype is bf16, the server's is fp32"):
        federation.server.admit(hello(parts, federation.clients[0]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"client": "anna"}, "client id 'anna' is not a number"),
        ({"client": "9" * 10}, "is not a number"),
        ({"client": ""}, "is not a number"),
        ({"rows": -1}, "rows is -1"),
        ({"rows": "8"}, "rows is '8'"),
        ({"rows": True}, "rows is True"),
        ({"held_out_rows": 1 << 60}, "held_out_rows is"),
        ({"protocol": 1}, "protocol is 1"),
        ({"protocol": True}, "protocol is True"),
        ({"dtype": None}, "dtype is None"),
    ],
)
def test_hello_that_is_not_as_agreed_is_refused(tiny, records, changes, message):
    config = scenario(tiny["gpt2"], records)
    federation = Federation(config)
    good = hello(load_parts(config, ("a", "b", "c")), federation.clients[0])
    changes: dict[str, Any] = dict(changes)
    name = changes.pop("client", "7")
    bad = dataclasses.replace(good, client=name, fields={**good.fields, **changes})
    with pytest.raises(FedloraError, match=message):
        federation.server.admit(bad)


def test_last_words_of_the_clients_are_collected(tiny, records):
    federation = Federation(scenario(tiny["gpt2"], records, "train.rounds=1")).run()
    results = federation.server.end()
    assert {client: fields["samples"] for client, fields in results.items()} == dict.fromkeys(
        "012", 9
    )
