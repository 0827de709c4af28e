"""``fedlora poison`` goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

from support.poisoned import SHORT

from simulations.studies.kit import run as kit
from simulations.studies.poison import trial
from simulations.studies.poison.command import poison


def test_a_file_whose_last_line_a_crash_tore_is_gone_on_with(tmp_path, monkeypatch):
    out, ran = tmp_path / "poison.jsonl", []

    def run_trial(asked: trial.Trial) -> dict[str, object]:
        ran.append(asked.attack)
        result = {"metric": 0.5, "metric_name": "accuracy", "loss": float("nan"), "lost": {}}
        return {"trial": dataclasses.asdict(asked), **result}

    def study(*attacks: str) -> None:
        poison("quickstart", ["mean"], list(attacks), 1, out, 1, list(SHORT))

    monkeypatch.setattr(trial, "run_trial", run_trial)
    monkeypatch.setattr(kit, "worker_pool", lambda *_: ThreadPoolExecutor(1))
    monkeypatch.setattr("fedlora.check.check_scenario", lambda scenario: None)
    study("none", "huge")
    out.write_bytes(out.read_bytes()[:-20])
    study("none", "huge", "quiet")
    study("none", "huge", "quiet")
    assert ran == ["none", "huge", "huge", "quiet"]
    lines = out.read_text().splitlines()
    assert [json.loads(line)["trial"]["attack"] for line in (lines[0], *lines[2:])] == [
        "none",
        "huge",
        "quiet",
    ]
