"""A whole private run: what travels, what it costs, and what the summary says of it."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import dp_accounting
import pytest
import torch
from dp_accounting.rdp import RdpAccountant
from support.private_federation import Federation, scenario

from clients.edge_host import EdgeHost
from clients.owner import OwnerTerms
from fedlora.config import ClientLimit, scenario_from_toml, scenario_to_toml
from fedlora.errors import FedloraError
from fedlora.link import messages as m
from fedlora.lora.export import Adapter
from fedlora.privacy.accounting import Charge
from fedlora.privacy.accounting.rdp import ORDERS
from fedlora.privacy.ledger import Ledger
from fedlora.report import RunFolder
from fedlora.report.page import write_report
from fedlora.server.results import export, write_results
from fedlora.server.run import ServerRun
from fedlora.server.unfinished import summarise_rounds

CLIP_NORM, DELTA = 0.05, 1e-5


def accounted(sigma: float, uploads: int) -> float:
    """Return the replace-one epsilon of so many uploads, from an independent accountant."""
    accountant = RdpAccountant(ORDERS)
    event = dp_accounting.GaussianDpEvent(sigma / 2)
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, uploads))
    return float(accountant.get_epsilon(DELTA))


@pytest.mark.parametrize("release", ["full", "row_space", "logits"])
def test_a_clients_epsilon_is_that_of_an_independent_accountant(
    records: Path, release: str
) -> None:
    federation = Federation(scenario(records, f"privacy.release={release}", "train.rounds=4")).run()
    for client in federation.clients:
        uploads = 4 * 2 * 4 / len(client.door.truth(client.train))
        own = federation.recorder.rounds[-1]["clients"][client.name]["epsilon"]
        times = 1 if release == "logits" else math.ceil(uploads)
        assert times > 1 or release == "logits"
        assert own == pytest.approx(accounted(2.0, times), rel=1e-6)
    block = federation.server.training.summary_fields()["privacy"]
    epsilons = [c["epsilon"] for c in federation.recorder.rounds[-1]["clients"].values()]
    assert block["epsilon"] == pytest.approx(max(epsilons))
    assert block["guarantee"]


def test_a_target_epsilon_is_met_and_not_passed(records: Path) -> None:
    config = scenario(records, "privacy.release=row_space")
    table = scenario_to_toml(config).replace("sigma = 2.0", "epsilon = 8.0")
    federation = Federation(scenario_from_toml(table)).run()
    epsilon = federation.server.training.summary_fields()["privacy"]["epsilon"]
    assert 7.99 < epsilon <= 8.0


@pytest.mark.parametrize(("release", "width"), [("full", 128), ("row_space", 2), ("logits", 2)])
def test_nothing_of_a_label_leaves_but_the_release(records: Path, release: str, width: int) -> None:
    federation = Federation(scenario(records, f"privacy.release={release}")).run()
    answers = federation.replies(m.GRADIENT)
    assert len(answers) == 2 * 2 * 2
    for reply in answers:
        assert set(reply.fields) == {"weight", "rho", "sigma", "sigma_now"}
        assert set(reply.tensors) <= {"gradient", "activation", "lengths", "ids", "fresh"}
        assert reply.tensors["gradient"].shape == (4, width)
    for reply in federation.replies(m.ROUND_REPORT):
        assert set(reply.fields) == {"samples"}
        assert not reply.tensors


def test_the_shared_head_trains_and_is_the_same_everywhere(records: Path) -> None:
    federation = Federation(scenario(records))
    first, second = (client.head.module.weight for client in federation.clients)
    start = first.detach().clone()
    federation.run()
    assert torch.equal(first, second)
    assert not torch.equal(first, start)


def test_metrics_stay_home_unless_the_scenario_lets_them_out(records: Path) -> None:
    federation = Federation(scenario(records, "evaluate.report=false")).run()
    assert federation.recorder.rounds[-1]["metric"] is None
    assert all(reply.fields == {"counts": None} for reply in federation.replies(m.METRICS))
    assert not any(request.kind == m.EVAL for request, _ in federation.sent)
    told = Federation(scenario(records)).run()
    assert told.recorder.rounds[-1]["metric"] is not None
    texts = [f.server.training.summary_fields()["privacy"]["excludes"] for f in (federation, told)]
    assert not any("metrics" in text for text in texts[0])
    assert any("metrics" in text for text in texts[1])


def test_an_owner_can_keep_metrics_that_the_scenario_asks_for(records: Path) -> None:
    federation = Federation(scenario(records), {0: OwnerTerms(reports="false")}).run()
    rounds = federation.recorder.rounds[-1]["clients"]
    assert rounds["0"]["metric"] is None
    assert rounds["1"]["metric"] is not None


def test_under_privacy_the_text_is_told_of_only_where_its_owner_says_so(
    records: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = scenario(records, "ranks.statistics=true")
    withheld = Federation(config, {1: OwnerTerms(statistics=False)}).run()
    assert "2 of 2 clients (first: 0) tell none" in caplog.text
    told = Federation(config, {1: OwnerTerms(statistics=True)}).run()
    for federation, tells in (
        (withheld, {"0": False, "1": False}),
        (told, {"0": False, "1": True}),
    ):
        for reply in federation.replies(m.REPORT):
            assert (reply.fields["statistics"] is not None) == tells[reply.client]
        for record in federation.recorder.rounds:
            assert {c: "statistics" in own for c, own in record["clients"].items()} == tells
    first, second = (f.server.training.summary_fields()["privacy"] for f in (withheld, told))
    assert first["epsilon"] == second["epsilon"]  # they are neither noised nor paid for
    assert any("Statistics of their text" in text for text in second["excludes"])
    plain = Federation(scenario(records)).run().server.training.summary_fields()["privacy"]
    assert not any("Statistics" in text for text in plain["excludes"])


def test_the_run_goes_on_without_a_client_whose_budget_is_spent(
    records: Path, tmp_path: Path
) -> None:
    config = scenario(records, "privacy.release=full", "train.rounds=3", "privacy.uploads=2")
    terms = OwnerTerms(tmp_path / "ledger", ClientLimit(8.0))
    federation = Federation(config, {0: terms})
    release = federation.clients[0].release
    release._charges.ledger.charge(
        release._charges._ids[:16], Charge.gaussian(2.0)
    )  # another run spends what the plan counted on
    federation.run()
    assert len(federation.recorder.rounds) == 3
    assert "does not pay" in federation.server.cohort.lost["0"]
    assert [record["lost"] for record in federation.recorder.rounds].count(["0"]) == 1
    assert federation.server.cohort.clients == ["1"]


def test_the_ledger_of_a_run_holds_what_the_record_says(records: Path, tmp_path: Path) -> None:
    config = scenario(records, "privacy.release=full", "train.rounds=4")
    federation = Federation(config, {n: OwnerTerms(tmp_path / str(n)) for n in range(2)}).run()
    federation.server.end()
    for name, client in federation.recorder.rounds[-1]["clients"].items():
        with Ledger(tmp_path / name, name) as ledger:
            assert ledger.epsilon(DELTA) == pytest.approx(client["epsilon"])


def test_noise_from_a_seed_repeats_and_promises_nothing(records: Path) -> None:
    config = scenario(records, "privacy.insecure_noise_seed=3")
    one, two = Federation(config).run(), Federation(config).run()
    states = [f.server.engine.adapter() for f in (one, two)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    block = one.server.training.summary_fields()["privacy"]
    assert block["epsilon"] is None and not block["guarantee"]
    assert one.recorder.rounds[-1]["clients"]["0"]["epsilon"] is None


@pytest.mark.parametrize("private", [True, False])
def test_a_private_simulation_tells_no_label_counts(
    records: Path, tmp_path: Path, private: bool
) -> None:
    config = scenario(records) if private else scenario(records, "privacy.sigma=none")
    session = {
        "scenario": scenario_to_toml(config),
        "clients": 2,
        "address": "127.0.0.1:1",
        "certificate": b"",
        "ledgers": "",
        "keep": str(tmp_path),
        "run": "0" * 16,
    }
    told = EdgeHost(session).result(0)
    assert ({"labels", "label_rows"} <= set(told)) != private
    assert set(told) - {"labels", "label_rows"} == {"classes", "error"}
    federation = Federation(config).run()
    folder = RunFolder.create(tmp_path / "run")
    folder.write_scenario(scenario_to_toml(config))
    for record in federation.recorder.rounds:
        folder.append_round(record)
    write_results(folder, federation.server, {"0": told})
    summary = json.loads(folder.summary.read_text())
    assert bool(summary["label_counts"]) != private
    assert ("Who holds what" in write_report(folder).read_text()) != private


def test_secret_noise_differs_from_run_to_run(records: Path) -> None:
    states = [Federation(scenario(records)).run().server.engine.adapter() for _ in range(2)]
    assert any(not torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_summary_states_epsilon_also_of_an_unfinished_run(
    records: Path, tmp_path: Path
) -> None:
    config = scenario(records, "privacy.release=row_space")
    federation = Federation(config).run()
    folder = RunFolder.create(tmp_path / "run")
    folder.write_scenario(scenario_to_toml(config))
    for record in federation.recorder.rounds:
        folder.append_round(record)
    write_results(folder, federation.server, federation.server.end())
    finished = json.loads((folder.path / "summary.json").read_text())["privacy"]
    assert finished["epsilon"] == pytest.approx(accounted(2.0, 1), rel=1e-6)
    assert finished["adapter"]["sample_rate"] < 1
    assert Adapter.load(folder.adapter).factors.keys() == export(federation.server).factors.keys()
    summarise_rounds(folder)
    unfinished = json.loads((folder.path / "summary.json").read_text())["privacy"]
    assert unfinished["epsilon"] == finished["epsilon"]
    assert unfinished["excludes"] == finished["excludes"]


@pytest.mark.parametrize("settings", [("privacy.release=row_space",), ("privacy.release=logits",)])
def test_a_run_that_broke_off_states_no_less_than_its_ledgers_hold(
    records: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    config = scenario(records, *settings, "train.rounds=3", "train.steps=8")
    folder = RunFolder.create(tmp_path / "run")
    folder.write_scenario(scenario_to_toml(config))
    federation = Federation(config, {n: OwnerTerms(tmp_path / str(n)) for n in range(2)}, folder)

    def stop(step: int, loss: float | None, tokens: int) -> None:
        if step == 14:
            raise KeyboardInterrupt

    federation.server.training._steps.on_step = stop
    with pytest.raises(KeyboardInterrupt):
        federation.run()
    export(federation.server).save(folder.adapter)
    summarise_rounds(folder)
    told = json.loads((folder.path / "summary.json").read_text())["privacy"]
    spent = [client.release._charges.ledger.epsilon(DELTA) for client in federation.clients]
    assert told["epsilon"] >= max(spent)
    plan = federation.clients[1].release.plan
    assert told["epsilon"] == pytest.approx(accounted(2.0, plan.uploads), rel=1e-6)
    assert "broke off" in told["unfinished"]


def test_a_client_that_was_lost_counts_with_its_plan(records: Path) -> None:
    config = scenario(records, "privacy.release=row_space", "train.rounds=3", "train.steps=8")
    federation = Federation(config)

    def lose(step: int, loss: float | None, tokens: int) -> None:
        if step == 3:
            federation.server.cohort.drop("1", "its connection broke")

    federation.server.training._steps.on_step = lose
    federation.run()
    plan = federation.clients[1].release.plan
    block = federation.server.training.summary_fields()["privacy"]
    assert block["epsilon"] == pytest.approx(accounted(2.0, plan.uploads), rel=1e-6)


def test_the_probe_is_told_the_noise_of_each_upload(records: Path) -> None:
    config = scenario(
        records,
        "channel.model=rayleigh",
        "privacy.release=row_space",
        "privacy.spread=channel",
        "privacy.uploads=8",
        "train.rounds=4",
    )
    federation = Federation(config)
    taken: dict[str, list[list[float]]] = {"0": [], "1": []}
    for client in federation.clients:
        noise = client.release._upload_noise

        def noted(*args: Any, take: Any = noise.take, name: str = client.name) -> Any:
            found = take(*args)
            taken[name].append([n.applied for n in found])
            return found

        noise.take = noted
    federation.run()
    for name, uploads in taken.items():
        told = [r.fields for r in federation.replies(m.GRADIENT) if r.client == name]
        now = [math.sqrt(sum(s * s for s in sigmas) / len(sigmas)) for sigmas in uploads]
        assert [fields["sigma_now"] for fields in told] == pytest.approx(now)
        assert max(now) > 1.02 * min(now)
        least = min(itertools.chain([2.0], *uploads))
        assert told[-1]["sigma"] == pytest.approx(least)
        assert federation.server.training.spending.sigma(name) == pytest.approx(now[-1])
    stated = federation.server.training.summary_fields()["privacy"]["sigma"]
    assert stated == min(f.fields["sigma"] for f in federation.replies(m.GRADIENT))


def test_the_server_refuses_a_scenario_that_clients_would_refuse(records: Path) -> None:
    config = scenario(records, "head.share=round", "privacy.release=full")
    with pytest.raises(FedloraError, match=r"head\.share is round"):
        ServerRun(config, Federation(scenario(records)).recorder)


def test_a_personal_head_releases_noised_gradients_and_says_what_is_not_covered(
    records: Path,
) -> None:
    config = scenario(records, "head.share=personal", "privacy.release=full")
    federation = Federation(config).run()
    block = federation.server.training.summary_fields()["privacy"]
    assert any("head that each client trains" in text for text in block["excludes"])
    first, second = (client.head.module.weight for client in federation.clients)
    assert not torch.equal(first, second)


def test_without_privacy_nothing_is_added_to_what_travels(records: Path) -> None:
    table = scenario_to_toml(scenario(records)).replace("sigma = 2.0\n", "")
    federation = Federation(scenario_from_toml(table)).run()
    for reply in federation.replies(m.GRADIENT):
        assert set(reply.fields) == {"weight", "loss"}
        assert "head_gradient.weight" in reply.tensors
        assert reply.tensors["gradient"].shape == (4, 128)
    assert federation.server.training.summary_fields()["privacy"] is None
    assert "rho" not in federation.recorder.rounds[-1]


def test_a_frozen_factor_stays_and_the_probe_tells_signal_from_noise(records: Path) -> None:
    config = scenario(
        records, "lora.freeze_a=true", "privacy.release=row_space", "privacy.probe_every=1"
    )
    federation = Federation(config)
    engine = federation.server.engine
    before = [p.A.detach().clone() for p in engine.projections]
    federation.run()
    assert all(torch.equal(p.A, A) for p, A in zip(engine.projections, before, strict=True))
    assert all(p.B.abs().sum() > 0 for p in engine.projections)
    for record in federation.recorder.rounds:
        assert len(record["gradient_snr"]) == len(engine.projections)
        assert all(ratio >= 0 for ratio in record["gradient_snr"])
