"""What ``fedlora audit`` says to targets and files that it cannot use, before it computes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from fedlora.errors import FedloraError
from simulations.audit.command import audit
from simulations.audit.stages import Stages


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedloraError, match=r"holds no scenario\.toml"):
        audit(str(tmp_path))


def test_a_run_without_an_adapter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scenario.toml").write_text('name = "half"\n')
    with pytest.raises(FedloraError, match=r"has no adapter.*fedlora resume"):
        audit(str(tmp_path))


def test_a_run_whose_adapter_is_damaged_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scenario.toml").write_text('name = "torn"\n')
    (tmp_path / "adapter").mkdir()
    with pytest.raises(FedloraError, match="holds no adapter that can be read"):
        audit(str(tmp_path))


def test_an_unknown_scenario_is_refused_with_a_near_one() -> None:
    with pytest.raises(FedloraError, match="did you mean quickstart"):
        audit("quikstart")


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_computed(
    tmp_path: Path,
) -> None:
    with pytest.raises(FedloraError, match="which is a folder"):
        audit("quickstart", json_=tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(FedloraError, match="cannot write --json"):
        audit("quickstart", json_=blocked / "audit.json")


def test_progress_is_shown_on_a_terminal_as_in_a_pipe() -> None:
    for terminal in (False, True):
        said = io.StringIO()
        with Stages(Console(file=said, force_terminal=terminal, width=80)) as stages:
            stages.expect(2)
            for name in ("run without noise", "membership"):
                with stages.stage(name, 3) as advance:
                    advance()
        assert "2/2" in said.getvalue() and "membership" in said.getvalue()
