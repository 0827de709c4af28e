"""What Flower makes of the app, and what it shows of a run that ends for a reason of the user's."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import tomllib
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support.patience import patient

import fedlora.server.flower.run
from fedlora.errors import FedloraError
from fedlora.server.app import RunEnded, main


@contextmanager
def in_a_context():
    """As Flower's typed contexts do, contextlib puts the traceback back on its way out."""
    yield


def test_flower_logs_the_sentence_of_an_ended_run_without_frames(monkeypatch):
    def refuse(*_: object) -> None:
        raise FedloraError("0 of 2 clients connected; start more SuperNodes")

    class Context:
        run_config, run_id = {}, 1

    monkeypatch.setattr(fedlora.server.flower.run, "run_over_flower", refuse)
    with pytest.raises(RunEnded) as caught, in_a_context():
        main(None, Context())
    error = caught.value
    shown = logging.Formatter().formatException((type(error), error, error.__traceback__))
    assert shown == "fedlora.server.app.RunEnded: 0 of 2 clients connected; start more SuperNodes"
    assert error.__cause__ is None


def test_flower_finds_no_dependency_of_the_app_that_it_would_install():
    """It runs ``uv sync`` on the app's own table, which is that of the distribution."""
    table = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    project, excluded = table["project"], table["tool"]["uv"]["exclude-dependencies"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    assert {Requirement(text).name for text in wanted} == set(excluded)


def test_the_app_asks_for_no_package_when_flower_syncs_it(tmp_path):
    shutil.copy(Path(__file__).parents[2] / "pyproject.toml", tmp_path)
    words = "-m uv sync --offline --no-cache --no-install-project --dry-run --python"
    done = subprocess.run(
        [sys.executable, *words.split(), sys.executable],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Resolved 1 package" in done.stderr
