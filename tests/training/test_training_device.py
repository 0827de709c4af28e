"""A device with the backbone and what it was delivered answers as the server's emulation does."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from support.federation import Federation, scenario
from test_training_air import ARRIVES, DELIVERY, RANKS

from clients.state_store import ClientStateStore
from fedlora.commands.export import export_run
from fedlora.commands.infer import infer_texts
from fedlora.config import scenario_to_toml
from fedlora.errors import FedloraError
from fedlora.report import RunFolder
from fedlora.server.checkpoint import Checkpoints
from fedlora.server.compute import ClientRows
from fedlora.server.results import write_results
from fedlora.tasks import load_tokenizer


@pytest.fixture
def ran(tiny, records, tmp_path) -> tuple[Federation, RunFolder, list[dict[str, torch.Tensor]]]:
    """Return a federation that ran, its folder, and the adapter after each round."""
    config = scenario(tiny["gpt2"], records, *DELIVERY)
    folder = RunFolder.create(tmp_path / "run")
    keep = folder.checkpoint / "clients"
    federation = Federation(
        config, wrap=lambda edge: ClientStateStore(edge, keep / edge.name).handle
    )
    folder.write_scenario(scenario_to_toml(config))
    training, checkpoints = federation.server.training, Checkpoints(folder.checkpoint)
    adapters = []

    def after_round() -> None:
        folder.append_round(federation.recorder.rounds[-1])
        adapters.append(federation.server.engine.adapter())
        checkpoints.save(training)

    training.after_round = after_round
    federation.run()
    write_results(folder, federation.server, {"0": {"classes": ["north", "south", "west"]}})
    return federation, folder, adapters


def chances(federation: Federation, client: int, text: str, ranks: list[int]) -> torch.Tensor:
    """Return what the server's blocks and the client's head give for a text."""
    config = federation.server.scenario
    ids = load_tokenizer(Path(config.model.path)).encode(text, config.task.max_length)
    with torch.no_grad():
        e = federation.clients[client].model.front(torch.tensor(ids), [len(ids)])
        z = federation.server.engine.forward([ClientRows(e, [len(ids)], ranks)], train=False)[0]
        return (z @ federation.head(client)[0].T).softmax(-1)[0]


def test_a_device_answers_with_the_adapter_that_last_came_in_time(ran, records, tmp_path, capsys):
    federation, folder, adapters = ran
    for client in range(4):
        export_run(folder.path, tmp_path / str(client), "peft", str(client), None)
    # A device has neither the run's folder nor the path of the server's backbone.
    backbone = tmp_path / "backbone"
    shutil.copytree(federation.server.scenario.model.path, backbone)
    shutil.move(folder.path, tmp_path / "elsewhere")
    with records.open() as stream:
        texts = [row["text"] for row in csv.DictReader(stream)][:6]
    engine = federation.server.engine
    for client in range(4):
        capsys.readouterr()
        infer_texts(tmp_path / str(client), texts, None, None, 8, model=str(backbone))
        said = [line.split("\t") for line in capsys.readouterr().out.splitlines()]

        last = max(number for number in range(3) if ARRIVES[number][client])
        engine.load_adapter(adapters[last])
        ranks = [RANKS[last][client]] * len(engine.projections)
        for text, (label, chance, told) in zip(texts, said, strict=True):
            expected = chances(federation, client, text, ranks)
            assert told == text
            assert label == ["north", "south", "west"][int(expected.argmax())]
            assert float(chance) == pytest.approx(float(expected.max()), abs=6e-4)


def test_a_client_that_nothing_reached_has_no_adapter_to_export(ran, tmp_path):
    _, folder, _ = ran
    state = Checkpoints(folder.checkpoint)._states
    kept = state.read(3)
    del kept["delivered"]["1"]
    state.write(4, kept)
    with pytest.raises(FedloraError, match="client 1 was delivered no adapter in time"):
        export_run(folder.path, tmp_path / "device", "peft", "1", None)


def test_an_export_that_cannot_be_used_is_named(ran, tmp_path):
    _, folder, _ = ran
    export_run(folder.path, tmp_path / "device", "peft", "0", None)
    with pytest.raises(FedloraError, match="is an export, whose ranks are fixed"):
        infer_texts(tmp_path / "device", ["w4"], "0", None, 8)
    (tmp_path / "device" / "fedlora.json").write_text("{")
    with pytest.raises(FedloraError, match="is no export that can be read"):
        infer_texts(tmp_path / "device", ["w4"], None, None, 8)


def test_an_empty_text_is_refused_before_any_answer(ran, tmp_path, capsys):
    _, folder, _ = ran
    with pytest.raises(FedloraError, match="text 2 is empty, so there is nothing to classify"):
        infer_texts(folder.path, ["w4", ""], None, None, 8)
    assert not capsys.readouterr().out


def test_a_text_with_a_token_that_the_embedding_lacks_is_refused(ran, tmp_path):
    federation, folder, _ = ran
    backbone = tmp_path / "backbone"
    shutil.copytree(federation.server.scenario.model.path, backbone)
    table = json.loads((backbone / "tokenizer.json").read_text())
    table["added_tokens"].append({**table["added_tokens"][0], "id": 101, "content": "[CARD]"})
    (backbone / "tokenizer.json").write_text(json.dumps(table))
    with pytest.raises(FedloraError, match=r"text 2 has the token '\[CARD\]' .* 101 rows"):
        infer_texts(folder.path, ["w4", "w5 [CARD]"], None, None, 8, model=str(backbone))
