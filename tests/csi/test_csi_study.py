"""The case study: the split model's predictions are the product's, and a study is gone on with."""

from __future__ import annotations

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from fedlora.config import with_overrides
from fedlora.errors import FedloraError
from fedlora.scenarios import find_scenario
from simulations.csi.command import csi
from simulations.csi.metrics import nmse
from simulations.csi.split_training import train_split
from simulations.csi.study import gap_rows, rows_of, run_trial, study_folder, table_rows
from simulations.csi.trial import Row, Trial, plan
from simulations.csi.windows import Data


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Write channels of two sites that the quickstart decoder can learn in no time."""
    folder, rng = tmp_path_factory.mktemp("channels"), np.random.default_rng(0)
    found = []
    for which, count in (("train", 24), ("test", 12)):
        turns, phase = rng.uniform(-0.1, 0.1, (count, 1, 4)), rng.uniform(0, 6, (count, 1, 4))
        h = np.exp(1j * (2 * np.pi * turns * np.arange(20)[:, None] + phase))
        site = [f"s{number % 2}" for number in range(count)]
        np.savez(folder / f"{which}.npz", h=h, site=site, speed_kmh=np.full(count, 30.0))
        found.append(f"data.{which}={folder / f'{which}.npz'}")
    small = ["patch=2", "width=8", "features=8", "history_snr_db=[10]"]
    found += [f"task.forecast.{key}" for key in small]
    found += ["data.values=h", 'data.axes=["record","time","feature"]', "federation.clients=2"]
    found += ["train.rounds=2", "train.steps=2", "evaluate.every=1", "train.batch_size=6"]
    return [*found, "compute.threads=1"]


def test_curves_are_the_metric_that_the_product_takes_through_the_cut(keys):
    base = with_overrides(find_scenario("csi-prediction"), keys)
    data = Data(base)
    run = train_split(base, data, [0, 1], 0, clients=2, test=data.test)
    told = run.curve[-1]["metric"]
    assert run.curve[-1]["nmse"] == pytest.approx(told, rel=1e-4)
    assert nmse(run.predict(data.test), data.test.ahead) == pytest.approx(told, rel=1e-4)
    assert run.curve[-1]["bytes"] == run.bytes > run.curve[0]["bytes"] > 0
    alone = train_split(base, data, [1], 0, clients=1, test=data.test.of(1))
    taken = alone.federation.data.records
    assert len(taken) == 12 and {record["site"] for record in taken} == {"s1"}


def test_a_study_is_gone_on_with_and_leaves_tables_plots_and_a_page(keys, tmp_path):
    base = with_overrides(find_scenario("csi-prediction"), keys)
    folder, trials = study_folder(tmp_path / "s", base), plan(2, range(1), peers=False)
    for trial in trials:
        folder.results.add(run_trial(trial, base))
    app = typer.Typer()
    app.command()(csi)
    options = ["study", "--out", str(tmp_path / "s"), "--seeds", "1", "--no-peers"]
    options += ["--workers", "1", *(part for key in keys for part in ("--set", key))]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    assert "processor time" not in result.output  # nothing is left to run
    assert "covariance" in result.output and "…" not in result.output  # at 80 columns
    assert "autoregression " in result.output and "the rate is" in " ".join(result.output.split())
    rows = rows_of(study_folder(tmp_path / "s", base), trials)
    assert [row.key for row in rows] == [trial.key for trial in trials]
    split = next(row for row in rows if (row.model, row.how) == ("split", "federated"))
    assert split.bytes > 0 and len(split.curve) == 2 and set(split.nmse_by_snr) >= {"0", "20"}
    made = {p.relative_to(tmp_path / "s").as_posix() for p in (tmp_path / "s").rglob("*.*")}
    assert {"report.html", "peers.md", "gaps.md", "plots/rounds.png", "plots/bytes.png"} <= made
    assert (tmp_path / "s" / "plots" / "conditions.png").stat().st_size > 10_000
    other = CliRunner().invoke(app, [*options, "--set", "train.lr=0.5"])
    assert "with other settings" in str(other.exception)


def row(model: str, how: str, seed: int, value: float) -> Row:
    figures = {"nmse": value, "nmse_mean": value}
    return Row(model, how, 10, seed, figures, {}, [], {"up": 10**6}, 5, 1.0)


def test_gaps_are_paired_by_seed_and_held_to_their_targets():
    rows = [row("split", "federated", seed, 0.1 * (1 + seed)) for seed in range(2)]
    rows += [row("split", "union", seed, 0.099 * (1 + seed)) for seed in range(2)]
    rows += [row("split", "own", seed, 0.11 * (1 + seed)) for seed in range(2)]
    rows += [row("gru", "federated", 1, 0.5), row("gru-16", "federated", 1, 0.4)]
    union, own, gru = gap_rows(rows)
    assert union[1:] == ["at most 0.3", "0.04 ± 0.00", "yes"]
    assert own[1:] == ["at most -1", "-0.41 ± 0.00", "no"]
    assert gru[1:] == ["at most -1", "-3.01", "yes"]
    assert table_rows(rows)[0][:3] == ["split", "union", "-8.54 ± 19.12"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["partition.kind=iid"], "partition.kind is iid .* set kind to column"),
        (["data.test="], "data.test is empty"),
        (["task.kind=causal_lm"], "task.kind is causal_lm, .* name a scenario of kind forecast"),
    ],
)
def test_data_that_cannot_be_studied_are_refused(keys, overrides, said):
    with pytest.raises(FedloraError, match=said):
        Data(with_overrides(find_scenario("csi-prediction"), [*keys, *overrides]))


def test_personal_ends_and_options_of_the_other_action_are_refused(keys, tmp_path):
    base = with_overrides(find_scenario("csi-prediction"), [*keys, "head.share=personal"])
    data = Data(base)
    with pytest.raises(FedloraError, match=r"head\.share is personal"):
        train_split(base, data, [0, 1], 0, clients=2, test=data.test)
    app = typer.Typer()
    app.command()(csi)
    for options, option in (
        (["study", "--ports", "2"], "--ports"),
        (["make", "--set", "a=1"], "--set"),
    ):
        result = CliRunner().invoke(app, [*options, "--out", str(tmp_path / "x")])
        assert f"{option} is an option of `csi" in str(result.exception)


def test_a_plan_has_each_trial_once_and_the_split_run_before_what_takes_its_bytes():
    trials = plan(10, range(3))
    assert len(set(trials)) == len(trials)
    assert {trial.trains for trial in trials if trial.model == "split"} == {True}
    assert all((trial.shipped_s > 10) == trial.trains for trial in trials)
    for seed in range(3):
        place = trials.index(Trial("split", "federated", 10, seed))
        assert place < trials.index(Trial("gru", "federated", 10, seed))
