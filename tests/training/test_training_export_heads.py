"""A classifier that was trained leaves whole: plain transformers and PEFT give its answers."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from safetensors.torch import load_file, save_file
from support.federation import LABELS, Federation, relative, scenario
from test_training_export import engine_output, model_output, samples_of
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from fedlora.commands.export import export_run
from fedlora.commands.infer import infer_texts
from fedlora.config import scenario_to_toml
from fedlora.errors import FedloraError
from fedlora.report import RunFolder
from fedlora.server.results import write_results
from fedlora.storage.state import RoundStates

TEXTS = ["w9 w10 w5 w33 w34", "w50", "w90 w77 w20 </s>", "w12 w60"]
DECODERS = ["llama", "gpt2", "opt"]


def ran(folder: Path, model: Path, records: Path, *overrides: str) -> Federation:
    """Train a classifier for a round and leave a run's folder."""
    rates = ["train.lr=0.05", "train.rounds=1", "train.steps=2", "task.pool=last"]
    config = scenario(model, records, *rates, "head.share=step", *overrides)
    federation = Federation(config).run()
    kept = RunFolder.create(folder, overwrite=True)
    kept.write_scenario(scenario_to_toml(config))
    for record in federation.recorder.rounds:
        kept.append_round(record)
    for client in federation.clients:  # as their stores write it at the end of a round
        RoundStates(kept.checkpoint / "clients" / client.name).write(1, client.state_dict())
    classes = {"classes": list(LABELS)}
    write_results(kept, federation.server, {c.name: classes for c in federation.clients})
    return federation


def expected(federation: Federation, ranks: list[int] | None = None) -> torch.Tensor:
    """Return the run's own logits of the clients' samples."""
    engine, head = federation.server.engine, federation.head()[0]
    return engine_output(federation, ranks or engine.full_ranks()) @ head.T


@torch.no_grad()
def answers(federation: Federation, model: torch.nn.Module, pad: int | None) -> torch.Tensor:
    """Return a model's logits of the same samples, in one padded batch where it can be padded."""
    rows = [torch.tensor(sample.ids) for sample in samples_of(federation)]
    if pad is None:
        return torch.cat([model.eval()(input_ids=row[None]).logits for row in rows])
    ids = torch.nn.utils.rnn.pad_sequence(rows, True, padding_value=pad)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], True)
    return model.eval()(input_ids=ids, attention_mask=mask).logits


def of_card(folder: Path, texts: list[str]) -> list[tuple[str, float]]:
    """Run exactly the lines of a model card, and return label and chance of each text."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    assert "fedlora" not in code
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.setattr(sys, "argv", ["lines.py", *texts])
        patch.chdir(folder)
        exec(code, {})
    lines = [line.split(" ", 2) for line in out.getvalue().splitlines()]
    return [(label, float(chance)) for label, chance, _ in lines]


def inferred(capsys: pytest.CaptureFixture[str], *arguments) -> list[tuple[str, float]]:
    capsys.readouterr()
    infer_texts(*arguments)
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    return [(label, float(chance)) for label, chance, _ in lines]


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoders_classifier_loads_in_one_line_of_transformers_or_peft(
    tiny, records, tmp_path, capsys, family
):
    run = tmp_path / "run"
    federation = ran(run, tiny[family], records)
    for rank in (None, 2):
        at = [rank] * len(federation.server.engine.projections) if rank else None
        own = expected(federation, at)
        for form in ("padded", "merged") if rank else ("peft", "merged"):
            out = tmp_path / f"{form}-{rank}"
            export_run(run, out, form, None, rank)
            if form == "merged":
                model = AutoModelForSequenceClassification.from_pretrained(out)
                assert model.config.label2id == {name: n for n, name in enumerate(LABELS)}
                assert model.config.id2label == dict(enumerate(LABELS))
                assert model.config.problem_type == "single_label_classification"
                pad = AutoTokenizer.from_pretrained(out).pad_token_id
                assert model.config.pad_token_id == pad
            else:
                load = AutoPeftModelForSequenceClassification.from_pretrained
                model, pad = load(out, num_labels=len(LABELS)), None
            assert relative(answers(federation, model, pad), own) < 1e-5, (form, rank)
    assert "no head" not in capsys.readouterr().out
    said = inferred(capsys, run, TEXTS, None, None, 1)
    assert said == inferred(capsys, tmp_path / "peft-None", TEXTS, None, None, 1)


def test_the_lines_of_a_card_give_the_runs_answers(tiny, records, tmp_path, capsys):
    """Three lines of loading where a class of transformers fits, ten where none does."""
    cases = [
        ("llama", [], "peft", ""),
        ("gpt2", [], "merged", ""),
        ("bert", ["task.pool=cls"], "peft", "bert.pooler.dense"),
        ("roberta", ["task.pool=mean"], "merged", "classifier.dense"),
        ("opt", ["task.pool=mean"], "padded", "pools the last token"),
    ]
    for number, (family, overrides, form, reason) in enumerate(cases):
        run, out = tmp_path / f"run-{number}", tmp_path / f"out-{number}"
        ran(run, tiny[family], records, *overrides)
        capsys.readouterr()
        export_run(run, out, form, None, None)
        said, card = capsys.readouterr().out, (out / "README.md").read_text()
        assert (reason in said) and (reason in card)
        assert ("pipeline_tag: text-classification" in card) == (not reason)
        assert str(tmp_path) not in card
        found = of_card(out, TEXTS)
        own = inferred(capsys, run, TEXTS, None, None, 1)
        assert [label for label, _ in found] == [label for label, _ in own], family
        for (_, a), (_, b) in zip(found, own, strict=True):
            assert abs(a - b) < 6e-4, family  # infer writes three digits


def with_padding(source: Path, target: Path, pad: int | None, template: str | None) -> Path:
    """Give a model another padding token, and another way to end texts."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    names = json.loads((target / "tokenizer_config.json").read_text())
    config["pad_token_id"] = pad
    names.pop("pad_token")
    if pad is not None:
        names["pad_token"] = ["<pad>", "<s>", "</s>"][pad]
    (target / "config.json").write_text(json.dumps(config))
    (target / "tokenizer_config.json").write_text(json.dumps(names))
    if template:
        words = json.loads((target / "tokenizer.json").read_text())
        words["post_processor"]["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
        (target / "tokenizer.json").write_text(json.dumps(words))
    return target


@pytest.mark.parametrize("ends", [False, True], ids=["open", "rows end in it"])
def test_where_the_padding_token_ends_texts_a_merged_model_gets_its_own(
    tiny, records, tmp_path, capsys, ends
):
    """transformers pools the last token that is no padding, whatever the mask says."""
    model = with_padding(tiny["llama"], tmp_path / "model", 2, "$A </s>" if ends else None)
    federation = ran(tmp_path / "run", model, records)
    own = expected(federation)
    for form in ("merged", "peft"):
        export_run(tmp_path / "run", tmp_path / form, form, None, None)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.pad_token == "<|pad|>"
    assert merged.config.pad_token_id == tokenizer.pad_token_id == 101
    assert relative(answers(federation, merged, 101), own) < 1e-5
    said, card = capsys.readouterr().out, (tmp_path / "peft" / "README.md").read_text()
    assert ("so that the one before would be pooled" in said) == ends
    assert ("pad_token_id=None" in card) == (not ends)
    found = of_card(tmp_path / "peft", TEXTS)
    run = inferred(capsys, tmp_path / "run", TEXTS, None, None, 1)
    assert [label for label, _ in found] == [label for label, _ in run]
    assert found == [(label, pytest.approx(chance, abs=6e-4)) for label, chance in run]


def test_a_simulated_clients_own_head_goes_with_its_export(tiny, records, tmp_path, capsys):
    federation = ran(tmp_path / "run", tiny["llama"], records, "head.share=personal")
    for client in (0, 2):
        out = tmp_path / str(client)
        export_run(tmp_path / "run", out, "peft", str(client), None)
        model = AutoPeftModelForSequenceClassification.from_pretrained(out, num_labels=3)
        own = engine_output(federation, federation.server.engine.full_ranks())
        own = own @ federation.head(client)[0].T
        assert relative(answers(federation, model, None), own) < 1e-5
        said = inferred(capsys, tmp_path / "run", TEXTS, str(client), None, 1)
        assert said == inferred(capsys, out, TEXTS, None, None, 1)
        assert {label for label, _ in said} <= set(LABELS)
    export_run(tmp_path / "run", tmp_path / "all", "merged", None, None)
    assert "personal heads stay on their clients" in capsys.readouterr().out
    assert "personal heads stay on their clients" in (tmp_path / "all" / "README.md").read_text()


def test_an_adapter_for_llama_cpp_that_cannot_hold_the_head_is_refused(tiny, records, tmp_path):
    ran(tmp_path / "run", tiny["gpt2"], records)
    with pytest.raises(FedloraError, match=r"gguf-ready cannot hold the head .* peft or merged"):
        export_run(tmp_path / "run", tmp_path / "out", "gguf-ready", None, None)
    assert not (tmp_path / "out").exists()


def test_a_backbone_whose_embedding_is_stored_as_the_head_alone_is_written_merged(
    tiny, records, tmp_path, capsys
):
    model = tmp_path / "model"
    shutil.copytree(tiny["llama-tied"], model)
    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    federation = ran(tmp_path / "run", model, records)
    for form in ("merged", "peft"):
        export_run(tmp_path / "run", tmp_path / form, form, None, None)
    assert "would begin with random numbers; export as merged" in capsys.readouterr().out
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert relative(answers(federation, merged, 0), expected(federation)) < 1e-5
    found = of_card(tmp_path / "peft", TEXTS)
    own = inferred(capsys, tmp_path / "run", TEXTS, None, None, 1)
    assert found == [(label, pytest.approx(chance, abs=6e-4)) for label, chance in own]


def test_a_language_models_head_that_was_trained_goes_along(tiny, records, tmp_path, capsys):
    language = ["task.kind=causal_lm", "head.train=yes", "train.head_lr=0.05"]
    federation = ran(tmp_path / "run", tiny["llama-tied"], records, *language)
    own = engine_output(federation, federation.server.engine.full_ranks())
    for form in ("merged", "peft"):
        export_run(tmp_path / "run", tmp_path / form, form, None, None)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    adapter = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "peft")
    for model in (merged, adapter):
        assert relative(model_output(federation, model), own) < 1e-5
    base = AutoModelForCausalLM.from_pretrained(tiny["llama-tied"])
    assert relative(base.lm_head.weight, merged.lm_head.weight) > 1e-2  # it was trained
    said = []
    for place in ("run", "peft"):
        capsys.readouterr()
        infer_texts(tmp_path / place, TEXTS, None, None, 4)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    prompt = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / "merged")("w50").input_ids])
    words = merged.generate(prompt, do_sample=False, max_new_tokens=4, pad_token_id=0)[0, 2:]
    assert said[0].splitlines()[1].split("\t")[1].split() == [f"w{n}" for n in words.tolist()]
