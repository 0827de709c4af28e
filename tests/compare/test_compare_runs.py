from __future__ import annotations

import csv
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from fedlora.config import ScheduleConfig, load_scenario, with_overrides
from fedlora.errors import FedloraError
from fedlora.registry import use_python_path
from fedlora.report import MetricText
from fedlora.scenarios import find_scenario
from simulations.studies.compare.plots import _step
from simulations.studies.compare.report import _means, means_rows, write_results
from simulations.studies.compare.runner import run_all
from simulations.studies.compare.store import COLUMNS, CompareFolder
from simulations.studies.compare.strategies import parse_strategies
from simulations.studies.compare.trial import (
    Result,
    Trial,
    run_reference,
    run_trial,
    trial_scenario,
)

STRANGER = """
from fedlora.ranks import RankDecision, RankStrategy


class Alternate(RankStrategy):
    def __init__(self, rank=2):
        self.rank = rank

    def allocate(self, round, clients, space):
        deliver = space.uniform(self.rank if round % 2 else 0)
        return dict.fromkeys(clients, RankDecision(space.uniform(self.rank), deliver))
"""


@pytest.fixture
def scenario(shared, monkeypatch):
    monkeypatch.setenv("FEDLORA_SHARED", str(shared))
    overrides = ["data.max_rows=40", "federation.clients=2", "train.rounds=2", "train.steps=1"]
    return with_overrides(find_scenario("study-awgn"), overrides)


def result(strategy, snr_db, seed, reward):
    row = dict.fromkeys(COLUMNS, 1.0) | {
        "strategy": strategy,
        "snr_db": snr_db,
        "seed": seed,
        "reward": reward,
        "late": 0,
    }
    trace = [
        {"round": r, "client": "0", "snr_db": 3.0, "mean_rank": 2.0, "delivered": True, "loss": 1.0}
        for r in (1, 2)
    ]
    return Result(row, [(0, "q_proj"), (1, "q_proj")], [2.0, 1.0], trace)


def test_a_strangers_strategy_runs_and_an_empty_delivery_keeps_the_adapter(
    scenario, tmp_path, monkeypatch
):
    (tmp_path / "stranger_strategy.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(str(tmp_path))
    scenario = replace(scenario, python_path=str(tmp_path))
    use_python_path(scenario.python_path)
    (contender,) = parse_strategies("stranger_strategy:Alternate(rank=3)")
    reference = run_reference(scenario, 1)
    found = run_trial(scenario, Trial(contender, 5.0, 1), reference, 0.2)
    assert found.mean_ranks == [1.5] * len(found.projections)
    # Three ranks to two clients in the first round, nothing in the second.
    assert found.row["adapter_bits"] == 2 * 3 * 155_648
    assert found.row["late"] == 0
    first, second = ([t["loss"] for t in found.trace if t["round"] == r] for r in (1, 2))
    assert second == first
    again = run_trial(scenario, Trial(contender, 5.0, 1), reference, 0.2)
    assert again == found


def test_a_strategy_that_errs_is_compared_at_its_last_valid_ranks_and_named(
    scenario, tmp_path, capsys
):
    (contender,) = parse_strategies("support.faulty_strategies:OutOfRange")
    reference = run_reference(scenario, 1)
    found = run_trial(scenario, Trial(contender, 5.0, 1), reference, 0.2)
    assert found.row["mean_rank"] == 0  # the smallest, as there were no valid ones
    assert "rank 99" in found.complaints[0]
    folder = CompareFolder(tmp_path, scenario, 0.2)
    folder.add(found)
    write_results(CompareFolder(tmp_path, scenario, 0.2), scenario, Console(width=1000))
    said = capsys.readouterr().out
    assert "OutOfRange erred in 1 of 1 runs" in said
    assert "rank 99" in said


def test_where_the_channel_chooses_the_clients_every_one_has_a_reference(scenario):
    options = {"mean_delay_s": 1e-3, "trade_off": 1e-9, "min_clients": 1, "max_delay_s": 100.0}
    schedule = ScheduleConfig("lyapunov", options=options)
    chosen = replace(
        with_overrides(scenario, ["federation.clients=3", "channel.model=rayleigh"]),
        channel=replace(scenario.channel, model="rayleigh", schedule=schedule),
    )
    reference = run_reference(chosen, 1)
    assert [sorted(losses) for losses in reference] == [["0", "1", "2"]] * 2
    (greedy,) = parse_strategies("greedy")
    found = run_trial(chosen, Trial(greedy, 5.0, 1), reference, 0.2)
    assert len(found.trace) < 2 * 3
    assert found.row["reward"] < 0


def test_every_contender_is_told_of_the_text_where_the_scenario_asks(scenario):
    asked = with_overrides(scenario, ["ranks.statistics=true", "ranks.options.fraction=0.5"])
    (contender,) = parse_strategies("airllm(rounds=8)")
    ranks = trial_scenario(asked, Trial(contender, 5.0, 1)).ranks
    assert ranks.statistics
    assert (ranks.strategy, ranks.options) == ("airllm", {"rounds": 8})
    assert not trial_scenario(scenario, Trial(contender, 5.0, 1)).ranks.statistics


def test_a_comparison_goes_on_where_it_stopped(scenario, tmp_path):
    folder = CompareFolder(tmp_path, scenario, 0.2)
    for item in (result("greedy", 0.0, 1, 0.1), result("random", 0.0, 1, -0.1)):
        folder.add(item)
    with (tmp_path / "trials.jsonl").open("a") as stream:
        stream.write('{"row": {"strat')  # killed while writing
    again = CompareFolder(tmp_path, scenario, 0.2)
    assert set(again.results.records) == {("greedy", 0.0, 1), ("random", 0.0, 1)}
    again.add(result("greedy", 0.0, 2, 0.1))
    assert len(CompareFolder(tmp_path, scenario, 0.2).found) == 3
    (greedy,) = parse_strategies("greedy")
    run_all(again, scenario, [Trial(greedy, 0.0, seed) for seed in (1, 2)], 0.2, workers=1)
    assert len(again.found) == 3


def test_a_folder_of_another_comparison_is_refused(scenario, tmp_path):
    CompareFolder(tmp_path, scenario, 0.2)
    CompareFolder(tmp_path / "25", scenario, 0.25)
    with pytest.raises(FedloraError, match="comparison with other settings"):
        CompareFolder(tmp_path / "25", scenario, 0.2)
    for other, price in ((replace(scenario, seed=2), 0.2), (scenario, 0.3), (scenario, 0.25)):
        with pytest.raises(FedloraError, match="comparison with other settings"):
            CompareFolder(tmp_path, other, price)
    assert load_scenario(tmp_path / "scenario.toml") == scenario


def test_tables_and_plots_are_written(scenario, tmp_path):
    folder = CompareFolder(tmp_path, scenario, 0.2)
    for strategy, base in (("greedy", 0.0), ("uniform(r=1)", -1.0), ("uniform(r=2)", -0.5)):
        for snr_db in (0.0, 5.0):
            for seed in (1, 2, 3):
                folder.add(result(strategy, snr_db, seed, base + 0.01 * seed * snr_db))
    with (tmp_path / "printed.txt").open("w", encoding="utf-8") as stream:
        write_results(folder, scenario, Console(file=stream, width=120))
    with (tmp_path / "compare.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 18
    with (tmp_path / "winners.csv").open() as stream:
        best = list(csv.DictReader(stream))
    assert [(row["winner"], row["second"]) for row in best] == [
        ("greedy", "best fixed rank, uniform(r=2)")
    ] * 2
    names = {path.stem for path in (tmp_path / "plots").glob("*.png")}
    assert {"metric-over-snr", "bits-over-snr", "metric-over-bits", "ranks-greedy"} <= names
    assert "uniform(r=2)" in (tmp_path / "printed.txt").read_text()
    page = (tmp_path / "report.html").read_text()
    assert page.count("<table") == 2 and page.count("data:image/png") == len(names)
    assert "best fixed rank, uniform(r=2)" in page
    assert " ± " in (tmp_path / "means.md").read_text()
    assert r"$\pm$" in (tmp_path / "means.tex").read_text()


def test_two_comparisons_do_not_run_the_same_trials_in_one_folder(scenario, tmp_path):
    first, second = (CompareFolder(tmp_path, scenario, 0.2) for _ in range(2))
    with first.held():
        first.add(result("greedy", 5.0, 1, 0.0))
        with pytest.raises(FedloraError, match="a comparison is still going on in"), second.held():
            pass
    with second.held():
        assert set(second.results.records) == {("greedy", 5.0, 1)}


def test_names_are_printed_whole_and_plotted_however_long(scenario, tmp_path):
    folder = CompareFolder(tmp_path, scenario, 0.2)
    long = f'airllm(policy="{"deep/" * 60}policy.safetensors")'
    other = "uniform_but_mine:Ranks(fraction=0.75,even=true)"
    for strategy, reward in ((long, 0.0), (other, -1.0), ("uniform(r=12)", -2.0)):
        for seed in (1, 2):
            folder.add(result(strategy, 5.0, seed, reward))
    with (tmp_path / "printed.txt").open("w", encoding="utf-8") as stream:
        write_results(folder, scenario, Console(file=stream, width=80))
    printed = (tmp_path / "printed.txt").read_text("utf-8")
    assert "…" not in printed
    means, best = printed.split("Highest mean reward")
    assert re.search(r"perplexity +Mbit +late +rank \n", means)
    assert len(re.findall(r" 1\.00 *\n", means)) == 3
    for part, ends in ((means, (5, 19)), (best, (6, 22))):
        names = "".join(line[slice(*ends)].strip() for line in part.splitlines())
        assert long.replace(" ", "") in names.replace(" ", "")
    assert "uniform(r=12)" in means
    names = {path.stem for path in (tmp_path / "plots").glob("*.png")}
    assert "ranks-uniform-but-mine-Ranks-fraction-0-75-even-true" in names
    assert any(name.startswith("time-airllm-policy--deep-") for name in names)


def test_intervals_of_different_halves_stay_on_one_line_of_80_columns():
    rows = [
        {"snr_db": -5.0, "strategy": "greedy", "metric": m, "reward": -r, "adapter_bits": b}
        | {"late": 1.0, "mean_rank": 2.0}
        for m, r, b in ((0.734, 0.691, 57.3e6), (0.98, 0.2, 3.1e6))
    ]
    stream = io.StringIO()
    Console(file=stream, width=80).print(_means(rows, MetricText("accuracy"), 14))
    (line,) = [line for line in stream.getvalue().splitlines() if "greedy" in line]
    figures = line.split()[3:6]
    assert re.fullmatch(r"-0\.\d{3}±\d\.\d{3}", figures[0])  # a reward has no limit
    assert re.fullmatch(r"0\.857\+0\.143-0\.\d{3}", figures[1])  # and no accuracy is above 1
    assert re.fullmatch(r"30\.2\+\d+\.\d-30\.2", figures[2])


def test_a_comparison_of_forecasts_tells_nmse_in_db_and_keeps_the_ratio(scenario, tmp_path):
    place = tmp_path / f"a name [as of a seed] that is longer than a terminal {'is wide ' * 8}"
    folder = CompareFolder(place, scenario, 0.2)
    for seed, ratio in ((1, 0.1), (2, 0.001)):
        own = result("greedy", 5.0, seed, 0.0)
        folder.add(replace(own, row=own.row | {"metric": ratio}, metric_name="nmse"))
    again = CompareFolder(place, scenario, 0.2)  # as a file gives it back
    with (tmp_path / "printed.txt").open("w", encoding="utf-8") as stream:
        write_results(again, scenario, Console(file=stream, width=80))
    printed = (tmp_path / "printed.txt").read_text("utf-8")
    assert "tables and plots: " + str(place) in printed and "NMSE" in printed
    [cells] = means_rows([own.row for own in again.found], MetricText("nmse"))
    assert cells[4].startswith("-20.000 ± ")  # the mean of -10 and -30 dB
    with (place / "compare.csv").open() as stream:
        assert [row["metric"] for row in csv.DictReader(stream)] == ["0.1", "0.001"]


def test_a_margin_is_set_before_the_first_trial_or_refused(scenario, tmp_path):
    folder = CompareFolder(tmp_path, scenario, 0.2, margin=0.05)
    assert CompareFolder(tmp_path, scenario, 0.2, margin=0.1).margin == 0.1  # nothing is there yet
    for strategy in ("greedy", "hold"):
        for seed in (1, 2, 3):
            folder.add(result(strategy, 5.0, seed, 0.0))
    again = CompareFolder(tmp_path, scenario, 0.2)
    assert again.margin == 0.1
    with pytest.raises(FedloraError, match=r"6 trials and a margin of 0\.1 nats; one that is set"):
        CompareFolder(tmp_path, scenario, 0.2, margin=0.2)
    with (tmp_path / "printed.txt").open("w", encoding="utf-8") as stream:
        write_results(again, scenario, Console(file=stream, width=80))
    printed = (tmp_path / "printed.txt").read_text("utf-8")
    assert "equal: within 0.1 nats" in printed
    with (tmp_path / "equivalence.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert (row["strategy"], row["equal"], row["margin"]) == ("hold", "True", "0.1")
    (tmp_path / "none").mkdir()
    late = CompareFolder(tmp_path / "none", scenario, 0.2)
    late.add(result("greedy", 5.0, 1, 0.0))
    with pytest.raises(FedloraError, match="1 trials and no margin"):
        CompareFolder(tmp_path / "none", scenario, 0.2, margin=0.1)


def test_strategies_with_other_seeds_are_told(scenario, tmp_path):
    folder = CompareFolder(tmp_path, scenario, 0.2)
    for strategy, seeds in (("greedy", (1, 2, 3)), ("hold", (2, 3))):
        for seed in seeds:
            folder.add(result(strategy, 5.0, seed, 0.0))
    with (tmp_path / "printed.txt").open("w", encoding="utf-8") as stream:
        write_results(folder, scenario, Console(file=stream, width=80))
    printed = " ".join((tmp_path / "printed.txt").read_text("utf-8").split())
    assert "At 5 dB greedy had seeds that others had not" in printed
    with (tmp_path / "frontier.csv").open() as stream:
        assert {row["seeds"] for row in csv.DictReader(stream)} == {"2"}


def test_strategies_stand_beside_their_snr_and_away_from_the_next():
    for snrs, strategies in (
        ([5.0, 5.5], 9),
        ([-5.0, 0.0, 5.0, 10.0, 15.0], 6),
        ([-90.0, 90.0], 3),
    ):
        width = _step(snrs, strategies) * (strategies - 1)
        assert 0 < width < min(np.diff(snrs))
