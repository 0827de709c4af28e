"""A new app of ``fedlora new`` works as it is, in every way that its README names."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from fedlora.channel import build_channel
from fedlora.check import check_scenario
from fedlora.config import load_scenario, with_overrides
from fedlora.errors import FedloraError
from fedlora.privacy.mechanisms import check_mechanism, mechanism_class
from fedlora.ranks import check_rank_strategy, create_strategy
from fedlora.registry import use_python_path
from fedlora.scaffold.write import AppNames, write_app
from simulations.studies.compare.strategies import parse_strategies
from simulations.studies.compare.trial import Trial, run_reference, run_trial

SMALL = ("train.rounds=1", "train.steps=1", "federation.clients=2", "data.max_rows=80")


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "far-ranks"
    # Not AppNames.of, which sees the module that an earlier test has imported.
    write_app(folder, AppNames("far-ranks", "far_ranks", "FarRanks"), channel=True)
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


def test_its_mechanism_is_sound_and_the_scenario_runs_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder, names = tmp_path / "far-noise", AppNames("far-noise", "far_noise", "FarNoise")
    write_app(folder, names, channel=True, mechanism=True)
    assert "strategy, a channel model and a privacy mechanism" in (folder / "README.md").read_text()
    scenario = with_overrides(load_scenario(folder / "scenario.toml"), SMALL)
    check_scenario(scenario)
    assert check_mechanism(mechanism_class(scenario.privacy.release)) == []


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
        write_app(app, AppNames("far-ranks", "far_ranks", "FarRanks"), channel=False)
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
