"""A study that is broken off ends in the rows of an unbroken one; others are kept out of it."""

from __future__ import annotations

import importlib
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import cheap_study
from support.cheap_study import TRIALS, Trial, study_folder

from fedlora.errors import FedloraError
from fedlora.import_path import add_plugin_folder
from simulations.options import read_numbers
from simulations.studies.kit import run_missing


def start(out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, cheap_study.__file__, str(out)]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> tuple[Path, float]:
    """Return the folder of a study that nobody disturbed, and how long it took, in seconds."""
    out, began = tmp_path_factory.mktemp("unbroken") / "study", time.monotonic()
    assert start(out).wait() == 0
    return out, time.monotonic() - began


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_a_study_killed_at_random_moments_ends_in_the_rows_of_an_unbroken_one(
    tmp_path, unbroken, kills
):
    whole, seconds = unbroken
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    out, moments, counts = tmp_path / "study", random.Random(seed), []
    for kill in range(kills):
        study = start(out)
        # The first hundredths of a second decide about the folder, the rest about the trials.
        late = 0.25 * seconds if kill == 0 else 0.3 * seconds + 0.2 * seconds * kill / kills
        time.sleep(moments.uniform(0.0 if kill % 2 else 0.15 * seconds, late))
        study.kill()
        study.communicate()
        lines = out / "trials.jsonl"
        counts.append(len(lines.read_text().splitlines()) if lines.exists() else 0)
    last = start(out)
    _, errors = last.communicate()
    assert last.returncode == 0, errors.decode()
    assert counts == sorted(counts)
    assert counts[-1] < TRIALS, "every kill came too late; the study is too short"
    assert (out / "sines.csv").read_bytes() == (whole / "sines.csv").read_bytes()
    assert len((out / "trials.jsonl").read_text().splitlines()) == TRIALS


def test_a_study_goes_on_from_whatever_is_left_when_it_is_killed_as_it_begins(tmp_path):
    for left in ((".lock",), (".lock", "trials.jsonl", ".scenario.toml.part")):
        out = tmp_path / "-".join(left)
        out.mkdir()
        for name in left:
            (out / name).write_text("half of what sh" if name.endswith(".part") else "")
        study_folder(out)
        assert not study_folder(out).results.records


def test_a_scenario_of_the_users_own_is_not_taken_for_a_study_that_has_just_begun(tmp_path):
    (tmp_path / "scenario.toml").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(FedloraError, match="is not empty and holds no earlier study of sines"):
            study_folder(tmp_path, overwrite=overwrite)
    assert (tmp_path / "scenario.toml").read_text() == "precious"


def test_only_one_may_run_a_study_and_another_with_other_settings_is_refused(tmp_path):
    first = study_folder(tmp_path / "study")
    with first.held(), pytest.raises(FedloraError, match="a study of sines is still going on in"):
        study_folder(tmp_path / "study", overwrite=True)
    with pytest.raises(FedloraError, match=r"a study of sines with other settings; .*--overwrite"):
        study_folder(tmp_path / "study", step=0.2)
    first.results.add({"number": 1, "sine": 0.5})
    assert not study_folder(tmp_path / "study", step=0.2, overwrite=True).results.records


def test_trials_of_other_code_of_a_plug_in_are_not_mixed_with_new_ones(tmp_path):
    plugins, out = tmp_path / "plugins", tmp_path / "study"
    (plugins / "sines_away").mkdir(parents=True)
    (plugins / "sines_away" / "__init__.py").write_text("")
    (plugins / "sines_away" / "helper.py").write_text("step = 0.1\n")
    (plugins / ".venv").mkdir()
    add_plugin_folder(str(plugins))
    importlib.import_module("sines_away.helper")
    first = study_folder(out)
    (plugins / "sines_away" / "helper.py").write_text("step = 0.2\n")
    first = study_folder(out)  # nothing has run yet
    first.results.add({"number": 1, "sine": 0.5})
    assert study_folder(out).results.path == out / "trials.jsonl"
    (plugins / "more_away.py").write_text("")
    importlib.import_module("more_away")  # another one changes nothing of what is there
    study_folder(out)
    (plugins / "sines_away" / "helper.py").write_text("step = 0.3\n")
    said = r"holds trials that ran with other code of sines_away\.helper, .* --overwrite, .* delete"
    with pytest.raises(FedloraError, match=said):
        study_folder(out)
    (out / "plugins.json").unlink()
    study_folder(out)
    (plugins / "more_away.py").write_text("pass\n")
    assert not study_folder(out, overwrite=True).results.records
    study_folder(out)


def test_a_study_whose_folder_was_replaced_meanwhile_runs_nothing(tmp_path):
    first = study_folder(tmp_path / "study")
    study_folder(tmp_path / "study", step=0.2, overwrite=True)
    with pytest.raises(FedloraError, match="other settings"), first.held():
        pass


def test_an_overwrite_that_was_killed_can_be_done_again(tmp_path):
    out = tmp_path / "study"
    study_folder(out).results.add({"number": 1, "sine": 0.5})
    (out / "scenario.toml").unlink()  # what goes first
    with pytest.raises(FedloraError, match="--overwrite"):
        study_folder(out)
    assert not study_folder(out, overwrite=True).results.records


def test_a_trial_that_takes_its_process_with_it_is_one_sentence_and_the_rest_is_kept(tmp_path):
    folder = study_folder(tmp_path / "study")
    trials = [Trial(1), Trial(1), Trial(2), Trial(-9)]
    with pytest.raises(FedloraError, match=r"a process of the study was ended .* fewer --workers"):
        run_missing(folder.results, trials, cheap_study.run_trial, lambda _: (0.1,), workers=1)
    assert sorted(study_folder(tmp_path / "study").results.records) == [1, 2]


def test_a_study_without_a_terminal_says_how_much_there_is_and_what_is_left(tmp_path, capsys):
    folder = study_folder(tmp_path / "study")
    trials = [Trial(1), Trial(2), Trial(3)]
    run_missing(folder.results, trials, cheap_study.run_trial, lambda _: (0.1,), workers=1)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "trials: 3 to run, 1 at a time" and len(said) == 4
    for number, line in enumerate(said[1:3], start=1):
        assert re.fullmatch(rf"trials {number}/3: {number}, about [\d.]+ s left", line), line
    assert said[3] == "trials 3/3: 3"
    run_missing(folder.results, trials, cheap_study.run_trial, lambda _: (0.1,), workers=1)
    assert not capsys.readouterr().err  # nothing is left to do


def test_results_of_something_else_are_refused(tmp_path):
    study_folder(tmp_path / "study")
    (tmp_path / "study" / "trials.jsonl").write_text('{"other": 1}\n')
    with pytest.raises(FedloraError, match=r"trials\.jsonl holds something else than results of a"):
        study_folder(tmp_path / "study")
    shutil.rmtree(tmp_path / "study")


@pytest.mark.parametrize("text", ["", "1,", "0", "-1", "x", "1,1", "2.5", "nan", "1e9"])
def test_numbers_that_cannot_be_are_quoted(text):
    with pytest.raises(FedloraError, match=r"--participants is '.*'; list different whole ones"):
        read_numbers("--participants", text, "whole ones", "1,2", lambda v: v in range(1, 10**6))
