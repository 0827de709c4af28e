"""What is timed side by side is the same work, and ratios are medians over pairs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulations.bench.contest import SPLIT, Contest
from simulations.bench.context import QUICK
from simulations.bench.models import model_path
from simulations.bench.speed import IN_TURN, UNSPLIT, in_process
from simulations.bench.workload import Load

SETTINGS = replace(QUICK, pairs=4)


@pytest.mark.parametrize(("model", "task"), [("gpt2", "causal_lm"), ("minilm", "classification")])
def test_split_in_turn_and_unsplit_training_have_the_same_losses(model, task, tmp_path):
    load = Load(model_path(model, tmp_path, tiny=True), task, clients=3, rows=2, length=12)
    ticks = []
    contest = in_process(load, SETTINGS, lambda: ticks.append(1), in_turn=True)
    assert contest.loss_difference < 1e-5
    assert len(ticks) == SETTINGS.warm_up + SETTINGS.pairs + 1
    assert len(contest.seconds) == SETTINGS.pairs
    assert all(set(pair) == {SPLIT, UNSPLIT, IN_TURN} for pair in contest.seconds)


class Recited:
    """A baseline whose losses are given."""

    def __init__(self, *losses: float) -> None:
        self.losses = list(losses)

    def step(self, number: int) -> float:
        return self.losses[number]


def test_the_largest_difference_of_a_loss_is_kept_even_from_the_warm_up():
    contest = Contest(2, 1, lambda: None)
    contest.baselines = {UNSPLIT: Recited(2.0, 4.0, 1.0)}
    for step, loss in enumerate((2.0, 5.0, 1.0), 1):
        contest.append_event("step", step=step, loss=loss)
    assert contest.loss_difference == pytest.approx(0.25)
    assert len(contest.seconds) == 1


def test_a_ratio_is_the_median_over_pairs_and_above_one_for_the_faster():
    contest = Contest(0, 3, lambda: None)
    contest.seconds = [
        {SPLIT: 1.0, UNSPLIT: 2.0},
        {SPLIT: 10.0, UNSPLIT: 11.0},
        {SPLIT: 2.0, UNSPLIT: 3.0},
    ]
    contest.tokens = [{SPLIT: 30, UNSPLIT: 30}] * 3
    assert contest.speed_ratio(SPLIT, UNSPLIT) == pytest.approx(1.5)
    assert contest.tokens_per_second(SPLIT) == pytest.approx(15)
    assert contest.ratio_quartiles(SPLIT, UNSPLIT) == pytest.approx((1.3, 1.75))
    assert contest.median_seconds(SPLIT) == pytest.approx(2.0)


def test_a_baseline_on_rows_of_its_own_is_compared_by_tokens_and_not_by_loss():
    contest = Contest(0, 1, lambda: None)
    contest.baselines = {UNSPLIT: Recited(9.0)}
    contest.others_rows = {UNSPLIT}
    contest.tokens_of = lambda participant: 20 if participant == UNSPLIT else 10
    contest.append_event("step", step=1, loss=1.0)
    assert contest.loss_difference == 0
    contest.seconds = [{SPLIT: 1.0, UNSPLIT: 1.0}]
    assert contest.speed_ratio(SPLIT, UNSPLIT) == pytest.approx(0.5)
