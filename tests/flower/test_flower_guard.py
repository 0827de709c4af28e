"""Whatever becomes of the process that began a command, nothing is left of the command."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from support.patience import patient

from fedlora.launch.guarded import dismiss

# A child that ignores the polite request, and one that has left its parent and its session.
FAMILY = """
import os, subprocess, sys, time
sleeper = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
orphan = "import os, subprocess, sys; os.setsid(); subprocess.Popen(sys.argv[1:])"
subprocess.Popen([sys.executable, "-c", sleeper, sys.argv[1]])
late = [sys.executable, "-c", "import time; time.sleep(300)", sys.argv[1]]
subprocess.run([sys.executable, "-c", orphan, *late])
open(sys.argv[1] + "/begun", "w").close()
time.sleep(300)
"""
PARENT = """
import subprocess, sys, time
home, code = sys.argv[1:]
guard = [sys.executable, "-m", "fedlora.launch.guard", home, sys.executable, "-c", code]
subprocess.Popen([*guard, sys.argv[1]], stdin=subprocess.PIPE, start_new_session=True)
time.sleep(300)
"""


def family_of(home: Path) -> list[psutil.Process]:
    """Return the processes that name a folder and have not ended."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(home) in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives orphans to the guard")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_nothing_of_a_command_outlives_the_process_that_began_it(tmp_path, number):
    home = tmp_path / "home"
    home.mkdir()
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, home, FAMILY],
        # A test run that was begun with nohup ignores SIGHUP, and children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_DFL),
    )
    deadline = time.monotonic() + patient(180)
    # Parent, guard, command, child, orphan; a process that has just begun may have no name yet.
    while not (home / "begun").exists() or len(family_of(home)) != 5:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.send_signal(number)
    parent.wait()
    while (home.exists() or family_of(home)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert family_of(home) == []
    assert not home.exists()


def test_the_guard_ends_with_its_command_and_tells_its_status(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    guard = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "fedlora.launch.guard",
            home,
            sys.executable,
            "-c",
            "raise SystemExit(7)",
        ],
        stdin=subprocess.PIPE,
    )
    assert guard.wait(180) == 7
    assert not home.exists()


@pytest.mark.parametrize("all_written", [False, True])
def test_a_command_is_asked_to_end_unless_all_is_written(tmp_path, all_written):
    home, note = tmp_path / "home", tmp_path / "asked"
    home.mkdir()
    command = (
        "import pathlib, signal, sys, time\n"
        "note = pathlib.Path(sys.argv[1])\n"
        "signal.signal(signal.SIGTERM, lambda *_: (note.touch(), sys.exit()))\n"
        "note.with_suffix('.begun').touch()\n"
        "time.sleep(300)"
    )
    guard = subprocess.Popen(
        [sys.executable, "-m", "fedlora.launch.guard", home, sys.executable, "-c", command, note],
        stdin=subprocess.PIPE,
    )
    deadline = time.monotonic() + patient(180)
    while not note.with_suffix(".begun").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    dismiss(guard, all_written=all_written)
    assert guard.wait(patient(60)) == 0
    assert note.exists() != all_written
    assert not home.exists()
    assert family_of(note) == []
