"""A plug-in of each kind from a folder of its own: a sound one trains, a broken one is named.

A broken strategy is told of and the run goes on; any other ends it, in one sentence that names the
plug-in and says what was expected.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.broken_plugins import (
    KINDS,
    LATER,
    OPTIONS,
    RAISE,
    Broken,
    broken_plugins,
    class_of,
    copy_of,
    register_family,
    settings_of,
    write_broken,
    write_model,
    write_plugins,
)
from support.federation import Federation, copy_model, scenario, write_records

from fedlora.blame import naming_plugins
from fedlora.check import check_scenario
from fedlora.cli import main
from fedlora.config import Scenario, scenario_to_toml
from fedlora.errors import FedloraError
from fedlora.registry import use_python_path
from fedlora.report import RunFolder
from fedlora.split import Checkpoint, final_stage, find_family
from simulations.in_process import federate

BROKEN = list(broken_plugins())
FEW = {
    str(next((b for b in BROKEN if b.kind == kind and fault in b.fault), ""))
    for kind in KINDS
    for fault in (RAISE, LATER, "returns None")
}
"""What is tried of each kind every time, one of each fault; all of it takes a minute."""
MEND = re.compile(r"expected|; \w+")


@pytest.fixture(scope="session")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plugins(tmp_path_factory.mktemp("away"))


@pytest.fixture(scope="session")
def neox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("neox"))


@pytest.fixture(scope="session")
def gpt2(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_model(checkpoints["gpt2"], tmp_path_factory.mktemp("gpt2") / "model", "gpt2")


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("texts") / "train.csv", 45)


def run(config: Scenario) -> Federation:
    """Check and run as every door does, and say at the end what a summary says."""
    with naming_plugins():
        check_scenario(config)
        federation = Federation(config).run()
        for part in (federation.server.air, federation.server.training.ranking):
            part.state_dict()
        federation.server.training.summary_fields()
    return federation


def one_round(gpt2: Path, texts: Path, *more: str) -> Scenario:
    small = ("train.rounds=2", "train.steps=2", "train.batch_size=2", "lora.r_max=2")
    return scenario(gpt2, texts, *small, "privacy.delta=1e-3", *more)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_one_trains_from_a_folder_outside_the_repository(
    kind, plugins, neox, gpt2, texts, tmp_path
):
    folder = copy_of(plugins, tmp_path / "plugins")
    register_family(folder, class_of("family"))
    config = one_round(gpt2, texts, *settings_of(kind, class_of(kind), folder, neox))
    federation = run(config)
    assert len(federation.recorder.rounds) == 2 and not federation.server.cohort.lost


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(b, id=str(b).replace(" ", "_"), marks=[pytest.mark.slow] * (str(b) not in FEW))
        for b in BROKEN
    ],
)
def test_a_broken_one_is_named_with_what_was_expected(
    broken, plugins, neox, gpt2, texts, tmp_path, caplog
):
    folder = copy_of(plugins, tmp_path / "plugins")
    name = write_broken(folder, broken)
    config = one_round(gpt2, texts, *settings_of(broken.kind, name, folder, neox))
    caplog.set_level(logging.WARNING)
    try:
        federation = run(config)
    except FedloraError as error:
        said = str(error)
    else:
        lost = federation.server.cohort.lost  # in the last evaluation, when nothing is left to do
        assert broken.kind == "strategy" or len(lost) == 3, "it trained as if nothing were wrong"
        assert len(federation.recorder.rounds) == 2
        said = next(r.getMessage() for r in caplog.records if "Broken" in r.getMessage())
    assert "Broken" in said and MEND.search(said), said
    assert "\n" not in said and "Traceback" not in said and len(said) < 900, said


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("code", "said"),
    [
        (None, "cannot import 'broken'"),
        ("import nothing_of_this_name", r"in line 1 of .*broken\.py \(ModuleNotFoundError"),
        ("class Broken(:\n", r"in line 1 of .*broken\.py \(SyntaxError"),
        ("import sys\nsys.exit(0)", r"in line 2 of .*broken\.py \(SystemExit"),
        ("x = 1\nopen('/nowhere')", r"in line 2 of .*broken\.py \(FileNotFoundError"),
        ("other = 1", "module 'broken' has no 'Broken'"),
        ("class Broken: pass", "is the class broken.Broken; name a class that inherits from"),
        ("def Broken(): pass", "is a function; name a class that inherits from"),
        ("Broken = 3", "is a int; name a class that inherits from"),
    ],
)
def test_one_that_is_no_plug_in_is_named_before_anything_starts(
    kind, code, said, plugins, neox, gpt2, texts, tmp_path
):
    folder = copy_of(plugins, tmp_path / "plugins")
    register_family(folder, "broken:Broken")
    if code is not None:
        (folder / "broken.py").write_text(code)
    config = one_round(gpt2, texts, *settings_of(kind, "broken:Broken", folder, neox))
    with pytest.raises(FedloraError, match=said) as caught:
        check_scenario(config)
    assert "broken:Broken" in str(caught.value) or "gpt_neox" in str(caught.value)
    assert "\n" not in str(caught.value)


OF_NO_METHOD = "def __getattribute__(self, name):\n    raise SystemExit(0)"
"""Raises wherever it is looked at, also where nobody asks with care."""


def test_a_command_ends_with_status_2_and_the_sentence_whatever_a_plug_in_raises(
    plugins, neox, gpt2, texts, tmp_path, monkeypatch, capsys
):
    folder = copy_of(plugins, tmp_path / "plugins")
    name = write_broken(folder, Broken("task", "", OF_NO_METHOD))
    config = one_round(gpt2, texts, *settings_of("task", name, folder, neox))
    (tmp_path / "scenario.toml").write_text(scenario_to_toml(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["fedlora", "check", "scenario.toml"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert "task.kind 'broken:Broken' fails (SystemExit at broken.py, line" in said.out + said.err


def test_a_run_keeps_its_rounds_and_says_which_plug_in_ended_it(
    plugins, neox, gpt2, texts, tmp_path
):
    folder = copy_of(plugins, tmp_path / "plugins")
    later = next(b for b in BROKEN if str(b) == f"average {LATER} in average")
    name = write_broken(folder, replace(later, code=later.code.replace("> 1:", "> 3:")))
    config = one_round(gpt2, texts, *settings_of("average", name, folder, neox))
    said = r"the average broken:Broken fails \(KeyError at broken\.py, line \d+: .*; mend it"
    with pytest.raises(FedloraError, match=said):
        federate(config, out=tmp_path / "run", workers=1)
    kept = RunFolder(tmp_path / "run")
    assert [record["round"] for record in kept.read_metrics()] == [1]
    assert re.search(said, kept.read_events()[0][-1]["text"])
    assert "Traceback" not in kept.log.read_text()


@pytest.mark.parametrize("answer", ["raise KeyError('no luck')", "return None"])
def test_a_family_without_a_final_stage_is_named(answer, plugins, neox, tmp_path):
    folder = copy_of(plugins, tmp_path / "plugins")
    write_broken(folder, Broken("family", "", f"def final_stage(self, *_):\n    {answer}"))
    use_python_path(str(folder))
    checkpoint = Checkpoint(neox)
    said = r"the family broken:Broken of model_type 'gpt_neox' .*(expected a module|mend it)"
    with pytest.raises(FedloraError, match=said):
        final_stage(find_family(checkpoint), checkpoint, torch.float32)


@pytest.mark.parametrize("kind", OPTIONS)
def test_options_that_one_does_not_know_are_named_with_those_that_it_knows(
    kind, plugins, gpt2, texts, neox
):
    settings = settings_of(kind, class_of(kind), plugins, neox)
    config = one_round(gpt2, texts, *settings, f"{OPTIONS[kind]}.nope=1")
    use_python_path(config.python_path)
    said = rf"{OPTIONS[kind]} has no option 'nope'; known options: "
    with pytest.raises(FedloraError, match=re.escape(said)):
        check_scenario(config)
