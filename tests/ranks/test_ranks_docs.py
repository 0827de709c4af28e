from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedlora.config import scenario_from_toml
from fedlora.ranks import ClientOutcome, ClientReport, create_strategy

TEXT = (Path(__file__).parents[2] / "docs" / "strategies.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture
def margin(tmp_path, monkeypatch):
    """Return the documented strategy, made from the documented scenario."""
    (tmp_path / "my_strategy.py").write_text(blocks("python")[0])
    monkeypatch.syspath_prepend(tmp_path)
    scenario = scenario_from_toml(next(b for b in blocks("toml") if "my_strategy:Margin" in b))
    return create_strategy(scenario.ranks, scenario.seed)


def test_the_documented_strategy_passes_the_documented_check():
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(block, names)
    assert "check_rank_strategy" in names


def test_the_documented_strategy_uses_less_after_a_late_delivery(margin, small):
    budget = 0.5 * small.bits(small.uniform(small.r_max))
    clients = {"a": ClientReport(budget_bits=budget)}
    bits = []
    for round_, delivered in enumerate([False, True, None], 1):
        bits.append(small.bits(margin.allocate(round_, clients, small)["a"].deliver))
        margin.observe(round_, {"a": ClientOutcome(delivered=delivered)})
    assert 0.95 * budget < bits[0] <= budget
    assert 0.65 * budget < bits[1] <= 0.7 * budget
    assert 0.75 * budget < bits[2] <= 0.8 * budget


def test_every_documented_scenario_is_valid():
    scenarios = [block for block in blocks("toml") if "[ranks]" in block]
    assert len(scenarios) == 2
    for block in scenarios:
        assert scenario_from_toml(block).ranks.options
