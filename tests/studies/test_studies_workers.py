"""Processes of a study do not outlive it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from support.patience import patient

from simulations.studies.kit.workers import worker_pool


def test_workers_answer_and_are_gone_afterwards():
    with worker_pool(2) as pool:
        pids = {pool.submit(os.getpid).result() for _ in range(4)}
    assert os.getpid() not in pids
    assert not any(map(psutil.pid_exists, pids))


def test_threads_of_workers_that_wait_do_not_spin_unless_their_user_says_so(monkeypatch):
    for said, expected in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        monkeypatch.setenv("OMP_WAIT_POLICY", said or "")
        if said is None:
            monkeypatch.delenv("OMP_WAIT_POLICY")
        with worker_pool(1) as pool:
            assert pool.submit(os.getenv, "OMP_WAIT_POLICY").result() == expected


def test_an_error_ends_workers_that_are_busy():
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), worker_pool(1) as pool:
        pid = pool.submit(os.getpid).result()
        pool.submit(time.sleep, 60)
        raise KeyboardInterrupt
    assert time.monotonic() - began < patient(30)
    assert not psutil.pid_exists(pid)


def test_a_terminated_command_ends_as_an_interrupted_one():
    script = (
        "import sys, time, typer, fedlora.cli as cli\n"
        "cli.app.command('wait')(lambda: (print('ready', flush=True), time.sleep(60)))\n"
        "sys.argv = ['fedlora', 'wait']\n"
        "cli.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "ready"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=patient(30))
    assert process.returncode == 130
    assert "interrupted; what was finished is kept" in errors


def test_workers_are_gone_when_their_study_was_killed():
    script = (
        "import os, time\n"
        "from simulations.studies.kit.workers import worker_pool\n"
        "if __name__ == '__main__':\n"
        "    with worker_pool(1) as pool:\n"
        "        print(pool.submit(os.getpid).result(), flush=True)\n"
        "        pool.submit(time.sleep, 600)\n"
        "        time.sleep(600)\n"
    )
    study = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert study.stdout is not None
    worker = psutil.Process(int(study.stdout.readline()))
    study.kill()
    study.wait()
    assert not psutil.wait_procs([worker], timeout=patient(30))[1]
