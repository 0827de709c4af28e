"""Who runs a benchmark by its module and errs is told so in one sentence, as by fedlora's verbs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fedlora.errors import FedloraError
from simulations.bench.engines import pooled
from simulations.refusals import one_sentence


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FedloraError("rounds is 0; set 1"), "rounds is 0; set 1"),
        (FileNotFoundError(2, "No such file", "rows.csv"), "cannot use rows.csv: No such file"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(error, said, capsys):
    with pytest.raises(SystemExit) as ended, one_sentence():
        raise error
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(said)


def test_what_is_no_mistake_of_the_user_is_not_hidden():
    with pytest.raises(ZeroDivisionError), one_sentence():
        raise ZeroDivisionError


def test_an_environment_that_is_not_there_is_named():
    command = [sys.executable, "-m", "simulations.bench.rounds_of_builds", "nowhere/bin/python"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "cannot use nowhere/bin/python" in ended.stderr and "Traceback" not in ended.stderr


def test_a_scenario_that_pools_all_tokens_is_not_measured(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pooled", "quickstart", "--set", "task.pool=mean"])
    with pytest.raises(FedloraError, match=r"task\.pool is 'mean'"):
        pooled.main()
