"""Processes that are killed at random moments leave a valid result and an honest budget."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.patience import patient

from fedlora.privacy.accounting import upload_cost
from fedlora.privacy.ledger import Ledger
from fedlora.site.history import read_history
from fedlora.site.ledgers import verify_ledgers
from fedlora.storage.state import RoundStates

KILLS = 20


@pytest.mark.e2e
@pytest.mark.slow
def test_kills_at_random_moments_leave_results_budgets_and_files_whole(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "support.kills", tmp_path, str(KILLS), "11"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(550),
    )
    words = "\n".join(p.read_text()[-1500:] for p in tmp_path.glob("*.txt"))
    assert done.returncode == 0, done.stderr + words
    found = json.loads(done.stdout)
    for run in found["runs"]:
        assert run["code"] == 0, f"{found}\n{words}"
        check_result(Path(run["out"]))
    assert sum(found["killed"].values()) == KILLS
    clients = [path.name.removeprefix("sent-") for path in tmp_path.glob("sent-*")]
    assert clients
    for client in clients:
        check_budget(tmp_path, client)
    folders = {path.parent for path in tmp_path.rglob("round-*.safetensors")}
    assert folders
    for folder in folders:
        states = RoundStates(folder)
        assert [round_ for round_, _ in states.readable()] == states.rounds()
    check_audit(
        tmp_path / "states", sum(n for who, n in found["killed"].items() if who != "engine")
    )


def check_result(out: Path) -> None:
    summary = json.loads((out / "summary.json").read_text())
    assert summary["rounds"] == 6
    rounds = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [r["round"] for r in rounds] == [1, 2, 3, 4, 5, 6]
    adapter = load_file(out / "adapter" / "adapter_model.safetensors")
    assert all(torch.isfinite(factor).all() for factor in adapter.values())
    assert summary["privacy"]["epsilon"] > 0


def check_budget(home: Path, client: str) -> None:
    """Compare the ledger with what the client wrote down before each upload left."""
    lines = (home / f"sent-{client}").read_text().splitlines()
    uploads = Counter(sample for line in lines for sample in json.loads(line))
    assert uploads
    with Ledger(home / f"ledger-{client}", client) as ledger:
        for sample, times in uploads.items():
            assert ledger._book.spent[sample] >= times * upload_cost(4.0) * (1 - 1e-12)


def check_audit(states: Path, killed: int) -> None:
    """Hold the devices' own account against their ledgers: no line is lost, and no upload."""
    history = read_history(states)
    assert history.torn == 0
    assert all(ledger.fault == "" for ledger in verify_ledgers(history.sessions))
    open_ = [session for session in history.sessions if session.accepted and not session.over]
    assert all(session.counted for session in open_)  # killed, and its counts are there
    ended = [s for s in history.sessions if s.over and s.over["event"] == "interrupted"]
    assert len(open_) + len(ended) <= killed
