"""Conversations on three devices in real processes; the adapter answers in plain PEFT."""

from __future__ import annotations

import pytest
from support.chat_folders import SMOLLM2, plain_answers, write_chat_model, write_conversations
from support.deployment import Deployment

from fedlora.commands.export import export_run
from fedlora.commands.infer import infer_texts
from fedlora.config import scenario_from_toml, scenario_to_toml, with_overrides
from fedlora.launch.guarded import free_port
from fedlora.split import slice_checkpoint

pytestmark = pytest.mark.e2e

SCENARIO = """
name = "chats"
[task]
kind = "causal_lm"
max_length = 200
[data]
messages = "messages"
[federation]
clients = 3
[lora]
r_max = 4
[train]
rounds = 2
steps = 8
batch_size = 4
lr = 0.01
[evaluate]
baseline = false
"""


def test_devices_with_conversations_of_their_own_train_what_others_load(tmp_path, capsys):
    model = write_chat_model(tmp_path / "model", SMOLLM2)
    slice_checkpoint(model, tmp_path / "package")
    with Deployment(tmp_path / "deployment") as deployment:
        for node in range(3):
            deployment.register(node)
            data = write_conversations(tmp_path / f"chats{node}.jsonl", 12, 12 * node)
            package = tmp_path / "package"
            own = f'partition-id={node} data="{data}" messages="messages" model="{package}"'
            deployment.supernode(node, own)
        overrides = [f"link.port={free_port()}", f"model.path={model}"]
        config = with_overrides(scenario_from_toml(SCENARIO), overrides)
        place, out = tmp_path / "chats.toml", tmp_path / "run"
        place.write_text(scenario_to_toml(config))
        deployment.run(place, out)
        assert deployment.ended(out, 240)["status"] == "finished", deployment.words()
    export_run(out, tmp_path / "export", "peft", None, None)
    texts = ["dog 1?", "dog 5?", "the café"]
    expected = plain_answers(model, tmp_path / "export", texts, 12)
    capsys.readouterr()
    infer_texts(tmp_path / "export", texts, None, None, 12, str(model))
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("\t")[2] for line in lines] == expected
    assert any("fox" in answer for answer in expected)
