"""An edge package stands for the whole checkpoint at a client, and for no other."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clients.build import hello, load_parts
from clients.simulated_data import SimulatedData
from fedlora.config import Scenario, scenario_from_toml
from fedlora.errors import FedloraError
from fedlora.link import LocalLink, edge_executor
from fedlora.server.run import ServerRun
from fedlora.split import (
    Back,
    Blocks,
    Checkpoint,
    Cut,
    Front,
    find_family,
    language_head,
    slice_checkpoint,
)
from simulations.in_process import Record

DECODER = Path(__file__).parents[2] / "simulations" / "quickstart" / "decoder"
FAMILIES = ("gpt2", "opt-350m-layout", "llama", "llama-tied", "gemma2", "bert")
SCENARIO = """
[model]
path = "package:simulations/quickstart/decoder"
[task]
kind = "causal_lm"
max_length = 16
[data]
max_rows = 40
[federation]
clients = 2
[train]
rounds = 1
steps = 2
batch_size = 2
[lora]
r_max = 2
[evaluate]
baseline = false
"""


def with_model(folder: Path) -> Scenario:
    scenario = scenario_from_toml(SCENARIO)
    return replace(scenario, model=replace(scenario.model, path=str(folder)))


def federation(client_model: Path) -> ServerRun:
    """Run the scenario with the whole model on the server and another folder at the clients."""
    scenario = with_model(client_model)
    data = SimulatedData(scenario, 2)
    parts = load_parts(scenario, data.labels)
    server = ServerRun(with_model(DECODER), Record())
    executor = edge_executor(1)
    for number in range(2):
        client = data.build(parts, number)
        server.admit(hello(parts, client))
        server.join(LocalLink(client.name, client.handle, executor), hello(parts, client))
    server.training.run()
    server.end()
    return server


@pytest.mark.parametrize(("front", "back"), [(0, 0), (1, 1)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_clients_parts_are_the_same_bits(checkpoints, tmp_path, family, front, back):
    whole = Checkpoint(checkpoints[family])
    slice_checkpoint(checkpoints[family], tmp_path, front, back)
    package = Checkpoint(tmp_path)
    assert package.weights_digest == whole.weights_digest
    assert package.config_digest == whole.config_digest
    assert len(package.entries) < len(whole.entries)
    cut = Cut.of(whole, front, back)
    for part in (
        lambda c: Front(c, cut, torch.float32).state_dict(),
        lambda c: Back(c, cut, torch.float32, final=True).state_dict(),
        lambda c: {"head": language_head(c, torch.float32)} if find_family(c).causal else {},
    ):
        a, b = part(whole), part(package)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(FedloraError, match="edge package without"):
        Blocks(package, front, cut.stop, final=False, dtype=torch.float32)


def test_a_federation_on_packages_gives_the_same_adapter(tmp_path):
    written = slice_checkpoint(DECODER, tmp_path / "package")
    assert written.size_bytes < written.whole_bytes / 2
    a = federation(DECODER).engine.adapter()
    b = federation(tmp_path / "package").engine.adapter()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_package_of_another_checkpoint_is_refused_and_both_are_named(tmp_path):
    other = tmp_path / "other"
    shutil.copytree(DECODER, other)
    tensors = load_file(other / "model.safetensors")
    name = next(n for n in tensors if "layers.0" in n or "h.0" in n)  # a block's: not in a package
    tensors[name] = tensors[name] + 1
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    slice_checkpoint(other, tmp_path / "package")
    own, theirs = Checkpoint(DECODER).weights_digest, Checkpoint(other).weights_digest
    with pytest.raises(FedloraError, match=f"{theirs[:16]}, the server's is {own[:16]}"):
        federation(tmp_path / "package")


def test_a_package_whose_tensors_were_exchanged_is_refused(tmp_path):
    slice_checkpoint(DECODER, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(iter(tensors))
    tensors[name] = tensors[name] + 1
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(FedloraError, match="other tensors than its manifest"):
        Checkpoint(tmp_path)


def test_a_damaged_manifest_and_a_slice_of_a_slice_are_refused(tmp_path):
    slice_checkpoint(DECODER, tmp_path / "package")
    with pytest.raises(FedloraError, match="is an edge package itself"):
        slice_checkpoint(tmp_path / "package", tmp_path / "again")
    manifest = tmp_path / "package" / "edge.json"
    for text in ("{", json.dumps({"format": 9}), json.dumps({"format": 1, "what": 2})):
        manifest.write_text(text)
        with pytest.raises(FedloraError, match="cannot be read"):
            Checkpoint(tmp_path / "package")
