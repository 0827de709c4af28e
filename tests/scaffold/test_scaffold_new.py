"""A new app of ``fedlora new`` works as it is, in every way that its README names."""

from __future__ import annotations

import runpy
import sys
import tomllib
from pathlib import Path

import pytest

from fedlora.channel import build_channel
from fedlora.check import check_scenario
from fedlora.config import load_scenario, with_overrides
from fedlora.errors import FedloraError
from fedlora.link import create_codec
from fedlora.ranks import check_rank_strategy, create_strategy
from fedlora.registry import use_python_path
from fedlora.scaffold.write import PARTS, AppNames, write_app
from fedlora.server.run import ServerRun
from fedlora.split import find_family
from simulations.in_process import Record, run
from simulations.studies.compare.strategies import parse_strategies
from simulations.studies.compare.trial import Trial, run_reference, run_trial

SMALL = ("train.rounds=1", "train.steps=1", "federation.clients=3", "data.max_rows=80")


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "far-ranks"
    # Not AppNames.of, which sees the module that an earlier test has imported.
    write_app(folder, AppNames("far-ranks", "far_ranks", "FarRanks"), ["channel"])
    return folder


def test_the_scenario_finds_its_plug_ins_wherever_it_is_run_from(app, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    scenario = load_scenario(app / "scenario.toml")
    assert scenario.python_path == str(app)
    check_scenario(scenario)
    channel = build_channel(scenario.channel, scenario.seed)
    snrs_db = {channel.truth(0, round_).down_snr_db for round_ in range(40)}
    assert snrs_db == {0.0, -10.0}


def test_its_strategy_is_sound_and_spends_as_greedy_does_before_it_has_learnt(app, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    scenario = with_overrides(load_scenario(app / "scenario.toml"), SMALL)
    use_python_path(scenario.python_path)
    assert check_rank_strategy(create_strategy(scenario.ranks, 0)) == []
    reference = run_reference(scenario, 0)
    own, greedy = (
        run_trial(scenario, Trial(contender, 10.0, 0), reference, 0.2)
        for contender in parse_strategies("far_ranks.strategy:FarRanks,greedy")
    )
    assert own.row["adapter_bits"] == greedy.row["adapter_bits"] > 0
    assert own.complaints == []


def test_all_its_plug_ins_are_sound_and_take_part_in_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder, names = tmp_path / "far-all", AppNames("far-all", "far_all", "FarAll")
    written = {path.relative_to(folder).as_posix() for path in write_app(folder, names, PARTS)}
    assert {f"far_all/{name}.py" for name in PARTS} < written
    runpy.run_path(str(folder / "model.py"), run_name="__main__")
    scenario = with_overrides(load_scenario(folder / "scenario.toml"), SMALL)
    check_scenario(scenario)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(folder / "check.py"), run_name="__main__")
    assert ended.value.code is False
    record = Record()
    server = run(scenario, record, workers=1)
    assert record.rounds and not server.cohort.lost
    assert {f"far_all.{name}" for name in ("strategy", *PARTS)} == used_by(server)


def used_by(server: ServerRun) -> set[str]:
    """Return where the plug-ins of a run come from."""
    training, answers = server.training, server.training._steps._answers
    plug_ins = [
        *(
            training.ranking.strategy.strategy,
            server.air.channel.model,
            server.air.channel._predictor,
            server.air._scheduler,
            answers._mechanism,
            answers._back,
        ),
        *(training._evaluator.task, server.engine.update.average, find_family(server.checkpoint)),
    ]
    return {type(plug_in).__module__ for plug_in in plug_ins}


def test_a_task_without_texts_trains_its_front_and_shares_its_head(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "far-task"
    write_app(folder, AppNames("far-task", "far_task", "FarTask"), ["task"])
    scenario = load_scenario(folder / "scenario.toml")
    check_scenario(scenario)
    assert (scenario.train.embedding, scenario.head.share) == (True, "step")


def test_a_folder_that_registers_a_name_is_found_without_being_installed(tmp_path):
    (tmp_path / "far_codec.py").write_text("from fedlora.link.codec import Fp32Codec as Mine\n")
    table = '[project.entry-points."fedlora.codecs"]\nfar = "far_codec:Mine"\nfp32 = "nowhere:No"\n'
    (tmp_path / "pyproject.toml").write_text(table)
    with pytest.raises(FedloraError, match="no codecs plug-in is called 'far'"):
        create_codec("far")
    use_python_path(str(tmp_path))
    assert type(create_codec("far")).__name__ == "Fp32Codec"
    assert type(create_codec("fp32")).__module__ == "fedlora.link.codec"  # what is installed
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "pyproject.toml").write_text("[project")
    use_python_path(str(tmp_path / "other"))
    with pytest.raises(FedloraError, match=r"cannot read .*pyproject\.toml \(.*; mend it"):
        create_codec("far")


def test_it_is_a_flower_app_of_installed_components(app):
    project = tomllib.loads((app / "pyproject.toml").read_text())
    own = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["tool"]["flwr"]["app"]["components"] == own["tool"]["flwr"]["app"]["components"]
    assert set(project["tool"]["flwr"]["app"]["config"]) == set(
        own["tool"]["flwr"]["app"]["config"]
    )
    assert project["project"]["dependencies"] == []


@pytest.mark.parametrize(
    "name", ["3d", "a b", "a--b", "-a", "class", "torch", "json", "strategies"]
)
def test_a_name_that_python_cannot_import_or_has_already_is_refused(name):
    with pytest.raises(FedloraError, match=r"; (write|take) "):
        AppNames.of(name)


def test_a_folder_with_something_in_it_is_left_alone(app):
    (app / "check.py").write_text("mine")
    with pytest.raises(FedloraError, match="not an empty folder"):
        write_app(app, AppNames("far-ranks", "far_ranks", "FarRanks"))
    assert (app / "check.py").read_text() == "mine"


def test_a_relative_python_path_starts_from_the_file_or_the_working_directory(
    app, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    scenario = load_scenario(app / "scenario.toml")
    assert with_overrides(scenario, ["seed=3"]).python_path == str(app)
    assert with_overrides(scenario, ["python_path=plugins"]).python_path == str(
        tmp_path / "plugins"
    )
    with pytest.raises(FedloraError, match=r"python_path is .*plugins', but there is no such"):
        check_scenario(with_overrides(scenario, ["python_path=plugins"]))
