"""Where Flower's and Ray's files go: below TMPDIR, or where Ray's sockets have room."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from fedlora.commands.doctor import _resources
from fedlora.errors import FedloraError
from fedlora.launch import temporary
from fedlora.launch.flower_commands import FlowerCommands
from fedlora.launch.temporary import MOST_FOR_RAY, parent_folder, run_folder

SESSION = "ray/session_2026-11-29_13-41-07_893123_4194304/sockets"


@pytest.fixture
def tmpdir_of(monkeypatch: pytest.MonkeyPatch):
    """Set TMPDIR, as a shell does before it starts a command."""

    def set_(place: Path | str) -> None:
        monkeypatch.setenv("TMPDIR", str(place))
        monkeypatch.setattr(tempfile, "tempdir", None)

    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    yield set_
    monkeypatch.undo()
    tempfile.tempdir = None


@pytest.fixture
def short():
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def binds_in(home: str) -> None:
    """Bind a socket where Ray binds its longest."""
    folder = Path(FlowerCommands(Path(home)).environment["RAY_TMPDIR"], SESSION)
    folder.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(folder / "plasma_store"))


def test_a_run_has_its_files_below_a_tmpdir_that_is_as_long_as_can_be(tmpdir_of, short):
    longest = MOST_FOR_RAY - len("/fedlora-12345678") - len(f"{short}/")
    place = short / ("x" * longest)
    place.mkdir()
    tmpdir_of(place)
    with run_folder() as home:
        assert Path(home).parent == place
        binds_in(home)


@pytest.mark.parametrize("size", [1, 60, 150])
def test_a_run_has_its_files_elsewhere_where_tmpdir_leaves_sockets_no_room(tmpdir_of, short, size):
    place = short / ("x" * (MOST_FOR_RAY - len("/fedlora-12345678") - len(f"{short}/") + size))
    place.mkdir()
    tmpdir_of(place)
    with run_folder() as home:
        assert Path(home).parent == Path("/tmp")
        binds_in(home)
    found = {f.what: (f.found, f.mend) for f in _resources()}
    told, mend = found["temporary files"]
    assert f"TMPDIR has {len(str(place))} characters" in told
    assert "fedlora run uses /tmp" in told
    assert mend == ""


def test_where_no_place_is_short_enough_it_is_refused_and_the_doctor_finds_it(
    tmpdir_of, short, monkeypatch
):
    (place := short / ("x" * 60)).mkdir()
    tmpdir_of(place)
    monkeypatch.setattr(temporary, "_SHORT", ("/nowhere",))
    with pytest.raises(FedloraError, match=r"leaves the sockets of Ray no room.*set RAY_TMPDIR to"):
        parent_folder()
    mends = {f.what: f.mend for f in _resources()}
    assert mends["temporary files"].startswith("set RAY_TMPDIR to a folder")
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    with run_folder() as home:
        assert Path(home).parent == place
        binds_in(home)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("/nowhere", "no folder that takes files"),
        ("/tmp/" + "x" * 60, "65 characters, which leave"),
    ],
)
def test_a_ray_tmpdir_that_ray_cannot_use_is_refused(tmpdir_of, monkeypatch, own, message):
    tmpdir_of("/tmp")
    monkeypatch.setenv("RAY_TMPDIR", own)
    with pytest.raises(FedloraError, match=message):
        run_folder()


def test_a_tmpdir_that_is_not_there_is_found_by_the_doctor_and_does_no_harm(tmpdir_of):
    tmpdir_of("/nowhere")
    mends = {f.what: f.mend for f in _resources()}
    assert mends["TMPDIR"].startswith("set it to a folder that is there")
    with run_folder() as home:
        assert os.path.isdir(home)


def test_where_nothing_takes_temporary_files_it_is_a_sentence(tmpdir_of, monkeypatch):
    tmpdir_of("/nowhere")

    def none():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(FedloraError, match="TMPDIR is '/nowhere'"):
        parent_folder()
