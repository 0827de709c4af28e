"""``fedlora site`` tells what is on the device's disk, and says which file cannot be right."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from support.site import Server, Site

from fedlora.cli import main
from fedlora.privacy.ledger import Ledger
from fedlora.site import audit
from fedlora.site.tally import Tally


class Command:
    """Runs ``fedlora site`` in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """Return status, output and errors."""
        self._capsys.readouterr()
        self._monkeypatch.setattr(sys, "argv", ["fedlora", "site", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = self._capsys.readouterr()
        return int(str(ended.value.code)), said.out, said.err

    def refusal(self, *arguments: object) -> str:
        """Return the one sentence of a refusal."""
        status, _, said = self(*arguments)
        assert status == 2 and said.count("\n") == 1 and said.startswith("fedlora: ")
        return said

    def facts(self, states: Path, file: Path) -> dict[str, Any]:
        """Return what ``--json`` writes."""
        assert self(states, "--json", file, "--overwrite")[0] == 0
        found: dict[str, Any] = json.loads(file.read_text())
        return found


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


def test_every_figure_is_that_of_the_ledger_and_of_what_the_server_received(
    site: Site, command: Command, tmp_path: Path
) -> None:
    first, second = Server(), Server()
    site.invite("privacy.epsilon=0.4", server=first)
    site.invite("privacy.epsilon=0.5", server=second, run="fedcba9876543210")
    site.invite("privacy.epsilon=4.0", run="aaaaaaaaaaaaaaaa")
    facts = command.facts(site.states, tmp_path / "facts.json")
    with Ledger(tmp_path / "ledger", "0") as ledger:
        epsilon, charges, rho = ledger.epsilon(1e-5), ledger.seq, ledger.rho
    [own] = facts["ledgers"]
    assert (own["epsilon"], own["charges"], own["rho"]) == (epsilon, charges, rho)
    assert own["records"] == 40 and own["fault"] == "" and 0.4 < epsilon <= 1.0
    one, two, refused = facts["sessions"]
    assert one["ledger_before"]["epsilon"] == 0.0
    assert two["ledger_before"] == one["ledger_after"]
    assert two["ledger_after"]["epsilon"] == epsilon
    for session, server in ((one, first), (two, second)):
        left = {kind: session["left"].get(kind, 0) for kind in server.received}
        assert left == dict(server.received) and session["state"] == "finished"
    assert not refused["accepted"] and refused["left"] == {}
    status, text, _ = command(site.states)
    assert status == 0
    assert f"whole: {charges} charges, 40 records; epsilon {epsilon:.4g} spent of 1" in text
    total = sum(server.received["activations"] for server in (first, second))
    assert f"  activations  {total:>18,}\n" in text
    assert "refused    it refuses the run, as its owner's terms do not allow it" in text
    assert text.count("own.csv\n    20") == 1  # one data set, its runs by time
    latest = command(site.states, "--last", 1)[1]
    assert "run aaaaaaaaaaaaaaaa 'study'" in latest and "run fedcba9876543210 'study'" not in latest
    assert "the last 1; --last 3 shows all" in latest
    assert f"  activations  {total:>18,}\n" in latest


def test_running_killed_and_settled_sessions_are_told_apart(
    site: Site, command: Command, tmp_path: Path
) -> None:
    site.invite_and_kill(rounds=1)
    [killed] = command.facts(site.states, tmp_path / "facts.json")["sessions"]
    assert "killed" in killed["state"] and killed["left"]["activations"] > 0
    assert killed["samples"] == 40 and killed["round"] == 1
    # as if its process were still there
    [path] = site.states.glob("tally-*")
    kept = path.read_bytes()
    tally = Tally(site.states, path.name.removeprefix("tally-"))
    path.write_bytes(kept)
    [running] = command.facts(site.states, tmp_path / "facts.json")["sessions"]
    assert running["state"] == "going on" and running["left"] == killed["left"]
    tally._file.close()
    site.invite()
    settled, _ = command.facts(site.states, tmp_path / "facts.json")["sessions"]
    ended = ("ended", "state", "left", "samples", "round")
    assert {key: settled[key] for key in ended[1:]} == {key: killed[key] for key in ended[1:]}


def test_a_folder_that_is_none_or_no_devices_is_named(command: Command, tmp_path: Path) -> None:
    assert "nowhere is no folder; name the one that state" in command.refusal(tmp_path / "nowhere")
    assert "holds no audit.jsonl" in command.refusal(tmp_path)
    (tmp_path / "audit.jsonl").mkdir()
    assert "holds no audit.jsonl" in command.refusal(tmp_path)


def test_without_a_folder_the_default_one_is_read(
    site: Site, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert ".fedlora/states is no folder" in command.refusal()
    site.invite()
    shutil.copytree(site.states, tmp_path / "home" / ".fedlora" / "states")
    status, text, _ = command()
    assert status == 0 and "'study', client 0" in text


def test_a_damaged_line_is_named_with_the_mend(site: Site, command: Command) -> None:
    site.invite()
    path = site.states / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"held_out":0', b'"held_out":9'))
    said = command.refusal(site.states)
    assert "audit.jsonl is damaged before line 3" in said and "restore a copy" in said


@pytest.mark.parametrize(
    "odd",
    [
        {"event": "accepted"},
        {"event": "accepted", "rows": 3, "data": "x"},
        {"event": "accepted", "rows": {}, "data": "x", "ledger": {"path": 5}},
        {"event": "ended", "how": "finished", "left": [1]},
        {"event": "asked", "wants": [1]},
        {"event": "ended", "how": "finished", "left": {}, "round": "many"},
    ],
)
def test_a_file_that_no_device_wrote_is_refused_in_a_sentence(
    command: Command, tmp_path: Path, odd: dict[str, Any]
) -> None:
    audit.append(tmp_path / audit.NAME, {"event": "asked", "time": audit.now(), "session": "s"})
    if odd["event"] == "ended":
        rows = {"rows": {}, "data": "x"}
        accepted = {"event": "accepted", "time": audit.now(), "session": "s", **rows}
        audit.append(tmp_path / audit.NAME, accepted)
    audit.append(tmp_path / audit.NAME, {"time": audit.now(), "session": "s", **odd})
    assert "holds what no device writes" in command.refusal(tmp_path)


def test_a_json_file_that_cannot_be_written_is_named(
    site: Site, command: Command, tmp_path: Path
) -> None:
    site.invite()
    assert "which is a folder; name a file" in command.refusal(site.states, "--json", tmp_path)
    (tmp_path / "figures").write_text("precious")
    there = command.refusal(site.states, "--json", tmp_path / "figures")
    assert "exists; replace it with --overwrite" in there
    assert (tmp_path / "figures").read_text() == "precious"
    below = tmp_path / "figures" / "file.json"
    assert "cannot write --json" in command.refusal(site.states, "--json", below)


def ledger_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("ledger*"))


def removed(folder: Path) -> None:
    for path in ledger_files(folder):
        path.unlink()


def begun_anew(folder: Path) -> None:
    removed(folder)
    Ledger(folder / "ledger", "0").close()


def anothers(folder: Path) -> None:
    removed(folder)
    Ledger(folder / "ledger", "7").close()


def cut_short(folder: Path) -> None:
    path = folder / "ledger"
    first, *_ = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first)


def edited(folder: Path) -> None:
    path = folder / "ledger"
    path.write_bytes(path.read_bytes().replace(b'"client":"0"', b'"client":"1"', 1))


def unmarked(folder: Path) -> None:
    (folder / "ledger.mark").unlink()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (removed, "is gone although"),
        (begun_anew, "this device was charged in one of key"),
        (anothers, "is that of client 7, not 0"),
        (cut_short, "damaged|cut short"),
        (edited, "is damaged"),
        (unmarked, "ledger.mark is gone; restore"),
    ],
)
def test_a_ledger_that_is_not_what_was_charged_is_told_after_all_else(
    site: Site, command: Command, tmp_path: Path, change: Any, said: str
) -> None:
    site.invite()
    change(tmp_path)
    status, text, error = command(site.states)
    assert status == 2 and error.count("\n") == 1
    assert any(part in error for part in said.split("|"))
    assert "NOT WHOLE: " in text and "'study', client 0" in text


def test_an_old_copy_of_a_ledger_is_found_which_the_ledger_itself_cannot_see(
    site: Site, command: Command, tmp_path: Path
) -> None:
    site.invite("privacy.epsilon=0.4")
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in ledger_files(tmp_path):
        shutil.copy2(path, copy)
    site.invite("privacy.epsilon=0.5", run="fedcba9876543210")
    assert command(site.states)[0] == 0
    for path in copy.iterdir():
        shutil.copy2(path, tmp_path)
    Ledger(tmp_path / "ledger", "0").close()  # opens as if nothing had happened
    assert "an old copy was put back" in command.refusal(site.states)


def test_a_ledger_in_use_is_verified_too(site: Site, command: Command, tmp_path: Path) -> None:
    site.invite("privacy.epsilon=0.4")
    with Ledger(tmp_path / "ledger", "0"):
        assert command(site.states)[0] == 0
