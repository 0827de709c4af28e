"""What was written for release 0.1, in the words of its documents, takes part in a run of today."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedlora.check import check_scenario
from fedlora.config import Scenario, with_overrides
from fedlora.ranks import check_rank_strategy, create_strategy
from fedlora.registry import use_python_path
from fedlora.scenarios import find_scenario
from simulations.in_process import Record, run

STRATEGY = """
from fedlora.ranks import FedloraError, RankDecision, RankStrategy, fit_budget


class Margin(RankStrategy):
    def __init__(self, step=0.05):
        if step <= 0:
            raise FedloraError(f"step is {step}; set a number above 0")
        self.step = step
        self.fraction = {}

    def allocate(self, round, clients, space):
        decisions = {}
        for client, report in clients.items():
            budget = report.budget_bits
            if budget is not None:
                budget *= self.fraction.get(client, 1.0)
            decisions[client] = RankDecision(fit_budget(space, budget))
        return decisions

    def observe(self, round, outcomes):
        for client, outcome in outcomes.items():
            fraction = self.fraction.get(client, 1.0)
            if outcome.delivered is not None:
                raised = min(1.0, fraction + self.step)
                self.fraction[client] = raised if outcome.delivered else 0.7 * fraction

    def state_dict(self):
        return {"fraction": dict(self.fraction)}

    def load_state_dict(self, state):
        self.fraction = dict(state["fraction"])
"""
CHANNEL = """
from fedlora.channel.checks import number
from fedlora.channel.config import ChannelConfig
from fedlora.channel.models.base import ChannelModel, Link


class Halves(ChannelModel):
    def __init__(self, config: ChannelConfig, seed: int, *, loss_db: float = 10.0) -> None:
        super().__init__(config, seed)
        self.loss_db = number("channel.options.loss_db", loss_db)

    def sample(self, client: int, block: int) -> Link:
        gain_db = -self.loss_db if (client + block) % 2 else 0.0
        return self.mean_link(client, block, up_gain_db=gain_db, down_gain_db=gain_db)
"""
AVERAGE = """
from fedlora.robust.average import RobustAverage, masked_median


class Middle(RobustAverage):
    def average(self, blocks, weights):
        return [masked_median(block.values, block.present.unsqueeze(2)) for block in blocks]
"""


@pytest.fixture
def scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, text in (("strategy", STRATEGY), ("channel", CHANNEL), ("average", AVERAGE)):
        (tmp_path / f"before_{name}.py").write_text(text)
    settings = [
        *("train.rounds=1", "train.steps=2", "federation.clients=3", "data.max_rows=80"),
        *("ranks.strategy=before_strategy:Margin", "ranks.options.step=0.1"),
        *("channel.model=before_channel:Halves", "channel.options.loss_db=12.0"),
        *("robust.average=before_average:Middle", "robust.hostile=1", "evaluate.baseline=false"),
        f"python_path={tmp_path}",
    ]
    return with_overrides(find_scenario("quickstart"), settings)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_strategy_a_channel_and_an_average_of_before_take_part_in_a_run(scenario):
    check_scenario(scenario)
    use_python_path(scenario.python_path)
    assert check_rank_strategy(create_strategy(scenario.ranks, 0)) == []
    record = Record()
    server = run(scenario, record, workers=1)
    assert record.rounds and not server.cohort.lost
    assert type(server.training.ranking.strategy.strategy).__module__ == "before_strategy"
    assert type(server.air.channel.model).__module__ == "before_channel"
    assert type(server.engine.update.average).__module__ == "before_average"
    snrs_db = {server.air.channel.truth(c, 0).up_snr_db for c in range(2)}
    assert max(snrs_db) - min(snrs_db) != 0
