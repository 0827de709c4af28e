"""The study of participants: its trend against closed forms, and its runs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fedlora.config import with_overrides
from fedlora.scenarios import find_scenario
from simulations.studies.participation.study import Setting, run_setting, scenario_of
from simulations.studies.participation.trend import Trend, draw_variance, explained, fit_trend


@pytest.mark.parametrize("participants", [1, 2, 4, 6])
def test_variance_of_a_draw_is_that_of_all_draws(participants):
    own = np.array([0.3, -1.0, 2.0, 0.0, 5.0, 1.5])
    means = [np.mean(drawn) for drawn in itertools.combinations(own, participants)]
    assert np.var(means) == pytest.approx(draw_variance(participants, 6) * np.var(own))


def test_the_fit_finds_the_trend_that_made_the_curves():
    truth = Trend(floor=0.4, gap=2.0, contraction=0.85, spread=0.3, clients=16)
    rounds = np.arange(1, 31)
    rng = np.random.default_rng(0)
    curves = {n: truth.loss(rounds, n) + rng.normal(0, 0.01, 30) for n in (1, 2, 4, 8, 16)}
    found = fit_trend(curves, 16)
    for name in ("floor", "gap", "contraction", "spread"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=0.05)
    assert explained(found, curves) > 0.99
    assert explained(found, {1: curves[1][::-1]}) < 0.5


def test_a_run_has_the_participants_that_were_asked_for():
    small = ["federation.clients=4", "data.max_rows=120", "train.rounds=2", "train.steps=1"]
    base = with_overrides(find_scenario("quickstart"), small)
    rows = run_setting(Setting(3, 0.0, 1.0, 5), base)["rows"]
    assert [row["chosen"] for row in rows] == [3, 3]
    assert rows[1]["air_seconds"] == pytest.approx(sum(row["round_seconds"] for row in rows))
    assert all(row["loss"] > 0 and row["energy_joules"] > 0 for row in rows)
    online = scenario_of(base, Setting(0, 2.5, 1.0, 5))
    assert online.channel.schedule.options == {"trade_off": 2.5, "mean_delay_s": 1.0}
    assert online.channel.schedule.total_bandwidth_hz == 4 * 4e5
