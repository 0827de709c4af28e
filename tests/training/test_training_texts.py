"""What a run writes after held-out prompts is the undivided model's text, and scored as such."""

from __future__ import annotations

import importlib.util
import json
import re

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from support.chat_folders import SMOLLM2, plain_answers, write_chat_model, write_conversations
from support.federation import Federation, scenario

from clients.owner.scenario import local_scenario
from clients.owner.wishes import wishes
from fedlora.check import check_plugins
from fedlora.commands.export import export_run
from fedlora.config import scenario_to_toml
from fedlora.errors import FedloraError
from fedlora.report import RunFolder, result_rows
from fedlora.server.results import write_results
from fedlora.site.words import wants_text
from fedlora.tasks import load_tokenizer

CHAT = ["task.kind=causal_lm", "data.messages=messages", "task.max_length=200"]
PROMPTS, TOKENS = 3, 9


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("texts") / "model", SMOLLM2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_conversations(tmp_path_factory.mktemp("texts") / "chats.jsonl", 40)


def asked(model, data, *overrides):
    texts = [f"evaluate.generate={PROMPTS}", f"evaluate.generate_tokens={TOKENS}"]
    return scenario(model, data, *CHAT, *texts, *overrides)


@pytest.mark.parametrize("link", [[], ["link.reuse=false", "evaluate.keep=best"]])
def test_texts_are_the_undivided_models_and_scores_those_of_the_libraries(
    model, data, tmp_path, link
):
    config = asked(
        model,
        data,
        *("train.rounds=1", "train.steps=12", "train.batch_size=8", "train.lr=0.01"),
        *("data.holdout=0.3", "evaluate.batch_size=2", "lora.alpha=16", *link),
    )
    federation = Federation(config).run()
    kept = RunFolder.create(tmp_path / "run")
    kept.write_scenario(scenario_to_toml(config))
    for record in federation.recorder.rounds:
        kept.append_round(record)
    write_results(kept, federation.server, {})
    export_run(kept.path, tmp_path / "export", "peft", None, None)
    told = json.loads((kept.path / "evaluation.json").read_text())
    tokenizer = load_tokenizer(model)
    everything: list[tuple[str, str]] = []
    for client in federation.clients:
        own = []
        for sample in client.door.truth(client.held_out)[:PROMPTS]:
            number = int(re.findall(r"dog (\d+)\?", tokenizer.decode(sample.ids))[0])
            (answer,) = plain_answers(model, tmp_path / "export", [f"dog {number}?"], TOKENS)
            own.append((answer, f"fox {number % 3}"))
        everything += own
        found = told["clients"][client.name]
        assert found["texts"] == PROMPTS
        assert {k: found["metrics"][k] for k in scores(own)} == pytest.approx(scores(own))
    expected = scores(everything)
    assert {k: told["all"]["metrics"][k] for k in expected} == pytest.approx(expected)
    assert expected["rouge_l"] > 0  # something has been learnt, so that it is no contest of zeros
    summary = kept.read_summary()
    assert summary["metrics"]["rouge_l"] == pytest.approx(expected["rouge_l"])
    assert federation.recorder.rounds[-1]["metrics"]["bleu"] == pytest.approx(expected["bleu"])
    rows = {row[0] for block in result_rows(summary) for row in block}
    assert {"ROUGE-L", "BLEU", "exact match"} <= rows


def scores(pairs):
    """Return what the libraries say of texts and their references."""
    rouge = RougeScorer(["rougeL"])
    written, references = zip(*pairs, strict=True)
    return {
        "rouge_l": sum(rouge.score(r, w)["rougeL"].fmeasure for w, r in pairs) / len(pairs),
        "bleu": sacrebleu.corpus_bleu(written, [references]).score,
        "exact_match": sum(w == r for w, r in pairs) / len(pairs),
    }


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["privacy.epsilon=8"], "evaluate.generate is 3 and privacy is on"),
        (["data.messages=", "data.text=text"], "records are texts without prompts"),
        (["task.kind=classification"], "task.kind 'classification' writes no text"),
        (["evaluate.generate=-1"], "evaluate.generate"),
    ],
)
def test_texts_that_would_tell_too_much_or_mean_nothing_are_refused(model, data, overrides, said):
    with pytest.raises(FedloraError, match=said):
        check_plugins(asked(model, data, *overrides))


def test_a_device_whose_records_have_no_prompts_refuses_the_run(model, data):
    keys = {"data": str(data), "model": str(model)}
    with pytest.raises(FedloraError, match="records are texts without prompts"):
        local_scenario(asked(model, data), {**keys, "text": "text"})
    own = local_scenario(asked(model, data), {**keys, "messages": "messages"})
    assert "what is written after held-out prompts" in wants_text(wishes(own))


def test_a_library_that_is_not_installed_is_named(model, data, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name == "sacrebleu" else find(name, *a),
    )
    with pytest.raises(FedloraError, match=r"sacrebleu is not installed; pip install 'fedlora\[te"):
        check_plugins(asked(model, data))
