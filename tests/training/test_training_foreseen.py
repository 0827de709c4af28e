"""What can be known to go wrong is refused before a run; what only the run shows is told."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console
from support.federation import Federation, scenario

from fedlora.channel.schedule.base import Scheduler
from fedlora.check import check_scenario
from fedlora.config import scenario_to_toml
from fedlora.errors import FedloraError
from fedlora.participation import Foresight
from fedlora.report import RunFolder, print_result
from fedlora.report.page import render
from fedlora.server.results import write_results
from fedlora.server.run import ServerRun

ROBUST = ("robust.average=median", "federation.clients=4")


class ByReport(Scheduler):
    """Chooses by what clients report, so nobody knows beforehand."""

    def __init__(self, *, rounds: int, seed: int, total_bandwidth_hz: float = 0.0, most: int = 2):
        super().__init__(rounds=rounds, seed=seed, total_bandwidth_hz=total_bandwidth_hz)
        self.most = most

    def select(self, round, reports, loads):
        best = sorted(reports, key=lambda client: -(reports[client].down_snr_db or 0))
        return self.share(sorted(best[: self.most]), reports)


def refused(tiny, records, *overrides: str) -> str:
    with pytest.raises(FedloraError) as caught:
        check_scenario(scenario(tiny["llama"], records, "data.label=label", *overrides))
    said = str(caught.value)
    assert "\n" not in said and len(said) < 400
    return said


@pytest.mark.parametrize("clients", [1, 2])
def test_a_scheduler_that_leaves_too_few_for_a_robust_average_is_refused(tiny, records, clients):
    random = f"channel.schedule.options.clients={clients}"
    said = refused(tiny, records, *ROBUST, "channel.schedule.scheduler=random_k", random)
    assert "robust.hostile is 1, which takes 3 clients a round" in said
    assert f"channel.schedule.scheduler random_k leaves {clients} in round 1" in said


def test_a_scheduler_that_leaves_enough_is_not(tiny, records):
    enough = ("channel.schedule.scheduler=random_k", "channel.schedule.options.clients=3")
    check_scenario(scenario(tiny["llama"], records, *ROBUST, *enough))


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("federation.clients_per_round=2",),
        ("channel.schedule.scheduler=random_k", "channel.schedule.options.clients=1"),
        (
            *("channel.schedule.scheduler=random_k", "channel.schedule.options.clients=2"),
            *("federation.clients_per_round=3", "federation.clients=4"),
        ),
    ],
)
def test_who_is_foreseen_takes_part(tiny, records, overrides):
    config = scenario(tiny["llama"], records, "train.rounds=4", "train.steps=1", *overrides)
    run = Federation(config).run()
    foresight = Foresight(config)
    took_part = [[int(c) for c in record["clients"]] for record in run.recorder.rounds]
    assert [foresight.clients(round_) for round_ in range(1, 5)] == took_part
    assert foresight.rounds() == [
        sum(client in clients for clients in took_part)
        for client in range(config.federation.clients)
    ]


def test_of_a_scheduler_that_looks_at_reports_nothing_is_foreseen(tiny, records):
    own = scenario(tiny["llama"], records, f"channel.schedule.scheduler={__name__}:ByReport")
    assert Foresight(own).clients(1) is None
    assert Foresight(own).rounds() == [0, 0, 0]


PRIVATE = ("privacy.epsilon=8", "privacy.insecure_noise_seed=1", "head.share=step")


@pytest.mark.parametrize("release", ["full", "row_space"])
@pytest.mark.parametrize("drawn", [0, 1])
def test_uploads_below_what_the_plan_takes_are_refused_and_those_that_do_are_enough(
    tiny, records, release, drawn
):
    """The least that is taken is exactly what a run needs."""
    plan = [*PRIVATE, f"privacy.release={release}", "train.rounds=3", "train.batch_size=5"]
    plan += [f"federation.clients_per_round={drawn}"] if drawn else []
    said = refused(tiny, records, *plan, "privacy.uploads=1")
    assert "privacy.uploads is 1, and client " in said
    enough = int(said.partition(" up to ")[2].partition(" times")[0])
    for uploads in range(1, 9):
        config = scenario(tiny["llama"], records, *plan, f"privacy.uploads={uploads}")
        if uploads < enough:
            with pytest.raises(FedloraError, match=f"privacy.uploads is {uploads}, and client"):
                check_scenario(config)
        if uploads in (enough - 1, enough):
            run = Federation(config)
            if uploads == enough:
                check_scenario(config)
                assert not run.run().server.cohort.lost
            else:
                with pytest.raises(FedloraError, match="uploads"):
                    run.run()
                    raise FedloraError(run.server.cohort.reasons())


def test_uploads_of_what_is_paid_once_are_not_counted(tiny, records):
    logits = ("privacy.release=logits", "train.rounds=9", "privacy.uploads=1")
    check_scenario(scenario(tiny["llama"], records, *PRIVATE, *logits))


def test_a_language_model_has_no_labels_to_randomise(tiny, records):
    said = refused(
        tiny, records, "task.kind=causal_lm", "privacy.epsilon=8", "privacy.release=labels"
    )
    assert "privacy.release is labels, and task.kind causal_lm has no labels" in said


def test_the_samples_that_are_planned_for_are_those_that_train(tiny, records):
    """delta is below one over the 48 training rows of the 60 that one client has."""
    own = ("federation.clients=1", "privacy.epsilon=8", "privacy.delta=0.02")
    check_scenario(scenario(tiny["llama"], records, *own))
    assert "with 60 samples" in refused(tiny, records, *own, "data.holdout=0.0")


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "gemma3_text", "qwen3"])
def test_a_decoders_first_token_is_not_pooled(tiny, records, family):
    config = scenario(tiny[family], records, "task.pool=cls")
    for refuse in (check_scenario, lambda config: ServerRun(config, None)):
        with pytest.raises(
            FedloraError, match=r"task\.pool is 'cls', and the first token of a dec"
        ):
            refuse(config)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_an_encoders_first_token_is(tiny, records, family):
    check_scenario(scenario(tiny[family], records, "task.pool=cls"))


def test_a_pool_that_the_task_does_not_look_at_is_left_alone(tiny, records):
    check_scenario(scenario(tiny["llama"], records, "task.pool=cls", "task.kind=causal_lm"))


@pytest.mark.parametrize(
    ("cut", "target"),
    [
        ("model.client_front=1", "layers.0.self_attn.q_proj"),
        ("model.client_front=2", "1.mlp.up_proj"),
        ("model.client_back=1", "model.layers.3.self_attn.q_proj"),
    ],
)
def test_a_target_on_the_client_is_refused_for_that(tiny, records, cut, target):
    said = refused(tiny, records, cut, f'lora.targets=["{target}", "v_proj"]')
    assert f"lora.targets names '{target}', which model.client_front or" in said


@pytest.mark.parametrize("test", [False, True])
def test_too_many_rows_held_out_are_refused_before_the_server_does(tiny, records, test):
    own = (f"data.test={records}",) if test else ("data.holdout=0.5",)
    most = 20 if test else 10
    check_scenario(scenario(tiny["llama"], records, *own, f"evaluate.max_rows={most}"))
    said = refused(tiny, records, *own, f"evaluate.max_rows={most - 1}")
    assert f"evaluate.max_rows is {most - 1}, and client 0 holds out {most} rows" in said
    with pytest.raises(FedloraError, match=f"evaluate.max_rows is {most - 1}"):
        Federation(scenario(tiny["llama"], records, *own, f"evaluate.max_rows={most - 1}"))


def shown(config, tmp_path, caplog) -> tuple[str, str, str]:
    """Return what the log, the terminal and the report say of a run."""
    folder = RunFolder.create(tmp_path / "run")
    folder.write_scenario(scenario_to_toml(config))
    with caplog.at_level(logging.WARNING, "fedlora"):
        run = Federation(config).run()
    for record in run.recorder.rounds:
        folder.append_round(record)
    write_results(folder, run.server, {})
    console = Console(width=160, record=True, file=io.StringIO())
    print_result(folder, console)
    return caplog.text, console.export_text(), render(folder)


def test_a_run_whose_scheduler_starves_a_robust_average_says_so(tiny, records, tmp_path, caplog):
    own = ("channel.model=rayleigh", f"channel.schedule.scheduler={__name__}:ByReport")
    config = scenario(tiny["llama"], records, *ROBUST, *own, "train.rounds=3")
    check_scenario(config)
    log, terminal, report = shown(config, tmp_path, caplog)
    assert log.count("has trained no component of the adapter (too few clients for robust") == 1
    assert "no, in 3 of 3 rounds" in terminal and "too few clients for robust.hostile" in terminal
    assert "whose adapter was never trained" in terminal
    assert "no, in 3 of 3 rounds" in report and "whose adapter was never trained" in report


def test_a_run_whose_ranks_leave_some_components_too_few_clients_says_how_many(
    tiny, records, tmp_path, caplog
):
    """Of three components of 28 projections clients train 3, 3, 2, 1: the third has two clients."""
    ranks = "support.rank_cycles:RankTable"
    table = "ranks.options.table=[[3, 3, 2, 1], [3, 3, 2, 1]]"
    config = scenario(tiny["llama"], records, *ROBUST, f"ranks.strategy={ranks}", table)
    _, terminal, _ = shown(config, tmp_path, caplog)
    assert "but for 28 components" in terminal
    assert "never trained" not in terminal


def test_a_run_of_rank_0_says_that_nothing_was_trained(tiny, records, tmp_path, caplog):
    log, terminal, _ = shown(
        scenario(tiny["llama"], records, "ranks.options.r=0"), tmp_path, caplog
    )
    assert "round 1 has trained no component of the adapter (all ranks are 0)" in log
    assert "no, in 2 of 2 rounds" in terminal


@pytest.mark.parametrize("average", ["mean", "median"])
def test_a_run_that_trains_says_nothing(tiny, records, tmp_path, caplog, average):
    config = scenario(tiny["llama"], records, f"robust.average={average}")
    log, terminal, _ = shown(config, tmp_path, caplog)
    assert "component" not in log
    assert "adapter trained" not in terminal and "never trained" not in terminal
