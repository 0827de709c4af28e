"""fedlora from Python: a run by one call, a result that a notebook shows, a sentence for a slip."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftModel
from safetensors.torch import load_file
from support.federation import Federation
from transformers import AutoModel

import fedlora
import simulations
from fedlora.api import assignments
from fedlora.report import RunFolder, RunResult
from fedlora.server.results import export
from simulations.examples import loop

TINY = {
    "federation.clients": 2,
    "data.max_rows": 200,
    "data.test": "",
    "data.holdout": 0.2,
    "task.max_length": 16,
    "train.rounds": 2,
    "train.steps": 1,
    "lora.r_max": 2,
    "privacy.epsilon": None,
    "evaluate.baseline": False,
    "channel.snr_db": [3.0],
    "ranks.strategy": "uniform",
}
WEIGHTS = "adapter_model.safetensors"
DECODER = Path(__file__).parents[2] / "simulations" / "quickstart" / "decoder"


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> RunResult:
    return simulations.federate(out=tmp_path_factory.mktemp("api") / "run", overrides=TINY)


def test_the_package_itself_imports_no_library():
    code = "import sys, fedlora, simulations; print(len({m.split('.')[0] for m in sys.modules}))"
    bare = "import sys, importlib, typing; print(len({m.split('.')[0] for m in sys.modules}))"
    found = [int(subprocess.check_output([sys.executable, "-c", own])) for own in (code, bare)]
    assert found[0] <= found[1] + 6
    assert {"run", "resume", "open_run", "scenario", "FedloraError"} <= set(dir(fedlora))


def test_a_result_has_the_figures_of_the_folder_and_an_adapter_that_peft_loads(result):
    assert result.summary == json.loads((result.path / "summary.json").read_text())
    assert result.metric == result.rounds[-1]["metric"] == result.summary["metric"]
    assert result.metric_name == "accuracy" and result.scenario.lora.r_max == 2
    assert len(result.rounds) == 2 and sum(len(c) for c in result.summary["label_counts"].values())
    loaded = PeftModel.from_pretrained(AutoModel.from_pretrained(DECODER), result.adapter)
    assert loaded.peft_config["default"].r == 2
    assert RunFolder(result.path).read_events()[0][-1]["status"] == "finished"
    again = fedlora.open_run(result.path)
    assert repr(again) == repr(result) and str(result.path) in repr(again)


def test_a_run_in_this_process_trains_what_a_federation_of_its_scenario_does(result, tmp_path):
    federation = Federation(fedlora.scenario("quickstart", TINY)).run()
    export(federation.server).save(tmp_path)
    one, other = (load_file(p / WEIGHTS) for p in (result.adapter, tmp_path))
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_a_notebook_shows_table_and_plots_and_asks_nobody_for_them(result):
    page = result._repr_html_()
    assert page.count("data:image/png;base64,") == 2 and "accuracy" in page.lower()
    assert not re.search(r"https?:|src=\"(?!data:)", page)
    assert set(result.plots) >= {"learning", "traffic", "holdings"}


def test_overrides_are_a_table_or_texts_as_of_set():
    both = {"privacy.epsilon": None, "train.rounds": 3, "model.path": "a b", "evaluate.baseline": 0}
    assert assignments({**both, "evaluate.baseline": False}) == [
        *("privacy.epsilon=none", "train.rounds=3", 'model.path="a b"', "evaluate.baseline=false"),
    ]
    assert fedlora.scenario("quickstart", ["train.rounds=3"]).train.rounds == 3
    assert fedlora.scenario("quickstart", {"channel.snr_db": [1.0]}).channel.snr_db == (1.0,)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda path: fedlora.run("quickstrat"), "did you mean quickstart"),
        (lambda path: fedlora.run(overrides={"train.round": 3}), "did you mean"),
        (lambda path: simulations.federate(overrides={"train.rounds": "many"}), "train.rounds"),
        (lambda path: fedlora.open_run(str(path) + "/none"), "holds no run; name a run folder"),
        (lambda path: fedlora.resume(path, progress=False), "holds no run; name a run folder"),
        (lambda path: simulations.federate(out=path), "earlier run"),
    ],
)
def test_a_slip_is_a_sentence(result, tmp_path, call, sentence):
    path = result.path if sentence == "earlier run" else tmp_path
    with pytest.raises(fedlora.FedloraError, match=sentence) as error:
        call(path)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.flower
def test_through_flower_the_result_is_the_same_bit_for_bit(result, tmp_path, capsys):
    over = fedlora.run(out=tmp_path / "run", overrides=TINY, progress=False)
    assert capsys.readouterr().out == ""
    one, other = (load_file(r.adapter / WEIGHTS) for r in (result, over))
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
    kept = ("metric", "loss", "bits", "air_seconds")
    assert [[r.get(k) for k in kept] for r in result.rounds] == [
        [r.get(k) for k in kept] for r in over.rounds
    ]
    assert result.summary["label_counts"] == over.summary["label_counts"]


def test_the_loop_of_the_examples_measures_each_round_and_ends_when_it_is_told(capsys):
    config = fedlora.scenario("quickstart", TINY)
    moved = loop.train(config, least=0.0)
    assert len(moved) == 2 and all(0 < part < 1 for part in moved)
    assert loop.train(config, least=1.0) == moved[:1]
    assert capsys.readouterr().out.count("the adapter moved") == 3
    for example in Path(loop.__file__).parent.glob("*.py"):
        assert len(example.read_text().splitlines()) < 80, example


def test_the_citation_is_of_this_release():
    text = (Path(__file__).parents[2] / "CITATION.cff").read_text()
    assert f"\nversion: {fedlora.__version__}\n" in text
