from __future__ import annotations

import pytest

from fedlora.errors import FedloraError
from simulations.studies.cascade.command import cascade
from simulations.studies.compare.command import compare
from simulations.studies.compare.strategies import parse_snrs_db, parse_strategies
from simulations.studies.participation.command import participation
from simulations.studies.utility.command import utility
from simulations.train_policy.command import train_policy


def test_strategies_may_have_options_and_come_from_modules():
    parsed = parse_strategies('greedy, uniform(r=4),my.module:Mine(step=0.1, name="a b")')
    assert [(c.name, c.options) for c in parsed] == [
        ("greedy", {}),
        ("uniform", {"r": 4}),
        ("my.module:Mine", {"step": 0.1, "name": "a b"}),
    ]
    assert [c.label for c in parsed][1] == "uniform(r=4)"
    (several,) = parse_strategies('bandit(fractions=[0.5, 1.0], name="a, b")')
    assert several.options == {"fractions": [0.5, 1.0], "name": "a, b"}


def test_a_range_of_ranks_stands_for_each_of_them():
    labels = [c.label for c in parse_strategies("uniform(r=1..16),greedy")]
    assert len(labels) == 17
    assert labels[0] == "uniform(r=1)"
    assert labels[15] == "uniform(r=16)"


@pytest.mark.parametrize(
    "text", ["", "greedy,,random", "uniform(r=4", "uniform(4)", "greedy,greedy", "uniform(r=4..2)"]
)
def test_strategies_that_cannot_be_read_are_named(text):
    with pytest.raises(FedloraError) as caught:
        parse_strategies(text)
    assert "\n" not in str(caught.value)


def test_snrs_are_numbers_of_db():
    assert parse_snrs_db("-5, 0,7.5") == [-5.0, 0.0, 7.5]


@pytest.mark.parametrize("text", ["", "5;10", "5,x", "nan", "inf", "5,5", "1000"])
def test_snrs_that_do_not_parse_are_quoted(text):
    with pytest.raises(FedloraError, match=r"--snr .*; (write|list)"):
        parse_snrs_db(text)


@pytest.mark.parametrize("command", [compare, train_policy])
@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["data.test=", "data.holdout=0.0"], "data.holdout is 0 and data.test is empty"),
        (["privacy.epsilon=8", "evaluate.report=false"], "evaluate.report is false under privacy"),
    ],
)
def test_a_scenario_without_held_out_losses_is_refused_before_anything_runs(
    command, overrides, named, tmp_path
):
    given = {"strategies": "greedy"} if command is compare else {}
    with pytest.raises(FedloraError, match=named):
        command("quickstart", **given, set_=overrides, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "more"),
    [(utility, ["privacy.epsilon=8"]), (cascade, ["privacy.epsilon=8"]), (participation, [])],
)
def test_a_study_of_the_held_out_metric_is_not_run_without_held_out_rows(command, more, tmp_path):
    """Utility wrote 0.000 for a metric that nobody had measured."""
    with pytest.raises(FedloraError, match=r"data\.holdout is 0 and data\.test is empty, and"):
        command("quickstart", set_=["data.test=", "data.holdout=0.0", *more], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
