from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedlora.errors import FedloraError
from fedlora.privacy.accounting import Charge
from fedlora.privacy.accounting.rdp import rho
from fedlora.privacy.ledger import Ledger, store as module
from fedlora.storage import journal

SIGMA = 2.0


def charge_until_killed(path: Path, confirm: int) -> None:
    """Charge as fast as possible, and write a byte only after a charge has returned."""
    module._JOURNAL_BYTES_MIN = 300
    ledger = Ledger(path, "alice")
    while True:
        ledger.charge([1], Charge.gaussian(SIGMA))
        os.write(confirm, b"x")


def test_kill_9_at_any_moment_never_loses_a_confirmed_charge(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    chance, confirmed, kills = random.Random(0), 0, 30
    for kill in range(kills):
        receive, confirm = os.pipe()
        child = os.fork()
        if child == 0:
            charge_until_killed(path, confirm)
        os.close(confirm)
        if kill % 3:  # the others may die while they open the ledger
            confirmed += len(os.read(receive, 1))
        time.sleep(chance.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while received := os.read(receive, 1 << 16):
            confirmed += len(received)
        os.close(receive)
        with Ledger(path, "alice") as ledger:
            counted = round(ledger.rho / rho(SIGMA))
        assert confirmed <= counted <= confirmed + kills
    assert confirmed >= 2 * kills / 3


class Crash(BaseException):
    """The machine stops here."""


def crash_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Let the n-th step towards the disk and all later ones fail; return the count so far."""
    count = 0

    def stopping(call: Callable, when: str) -> Callable:
        def wrapped(*args: object) -> object:
            nonlocal count
            count += 1
            if count >= number and when == "before":
                raise Crash
            result = call(*args)
            if count >= number:
                raise Crash
            return result

        return wrapped

    monkeypatch.setattr(os, "fsync", stopping(os.fsync, "before"))
    monkeypatch.setattr(Path, "replace", stopping(Path.replace, "after"))
    monkeypatch.setattr(journal.Mark, "write", stopping(journal.Mark.write, "before"))
    monkeypatch.setattr(journal.Mark, "create", stopping(journal.Mark.create, "after"))
    return lambda: count


def test_a_crash_at_any_step_towards_the_disk_leaves_a_ledger_that_counts_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_JOURNAL_BYTES_MIN", 300)
    number, finished = 0, False
    while not finished:
        number += 1
        path, confirmed = tmp_path / str(number), 0
        with monkeypatch.context() as patch:
            steps = crash_at(number, patch)
            try:
                ledger = Ledger(path, "alice")
            except Crash:
                ledger = None
            try:
                while ledger is not None and confirmed < 8:
                    ledger.charge([1], Charge.gaussian(SIGMA))
                    confirmed += 1
            except Crash:
                with pytest.raises(FedloraError, match="open it again"):
                    ledger.charge([1], Charge.gaussian(SIGMA))
            finished = steps() < number
        if ledger is not None:
            ledger.close()
        with Ledger(path, "alice") as again:
            assert confirmed <= round(again.rho / rho(SIGMA)) <= confirmed + 1
    assert number > 20


def test_a_full_disk_stops_the_ledger_and_not_the_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path / "ledger", "alice")
    ledger.charge([1], Charge.gaussian(SIGMA))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(FedloraError, match=r"cannot charge ledger .* No space left"):
            ledger.charge([1], Charge.gaussian(SIGMA))
    with pytest.raises(FedloraError, match="open it again"):
        ledger.charge([1], Charge.gaussian(SIGMA))
    ledger.close()
    with Ledger(tmp_path / "ledger", "alice") as again:
        assert round(again.rho / rho(SIGMA)) == 2
