"""Random scenarios are refused before they train, or run and are right."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fedlora.server.exchange.spending import Spending
from simulations.fuzz.campaign import Campaign, run_campaign
from simulations.fuzz.command import fuzz
from simulations.fuzz.drawing import BASE
from simulations.fuzz.examine import Outcome, examine, quietly
from simulations.fuzz.keys import draw_case
from simulations.fuzz.oracles.again import repeat
from simulations.fuzz.oracles.privacy import target
from simulations.fuzz.shrink import shrink

FIXED = 2026
SHORT_S = 5.0


def told(campaign: Campaign) -> str:
    """Say which scenarios are wrong, and how to see them again."""
    return "\n".join(
        f"fedlora fuzz --seed {own.number} --trials 1  # {'; '.join(own.faults)} ({own.scenario})"
        for own in campaign.faults
    )


def test_the_same_random_scenarios_as_ever_are_right(assets, tmp_path):
    campaign = run_campaign(12, FIXED, assets, tmp_path, limit_s=SHORT_S, shrink_s=60.0)
    assert not campaign.faults, told(campaign)
    assert campaign.kinds["ran"] >= 1


def test_fresh_random_scenarios_are_right(assets, tmp_path, capsys):
    seed = secrets.randbelow(1 << 31)
    with capsys.disabled():
        print(f"\nfedlora fuzz --seed {seed} --trials 12")
    campaign = run_campaign(12, seed, assets, tmp_path, limit_s=SHORT_S, shrink_s=60.0)
    assert not campaign.faults, told(campaign)


@pytest.mark.slow
def test_many_fresh_random_scenarios_are_right(assets, tmp_path, capsys):
    seed = secrets.randbelow(1 << 31)
    with capsys.disabled():
        print(f"\nfedlora fuzz --seed {seed} --trials 300")
    campaign = run_campaign(300, seed, assets, tmp_path)
    assert not campaign.faults, told(campaign)
    assert campaign.kinds["ran"] > 150


@pytest.fixture
def overcharged(monkeypatch):
    """Tell twice what was spent."""
    note = Spending.note

    def twice(self, client, reply):
        note(self, client, reply)
        self._rho[client] *= 2

    monkeypatch.setattr(Spending, "note", twice)
    monkeypatch.setattr("simulations.fuzz.examine.ORACLES", (target, repeat))  # quick ones


def test_a_fault_is_shrunk_to_what_it_takes(monkeypatch, tmp_path):
    """Where two keys together bring a fault about, and one alone another."""
    asked = []

    def faulty(case, assets, only=None):
        asked.append(only)
        wrong = {"target": "beyond"} if case["train.rounds"] > 1 and "lora.alpha" in case else {}
        return Outcome(verdicts=wrong or ({"bits": "too few"} if "lora.alpha" in case else {}))

    monkeypatch.setattr("simulations.fuzz.shrink.try_case", faulty)
    case = {**BASE, "seed": 1, "train.lr": 0.1, "train.rounds": 3, "lora.alpha": 5.0}
    small = shrink(case, faulty(case, tmp_path), tmp_path)
    assert small == {**BASE, "train.rounds": 3, "lora.alpha": 5.0}
    assert all(only == ["target"] for only in asked[1:])


def test_a_fault_is_written_as_a_file_that_shows_it_again(
    assets, tmp_path, overcharged, monkeypatch
):
    """Without what the fault does not take."""
    case = {**BASE, "seed": 1, "_model": "gpt2", "privacy.epsilon": 8.0, "task.kind": "causal_lm"}
    case |= {"data.prompt_separator": "w5", "head.train": "no"}
    monkeypatch.setattr("simulations.fuzz.campaign.draw_case", lambda number: case)
    campaign = run_campaign(1, 77, assets, tmp_path)
    (fault,) = campaign.faults
    assert fault.number == 77
    assert Path(fault.scenario) == tmp_path / "fault-77" / "scenario.toml"
    text = Path(fault.scenario).read_text()
    assert "epsilon" in text and "prompt_separator" not in text
    with quietly():
        found = examine(Path(fault.scenario), tmp_path / "again")
    assert found.faults and found.kind == "ran"


@pytest.fixture
def command():
    app = typer.Typer()
    app.command()(fuzz)
    return lambda *words: CliRunner().invoke(app, [*map(str, words)])


def test_the_command_says_what_it_drew_and_writes_figures(command, tmp_path):
    number = next(n for n in range(500) if draw_case(n).get("train.rounds") == 0)  # refused at once
    figures = tmp_path / "fuzz.json"
    done = command("--seed", number, "--trials", 1, "--json", figures, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert f"scenarios {number} to {number}" in done.output
    assert json.loads(figures.read_text())["kinds"] == {"refused": 1}


def test_the_command_fails_where_a_fault_is_found_and_names_the_file(
    command, tmp_path, monkeypatch, overcharged
):
    case = {**BASE, "seed": 0, "privacy.epsilon": 8.0}
    monkeypatch.setattr("simulations.fuzz.campaign.draw_case", lambda number: case)
    done = command("--seed", 5, "--trials", 1, "--out", tmp_path)
    assert done.exit_code == 1
    assert "5: target: " in done.output.replace("\n", "")
    again = command(tmp_path / "fault-5" / "scenario.toml")
    assert again.exit_code == 1
    assert "target: " in again.output and "repeat" not in again.output
