"""An audit file loses no line, whoever writes and whatever dies, and hides no change."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from fedlora.errors import FedloraError
from fedlora.site import audit
from fedlora.site.tally import Tally, going_on, left_behind, settle
from fedlora.storage import open_private


def event(number: int, session: str = "s") -> dict[str, object]:
    return {"event": "round", "time": audit.now(), "session": session, "round": number}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "states" / audit.NAME


def filled(path: Path, lines: int = 5) -> list[bytes]:
    for number in range(lines):
        audit.append(path, event(number))
    return path.read_bytes().splitlines(keepends=True)


def numbers(path: Path) -> list[int]:
    return [found["round"] for found in audit.read(path).events]


def test_each_line_is_json_and_the_file_is_its_owners_alone(path: Path) -> None:
    path.parent.mkdir()
    path.touch(0o644)
    lines = filled(path)
    assert [json.loads(line)["round"] for line in lines] == numbers(path) == [0, 1, 2, 3, 4]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("change", ["edited", "removed", "doubled", "not json", "foreign"])
def test_a_line_that_was_changed_is_found(path: Path, place: int, change: str) -> None:
    lines = filled(path)
    changed = {
        "edited": [lines[place].replace(b'"round":', b'"round":1')],
        "removed": [],
        "doubled": [lines[place]] * 2,
        "not json": [b"\0" * len(lines[place][:-1]) + b"\n"],
        "foreign": [b'{"event":"round"}\n'],
    }[change]
    path.write_bytes(b"".join([*lines[:place], *changed, *lines[place + 1 :]]))
    with pytest.raises(FedloraError, match=r"is damaged before line \d, .*; restore a copy"):
        audit.read(path)


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_torn_line_stays_and_the_next_one_vouches_for_it(path: Path, kept: int) -> None:
    *whole, last = filled(path)
    path.write_bytes(b"".join([*whole, last[:kept]]))
    assert numbers(path)[:4] == [0, 1, 2, 3]
    audit.append(path, event(5))
    audit.append(path, event(6))
    found = audit.read(path)
    complete = [4] if kept == -1 else []  # only its line break is missing
    assert numbers(path) == [0, 1, 2, 3, *complete, 5, 6]
    assert found.torn == (kept != -1)
    path.write_bytes(path.read_bytes().replace(last[:kept].rstrip() + b"\n", b"{}\n", 1))
    with pytest.raises(FedloraError, match="is damaged"):
        audit.read(path)


def test_a_full_disk_tears_a_line_and_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(path)
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:30]))
    with pytest.raises(FedloraError, match="No space left on device; free some space"):
        audit.append(path, event(5))
    monkeypatch.undo()
    audit.append(path, event(6))
    assert numbers(path) == [0, 1, 2, 3, 4, 6] and audit.read(path).torn == 1


def append_until_killed(path: Path, name: str, confirm: int) -> None:
    number = 0
    while True:
        audit.append(path, event(number, name))
        os.write(confirm, b"x")
        number += 1


def test_processes_that_write_at_once_and_are_killed_leave_whole_lines(path: Path) -> None:
    chance, written = random.Random(0), {}
    for turn in range(5):
        children = {}
        for name in (f"a{turn}", f"b{turn}"):
            receive, confirm = os.pipe()
            child = os.fork()
            if child == 0:
                append_until_killed(path, name, confirm)
            os.close(confirm)
            children[name] = (child, receive)
        for _, receive in children.values():
            os.read(receive, 1)
        time.sleep(chance.uniform(0, 0.1))
        for name, (child, receive) in children.items():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            written[name] = 1
            while data := os.read(receive, 1 << 16):
                written[name] += len(data)
            os.close(receive)
    found = audit.read(path)
    for name, confirmed in written.items():
        own = [line["round"] for line in found.events if line["session"] == name]
        assert own == list(range(len(own)))
        assert confirmed <= len(own) <= confirmed + 1
    assert found.torn == 0 and min(written.values()) > 1


def test_a_file_that_is_none_is_a_sentence(path: Path) -> None:
    with pytest.raises(FedloraError, match=r"cannot be read .No such file"):
        audit.read(path)


def test_what_a_session_counted_outlives_a_kill_and_is_told_once(tmp_path: Path) -> None:
    receive, confirm = os.pipe()
    child = os.fork()
    if child == 0:
        tally = Tally(tmp_path, "one")
        for number in range(1, 1 << 30):
            tally.write({"left": {"gradients": number}})
            os.write(confirm, b"x") if number < 1 << 10 else time.sleep(60)
    os.close(confirm)
    while len(os.read(receive, 1)) and not (
        going_on(tmp_path).get("one", {}).get("left", {}).get("gradients", 0) >= 100
    ):
        assert not left_behind(tmp_path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not going_on(tmp_path)
    [found] = left_behind(tmp_path).values()
    assert found["left"]["gradients"] >= 100
    assert [name for name, _ in settle(tmp_path)] == ["one"]
    assert not list(settle(tmp_path)) and not list(tmp_path.iterdir())


def test_a_session_that_begins_is_not_taken_for_killed_by_who_looks_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its file's making and its holding somebody settles, and somebody holds it to look."""
    looking = []

    def made(path: Path) -> BinaryIO:
        file = open_private(path)
        assert not left_behind(tmp_path) and not list(settle(tmp_path))
        for found in tmp_path.glob("tally-*"):
            looking.append(found.open("rb"))
            fcntl.flock(looking[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file

    monkeypatch.setattr("fedlora.site.tally.open_private", made)
    tally = Tally(tmp_path, "one")
    tally.write({"left": {"gradients": 1}})
    assert going_on(tmp_path) == {"one": {"left": {"gradients": 1}}}
    tally.close()
    assert not list(tmp_path.iterdir())


def test_a_torn_slot_leaves_the_one_before(tmp_path: Path) -> None:
    tally = Tally(tmp_path, "one")
    for number in range(1, 6):
        tally.write({"left": {"gradients": number}})
    [path] = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    with path.open("r+b") as file:
        file.seek(2048 + 20)  # the fifth is in the second slot
        file.write(b"\0\0\0")
    assert going_on(tmp_path) == {"one": {"left": {"gradients": 4}}}
    tally.close()
    assert not going_on(tmp_path)
