"""A device's log: plain whole lines, its owner's alone, rotated, in a file and on the console."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import pytest

from fedlora.site.device_log import DeviceLog, device_log

log = logging.getLogger("fedlora.edge")
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (INFO|WARNING|ERROR) fedlora (.*), process \d+")


def test_lines_go_to_file_and_console_and_end_with_the_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = logging.getLogger("fedlora").level
    with device_log(tmp_path / "states", "client 3"):
        log.info("asked")
        with device_log(tmp_path / "states", "client 3"):  # within one message: the same log
            log.warning("odd")
    log.warning("afterwards")
    text = (tmp_path / "states" / "device.log").read_text()
    assert [line.split(": ")[-1] for line in text.splitlines()] == ["asked", "odd"]
    assert all(LINE.match(line)[2] == "client 3" for line in text.splitlines())
    assert text in capsys.readouterr().err
    assert (tmp_path / "states" / "device.log").stat().st_mode & 0o777 == 0o600
    assert logging.getLogger("fedlora").level == before


def test_under_the_journal_a_line_has_no_time_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    with device_log(tmp_path, "client 3"):
        log.info("asked")
    assert capsys.readouterr().err.startswith("INFO fedlora client 3, process ")
    assert LINE.match((tmp_path / "device.log").read_text())


def test_no_words_of_a_server_begin_a_line_or_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with device_log(tmp_path, "client 1\n%(message)s"):
        log.info("a run called %s", "x\n2026-01-01T00:00:00Z INFO forged\x1b[2J\r")
    for text in ((tmp_path / "device.log").read_text(), capsys.readouterr().err):
        assert text.count("\n") == 1 and "\x1b" not in text and "\r" not in text


def emitted(folder: Path, name: str, lines: int, **limits: int) -> None:
    handler = DeviceLog(folder, **limits)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for number in range(lines):
        handler.emit(logging.makeLogRecord({"msg": f"{name} {number} {'x' * 60}"}))


def test_the_log_is_rotated_and_the_last_files_are_kept(tmp_path: Path) -> None:
    emitted(tmp_path, "a", 400, most_bytes=2000, kept=3)
    files = {path.name: path for path in tmp_path.iterdir()}
    assert set(files) == {"device.log", *(f"device.log.{n}" for n in (1, 2, 3))}
    assert all(path.stat().st_size <= 2000 for path in files.values())
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in files.values())
    order = ["device.log.3", "device.log.2", "device.log.1", "device.log"]
    text = "".join(files[name].read_text() for name in order).splitlines()
    kept = [int(line.split()[1]) for line in text]
    assert kept == list(range(kept[0], 400)) and len(kept) > 80


def test_processes_that_write_and_rotate_at_once_lose_no_line(tmp_path: Path) -> None:
    children = []
    for name in "abc":
        child = os.fork()
        if child == 0:
            emitted(tmp_path, name, 200, most_bytes=3000, kept=100)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    lines = [line for path in tmp_path.iterdir() for line in path.read_text().splitlines()]
    wanted = {f"{name} {number} {'x' * 60}" for name in "abc" for number in range(200)}
    assert len(lines) == 600 and set(lines) == wanted


def test_a_log_that_cannot_be_written_is_told_once_on_the_console(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "states").write_text("no folder")
    with device_log(tmp_path / "states", "client 3"):
        log.info("one")
        log.info("two")
    told = capsys.readouterr().err
    assert told.count("cannot write") == 1 and ": one" in told and ": two" in told
