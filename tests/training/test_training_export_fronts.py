"""A token embedding that clients trained goes along, or what is written says that it does not."""

from __future__ import annotations

import io
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from support.federation import Federation, scenario
from test_training_export import base_model, engine_output, model_output
from test_training_export_heads import answers, expected, inferred, of_card, ran
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from fedlora.commands.export import export_run
from fedlora.commands.infer import infer_texts
from fedlora.config import scenario_to_toml
from fedlora.errors import FedloraError
from fedlora.report import RunFolder
from fedlora.server.results import write_results
from fedlora.tasks.classification import Classification
from simulations import federate

TEXTS = ["w9 w10 w5 w33 w34", "w50", "w90 w77 w20"]
TRAINED = ["train.embedding=true", "link.activation=fp32"]


def language_run(folder: Path, model: Path, records: Path, *overrides: str) -> Federation:
    """Train a language model with its token embedding and leave a run's folder."""
    rates = ["train.lr=0.05", "train.rounds=1", "train.steps=2", "task.kind=causal_lm"]
    config = scenario(model, records, *rates, *TRAINED, *overrides)
    federation = Federation(config).run()
    kept = RunFolder.create(folder, overwrite=True)
    kept.write_scenario(scenario_to_toml(config))
    for record in federation.recorder.rounds:
        kept.append_round(record)
    write_results(kept, federation.server, {})
    return federation


def moved(federation: Federation) -> bool:
    """Tell whether the clients' embedding is another than the backbone's."""
    own = federation.clients[0].model.front.tokens.weight
    return not torch.allclose(own, base_model(federation).get_input_embeddings().weight, atol=1e-3)


@pytest.mark.parametrize("share", ["step", "round"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_language_models_shared_embedding_leaves_with_it(
    tiny, records, tmp_path, capsys, family, share
):
    run = tmp_path / "run"
    federation = language_run(run, tiny[family], records, f"front.share={share}")
    assert moved(federation)
    own = engine_output(federation, federation.server.engine.full_ranks())
    export_run(run, tmp_path / "merged", "merged", None, None)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(model_output(federation, model), own, rtol=1e-4, atol=1e-4)
    export_run(run, tmp_path / "peft", "peft", None, None)
    assert "the lines that give" not in capsys.readouterr().out
    infer_texts(run, TEXTS, None, None, 5)
    of_run = capsys.readouterr().out
    infer_texts(tmp_path / "peft", TEXTS, None, None, 5)
    assert capsys.readouterr().out == of_run
    loaded = lines_of_card(tmp_path / "peft")
    torch.testing.assert_close(model_output(federation, loaded), own, rtol=1e-4, atol=1e-4)
    for form in ("padded", "gguf-ready"):
        with pytest.raises(FedloraError, match=f"--format {form} cannot hold the token embedding"):
            export_run(run, tmp_path / form, form, None, None)


def lines_of_card(folder: Path) -> torch.nn.Module:
    """Return the model that the lines of a model card load."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()):
        patch.setattr(sys, "argv", ["lines.py", "w9"])
        patch.chdir(folder)
        exec(code, names)
    return names["model"]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_classifiers_shared_embedding_leaves_with_it(tiny, records, tmp_path, capsys, family):
    run = tmp_path / "run"
    federation = ran(run, tiny[family], records, *TRAINED, "front.share=step")
    assert moved(federation)
    own = expected(federation)
    export_run(run, tmp_path / "merged", "merged", None, None)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    found = answers(federation, model, None)
    torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-4)
    export_run(run, tmp_path / "peft", "peft", None, None)
    given = inferred(capsys, run, TEXTS, None, None, 5)
    assert inferred(capsys, tmp_path / "peft", TEXTS, None, None, 5) == given
    for form in ("merged", "peft"):
        told = of_card(tmp_path / form, TEXTS)
        assert [label for label, _ in told] == [label for label, _ in given]
        assert [c for _, c in told] == pytest.approx([c for _, c in given], abs=6e-4)


def test_where_embeddings_stay_with_the_clients_nobody_answers_for_them(
    tiny, records, tmp_path, capsys
):
    runs = {"classifier": tmp_path / "classifier", "language": tmp_path / "language"}
    ran(runs["classifier"], tiny["llama"], records, *TRAINED)
    language_run(runs["language"], tiny["llama"], records)
    for kind, run in runs.items():
        for form in ("peft", "merged"):
            capsys.readouterr()
            export_run(run, tmp_path / f"{kind}-{form}", form, None, None)
            told = capsys.readouterr().out
            assert "answers are others than the clients'" in told and "this run's" not in told
            card = (tmp_path / f"{kind}-{form}" / "README.md").read_text()
            assert "Each client has trained a token embedding of its own" in card
        for place in (run, tmp_path / f"{kind}-peft"):
            with pytest.raises(FedloraError, match="has trained a token embedding of its own"):
                infer_texts(place, TEXTS, None, None, 5)


def test_a_shared_embedding_that_is_gone_is_missed(tiny, records, tmp_path):
    run = tmp_path / "run"
    language_run(run, tiny["llama"], records, "front.share=step")
    (run / "front.safetensors").unlink()
    with pytest.raises(FedloraError, match="holds no token embedding that can be read"):
        infer_texts(run, TEXTS, None, None, 5)
    with pytest.raises(FedloraError, match="holds no token embedding that can be read"):
        export_run(run, tmp_path / "out", "merged", None, None)


@pytest.mark.parametrize("share", ["step", "personal"])
def test_a_forecast_leaves_with_what_its_clients_share_and_no_word_of_texts(
    tmp_path, capsys, share
):
    few = {"train.rounds": 1, "train.steps": 1, "federation.clients": 2, "data.max_rows": 200}
    ends = {"head.share": share, "front.share": share}
    federate("csi-prediction", out=tmp_path / "run", overrides=few | ends, workers=1)
    for form in ("peft", "merged"):
        out = tmp_path / form
        export_run(tmp_path / "run", out, form, None, None)
        told = capsys.readouterr().out
        assert "the task forecast reads no texts" in told and "this run's answers" not in told
        card = (out / "README.md").read_text()
        assert "- Task: `forecast`, which reads no texts" in card
        assert "classify" not in card and "tokenizer" not in card
        assert lines_of_card(out).eval()(inputs_embeds=torch.zeros(1, 8, 128)) is not None
        for name in ("front.safetensors", "head.safetensors"):
            assert (out / name).exists() == (share == "step")
            if share == "step":
                assert (out / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    with pytest.raises(FedloraError, match="a task's front and head"):
        export_run(tmp_path / "run", tmp_path / "gguf", "gguf-ready", None, None)


class Deep(Classification):
    """A classifier of two layers."""

    def head(self, checkpoint, dtype, width, seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(width, 4), nn.Tanh(), nn.Linear(4, len(self.labels)))


def test_a_head_of_a_tasks_own_goes_along_as_a_file_and_is_not_called_personal(
    tiny, records, tmp_path, capsys
):
    run, out = tmp_path / "run", tmp_path / "out"
    ran(run, tiny["llama"], records, "task.kind=test_training_export_fronts:Deep")
    export_run(run, out, "peft", None, None)
    told = capsys.readouterr().out
    assert "a module of the task's own" in told and "this run's answers" not in told
    assert "personal" not in told + (out / "README.md").read_text()
    assert (out / "head.safetensors").read_bytes() == (run / "head.safetensors").read_bytes()
    for place in (run, out):
        with pytest.raises(FedloraError, match=r"no head to classify with: .* of the task's own"):
            infer_texts(place, TEXTS, None, None, 5)
