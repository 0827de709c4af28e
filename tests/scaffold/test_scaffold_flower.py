"""A new app outside the repository, through fedlora's and through Flower's own command."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftModel
from support.flower_runs import FEDLORA, PATIENCE_S, adapter_in, adapter_of, flwr_run, same
from support.patience import patient
from transformers import AutoModel

from fedlora.config import load_scenario
from fedlora.registry import use_python_path
from fedlora.scaffold.write import PARTS
from simulations.in_process import Record, run

pytestmark = [pytest.mark.flower, pytest.mark.e2e]
ROOT = Path(__file__).parents[2]
SMALL = "train.rounds=1 train.steps=1 data.max_rows=120 evaluate.baseline=false"


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "away-ranks"
    subprocess.run([FEDLORA, "new", folder, "--channel"], check=True, cwd=tmp_path)
    return folder


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Return an app with a plug-in of each kind."""
    folder = tmp_path / "away-all"
    options = [f"--{name}" for name in PARTS]
    subprocess.run([FEDLORA, "new", folder, *options], check=True, cwd=tmp_path)
    subprocess.run([sys.executable, "model.py"], check=True, cwd=folder)
    return folder


def check_run(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    records = list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))
    assert summary["bits"]["down"]["adapter"] > 0
    # Free or blocked by 10 dB around means of 0, 5, 10 and 15 dB: nobody else's channel.
    assert {c["snr_db"] for record in records for c in record["clients"].values()} <= {
        *(mean - loss for mean in (0.0, 5.0, 10.0, 15.0) for loss in (0.0, 10.0))
    }
    assert "strategy" not in (folder / "log.txt").read_text()  # nothing that it was blamed for


@pytest.mark.slow
def test_fedlora_run_takes_the_app_from_any_folder_and_equals_the_in_process_federation(
    app, tmp_path, monkeypatch
):
    """Bit for bit, with the app's own strategy and channel on the server and on the edge host."""
    out = tmp_path / "run"
    settings = [
        *("train.rounds=2", "train.steps=2", "train.batch_size=2", "data.max_rows=160"),
        *("federation.clients=5", "lora.r_max=4", "task.max_length=24", "compute.edge_hosts=1"),
    ]
    command = [FEDLORA, "run", app / "scenario.toml", "--out", out]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=patient(PATIENCE_S),
        check=False,
    )
    words = "\n".join(file.read_text()[-3000:] for file in out.glob("*.txt"))
    assert done.returncode == 0, done.stdout + done.stderr + words
    check_run(out)
    monkeypatch.setattr(sys, "path", list(sys.path))
    scenario = load_scenario(out / "scenario.toml")
    use_python_path(scenario.python_path)
    expected = run(scenario, Record())
    assert same(adapter_of(out), adapter_in(expected))

    summary = json.loads((out / "summary.json").read_text())
    assert (summary["clients"], summary["steps"]) == (5, 4)
    assert summary["metric_before"] == expected.training.outcome.before is not None
    assert f"{summary['metric']:.3f}" in done.stdout
    assert len(summary["label_counts"]) > 1
    assert "has not ended" not in (out / "report.html").read_text()
    base = AutoModel.from_pretrained(ROOT / "simulations" / "quickstart" / "decoder")
    loaded = PeftModel.from_pretrained(base, out / "adapter")
    assert loaded.peft_config["default"].r == 4


@pytest.mark.slow
def test_the_commands_of_its_readme_check_and_compare_it(app):
    commands = {
        words[1] if words[0] == "fedlora" else words[0]: words
        for line in (app / "README.md").read_text().splitlines()
        if line.startswith(("python ", "fedlora ")) and (words := shlex.split(line, comments=True))
    }
    done = subprocess.run([sys.executable, *commands["python"][1:]], cwd=app, check=False)
    assert done.returncode == 0
    words = commands["compare"]
    words[words.index("--seeds") + 1] = "1"
    overrides = [word for setting in SMALL.split() for word in ("--set", setting)]
    done = subprocess.run(
        [FEDLORA, *words[1:], *overrides, "--set", "federation.clients=2", "--workers", "1"],
        cwd=app,
        capture_output=True,
        text=True,
        timeout=patient(PATIENCE_S),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with (app / "comparison" / "compare.csv").open() as stream:
        found = {(row["strategy"], row["snr_db"]) for row in csv.DictReader(stream)}
    names = ("away_ranks.strategy:AwayRanks", "greedy")
    assert found == {(name, snr) for name in names for snr in ("0.0", "10.0")}


def test_flwr_run_takes_the_app_with_its_scenario_and_its_plug_ins(app, tmp_path):
    home, out = tmp_path / "flwr", tmp_path / "run"
    for name in ("datasets", "tokenizers", "opacus"):  # libraries that a file of the app's hides
        (app / f"{name}.py").write_text("raise RuntimeError('a file of the app')")
    flwr_run(app, home, 2, f'set="{SMALL}"', out)
    check_run(out)
    # The bundle's copy ran, as on any machine that Flower sends it to.
    assert str(home / "apps") in (out / "scenario.toml").read_text()


def run_and_compare(app, tmp_path, settings, compared):
    """Run and compare an app's scenario by fedlora's own commands, and give what each came to."""
    overrides = [word for setting in settings.split() for word in ("--set", setting)]
    for words in (
        ("run", app / "scenario.toml", "--out", tmp_path / "run"),
        ("compare", app / "scenario.toml", "--out", tmp_path / "compared", *compared),
    ):
        yield subprocess.run(
            [FEDLORA, *words, *overrides],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=patient(PATIENCE_S),
            check=False,
        )


FEW = "train.rounds=2 train.steps=1 federation.clients=4 evaluate.baseline=false"
FEW += " evaluate.report=true"  # held-out losses are what is compared, also under privacy
COMPARED = ("--strategies", "away_all.strategy:AwayAll,greedy", "--snr", "5", "--seeds", "1")
BREAKS = {
    "codec": ("encode", "True"),
    "average": ("average", "True"),
    "channel": ("sample", "given[2] > 60"),  # 60 rounds lie before the run, so in its second
    "scheduler": ("select", "given[1] > 0"),
    "predictor": ("predict", "len(given[1]) > 60"),
    "mechanism": ("values", "True"),
    "task": ("loss", "True"),
    "family": ("layers", ""),
    "strategy": ("allocate", "given[1] > 1"),
}
"""What of each kind is no longer as it was, and when: where it can be, in the middle of a run."""


def break_one(app: Path, kind: str) -> None:
    """Let a plug-in of an app raise, or, where all is looked at before a run, claim what is not."""
    (method, when), name = BREAKS[kind], class_in(kind)
    with (app / "away_all" / f"{kind}.py").open("a") as stream:
        if not when:
            stream.write(f"\n\n{name}.{method} = 'nowhere'\n")
            return
        stream.write(f"\n\n_sound = {name}.{method}\n\n\ndef _broken(*given, **named):\n")
        stream.write(f"    if {when}:\n        raise KeyError('no luck')\n")
        stream.write(f"    return _sound(*given, **named)\n\n\n{name}.{method} = _broken\n")


def class_in(kind: str) -> str:
    return "AwayAll" if kind == "strategy" else f"AwayAll{kind.capitalize()}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", [kind for kind in BREAKS if kind != "strategy"])
def test_a_broken_plug_in_is_named_by_run_compare_and_flower(whole, tmp_path, kind):
    break_one(whole, kind)
    where = f"KeyError at {kind}\\.py, line" if BREAKS[kind][1] else "nowhere"
    said = rf"away_all\.{kind}:{class_in(kind)}\b.*{where}[^\n]*(; |expected)"
    for done in run_and_compare(whole, tmp_path, FEW, COMPARED):
        assert done.returncode == 2 and "Traceback" not in done.stdout + done.stderr
        assert re.search(said, done.stderr), done.stderr
    with pytest.raises(AssertionError, match=said):
        flwr_run(whole, tmp_path / "flwr", 2, f'set="{FEW}"', tmp_path / "flower")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_runs_go_on_without_a_broken_strategy_and_say_so(whole, tmp_path):
    break_one(whole, "strategy")
    said = r"AwayAll\b.*round 2: allocate raised KeyError at strategy\.py, line"
    for done in run_and_compare(whole, tmp_path, FEW, COMPARED):
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(said, done.stdout + done.stderr), done.stdout + done.stderr
    flwr_run(whole, tmp_path / "flwr", 2, f'set="{FEW}"', tmp_path / "flower")
    for folder in (tmp_path / "run", tmp_path / "flower"):
        assert re.search(said, (folder / "log.txt").read_text())
        assert json.loads((folder / "summary.json").read_text())["rounds"] == 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_plug_in_of_each_kind_is_taken_by_run_compare_and_flower(whole, tmp_path, monkeypatch):
    """From a folder outside the repository; a family, found by the app's pyproject.toml, too.

    Beside them a command of another package, which cannot be loaded and keeps nobody from a run.
    """
    package = tmp_path / "package" / "broken-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[fedlora.commands]\nbroken = nowhere:No\n")
    monkeypatch.setenv("PYTHONPATH", str(package.parent), prepend=os.pathsep)
    for done in run_and_compare(whole, tmp_path, FEW, COMPARED):
        assert done.returncode == 0, done.stdout + done.stderr
    assert len((tmp_path / "compared" / "compare.csv").read_text().splitlines()) == 3
    flwr_run(whole, tmp_path / "flwr", 2, f'set="{FEW}"', tmp_path / "flower")
    for folder in (tmp_path / "run", tmp_path / "flower"):
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["clients"] == 4 and summary["bits"]["down"]["adapter"] > 0
        records = list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))
        # The scheduler takes three quarters of the clients.
        assert [len(record["clients"]) for record in records if record["round"]] == [3, 3]
        assert "away_all" not in (folder / "log.txt").read_text()  # nobody was blamed
    said = subprocess.run(
        [FEDLORA, "broken"], capture_output=True, text=True, timeout=patient(60), check=False
    )
    assert said.returncode == 2 and "nowhere:No, cannot be loaded" in said.stderr
