"""What conversations train, and that others get the same answers from what leaves."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from support.chat_folders import (
    SMOLLM2,
    plain_answers,
    tagged,
    write_chat_model,
    write_chat_tokenizer,
    write_conversations,
)
from support.federation import Federation, scenario
from transformers import AutoModelForCausalLM, AutoTokenizer

from clients.generation.command import chat, generate
from fedlora.commands.export import export_run
from fedlora.commands.infer import infer_texts
from fedlora.config import scenario_to_toml
from fedlora.report import RunFolder
from fedlora.server.results import write_results

CHAT = ["task.kind=causal_lm", "data.messages=messages", "task.max_length=200", "data.holdout=0"]
ROWS = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("chat") / "model", SMOLLM2)


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    """Return a run's folder and its federation; each step takes all rows of every client."""
    folder = tmp_path_factory.mktemp("runs")
    data = write_conversations(folder / "chats.jsonl", ROWS)
    rates = [f"train.batch_size={ROWS}", "train.lr=0.01"]
    config = scenario(
        model, data, *CHAT, *rates, "lora.alpha=16", "train.rounds=2", "train.steps=8"
    )
    federation = Federation(config).run()
    kept = RunFolder.create(folder / "run")
    kept.write_scenario(scenario_to_toml(config))
    for record in federation.recorder.rounds:
        kept.append_round(record)
    write_results(kept, federation.server, {})
    return kept, federation, data


def test_the_first_loss_is_that_of_transformers_over_the_assistants_tokens(
    model, trained, tmp_path
):
    _, federation, data = trained
    twin = AutoTokenizer.from_pretrained(write_chat_tokenizer(tmp_path / "twin", tagged("chatml")))
    reference = AutoModelForCausalLM.from_pretrained(model).eval()
    total, tokens = 0.0, 0
    for line in data.read_text().splitlines():
        made = twin.apply_chat_template(
            json.loads(line)["messages"],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        ids, mask = torch.tensor(made["input_ids"]), torch.tensor(made["assistant_masks"])
        with torch.no_grad():
            logits = reference(input_ids=ids[None]).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        total += float((losses * mask[1:]).sum())
        tokens += int(mask[1:].sum())
    losses = federation.recorder.losses()
    assert losses[0] == pytest.approx(total / tokens, rel=1e-5)
    assert losses[-1] < losses[0]


def test_an_export_answers_with_plain_peft_as_infer_does(model, trained, tmp_path, capsys):
    kept, _, _ = trained
    out = tmp_path / "export"
    export_run(kept.path, out, "peft", None, None)
    texts = ["dog 1?", "dog 5?", "the café"]
    capsys.readouterr()
    expected = plain_answers(model, out, texts, 12)
    for folder in (kept.path, out):
        infer_texts(folder, texts, None, None, 12, str(model))
        lines = capsys.readouterr().out.splitlines()
        assert [line.partition("\t")[2] for line in lines] == expected
    assert any("fox" in answer for answer in expected)
    assert "apply_chat_template(turn, add_generation_prompt=True" in (out / "README.md").read_text()


@pytest.fixture
def typed(monkeypatch):
    """Let lines be read as if they were typed."""

    def type_(text: str) -> None:
        buffer = io.BytesIO(text.encode())
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=buffer, isatty=lambda: False))

    return type_


@pytest.mark.parametrize(
    ("rank", "kinds"), [(None, ("none", "history", "history")), (1, ("prompt",))]
)
def test_generate_and_chat_write_what_plain_peft_does(
    model, trained, tmp_path, capsys, typed, monkeypatch, rank, kinds
):
    monkeypatch.setenv("HOME", str(tmp_path))
    kept, _, _ = trained
    out = tmp_path / "export"
    export_run(kept.path, out, "peft", None, rank)
    turns = [{"role": "user", "content": "dog 1?"}]
    (first,) = plain_answers(model, out, [turns], 12)
    turns += [{"role": "assistant", "content": first}, {"role": "user", "content": "dog 5?"}]
    (second,) = plain_answers(model, out, [turns], 12)
    capsys.readouterr()
    for drafts in kinds:
        generate(kept.path, "dog 1?", rank=rank, max_new_tokens=12, drafts=drafts)
        assert capsys.readouterr().out.strip() == first
        typed("dog 1?\ndog 5?\n/new\ndog 1?\n\n")
        chat(kept.path, rank=rank, max_new_tokens=12, drafts=drafts, stats=True)
        told = capsys.readouterr()
        assert [line.strip() for line in told.out.splitlines()] == [first, second, first]
        assert "an exchange" in told.err
    written = list((tmp_path / ".fedlora").glob("drafts/*"))
    assert [file.stat().st_mode & 0o777 for file in written] == [0o600] * ("history" in kinds)
