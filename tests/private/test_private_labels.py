"""Randomised labels: drawn and paid once for good, and nothing else of a label leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.private_federation import Federation, scenario

from clients.build import load_parts
from clients.edge_client import EdgeClient
from clients.owner import OwnerTerms
from clients.simulated_data import SimulatedData
from fedlora.config import (
    ClientLimit,
    PrivacyPolicy,
    Scenario,
    scenario_from_toml,
    scenario_to_toml,
)
from fedlora.errors import FedloraError
from fedlora.link import Frame, messages as m
from fedlora.privacy.accounting import Charge
from fedlora.privacy.ledger import Ledger
from fedlora.privacy.mechanisms import flip_probability, mechanism_of
from fedlora.report import RunFolder
from fedlora.report.page import write_report
from fedlora.server.results import write_results


def labels(data: Path, epsilon: float, *overrides: str) -> Scenario:
    text = scenario_to_toml(scenario(data, *overrides))
    text = text.replace("sigma = 2.0", f"epsilon = {epsilon}", 1)
    return scenario_from_toml(text.replace('"logits"', '"labels"'))


def build(config: Scenario, terms: OwnerTerms | None = None) -> EdgeClient:
    data = SimulatedData(config, config.federation.clients)
    return data.build(load_parts(config, data.labels), 0, terms=terms)


def step(client: EdgeClient) -> Frame:
    client.handle(Frame(m.BATCH, client.name, 1))
    z = {"representation": torch.randn(client.batches.batch_size, client.model.width)}
    return client.handle(Frame(m.STEP, client.name, 1, {"step": 0}, z))


def targets(client: EdgeClient) -> list[object]:
    return [sample.target for sample in client.door.truth(client.train)]


def test_a_run_trains_on_labels_of_which_so_many_are_wrong(records: Path) -> None:
    true = targets(build(scenario(records)))
    config = labels(records, 1.0)
    wrong = [sum(a != b for a, b in zip(true, targets(build(config)), strict=True))]
    wrong += [sum(a != b for a, b in zip(true, targets(build(config)), strict=True))]
    for _ in range(20):
        wrong.append(sum(a != b for a, b in zip(true, targets(build(config)), strict=True)))
    rate = sum(wrong) / len(wrong) / len(true)
    assert rate == pytest.approx(flip_probability(3, 1.0), abs=0.12)


@pytest.mark.parametrize("share", ["step", "round", "personal"])
def test_any_head_may_learn_and_the_statement_adds_up(records: Path, share: str) -> None:
    config = labels(records, 2.0, f"head.share={share}", "evaluate.baseline=true")
    federation = Federation(config).run()
    assert federation.server.cohort.lost == {}
    block = federation.server.training.summary_fields()["privacy"]
    assert block["epsilon"] == block["epsilon_exact"] == 2.0
    assert block["rho"] == 0.0 and block["sigma"] is None
    assert 0.5 < block["label_auc_bound"] < 0.9
    assert not any("head that each client" in text for text in block["excludes"])
    assert federation.recorder.rounds[-1]["clients"]["0"]["epsilon"] == 2.0


def test_labels_are_kept_and_paid_once_over_runs(records: Path, tmp_path: Path) -> None:
    terms = OwnerTerms(tmp_path / "ledger", ClientLimit(3.0))
    drawn = []
    for _ in range(2):
        client = build(labels(records, 3.0), terms)
        assert step(client).kind == m.GRADIENT
        assert client.release.spent()["label_epsilon"] == 3.0
        drawn.append(targets(client))
        client.release.close()
    assert drawn[0] == drawn[1]


def test_a_run_that_lists_the_classes_in_another_order_trains_on_the_same_labels(
    records: Path, tmp_path: Path
) -> None:
    terms, named = OwnerTerms(tmp_path / "ledger", ClientLimit(3.0)), []
    names = sorted(SimulatedData(scenario(records), 1).labels)
    for order in (names, names[1:] + names[:1]):
        listed = "task.labels=[" + ", ".join(f'"{name}"' for name in order) + "]"
        client = build(labels(records, 3.0, listed), terms)
        named.append([order[int(str(k))] for k in targets(client)])
        client.release.close()
    assert named[0] == named[1]


def test_labels_that_were_lost_are_paid_again(records: Path, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    client = build(labels(records, 3.0), OwnerTerms(path, ClientLimit(3.0)))
    step(client)
    client.release.close()
    path.with_name("ledger.labels").unlink()
    with pytest.raises(FedloraError, match="does not pay for labels at epsilon 3"):
        build(labels(records, 3.0), OwnerTerms(path, ClientLimit(3.0)))
    client = build(labels(records, 3.0), OwnerTerms(path, ClientLimit(7.0)))
    step(client)
    assert client.release.spent()["label_epsilon"] == pytest.approx(6.0)


def test_labels_and_noised_uploads_share_one_budget(records: Path, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    client = build(labels(records, 3.0), OwnerTerms(path, ClientLimit(8.0)))
    step(client)
    client.release.close()
    noised = scenario(records, "privacy.sigma=2.0")  # epsilon 4.7 on its own
    client = build(noised, OwnerTerms(path, ClientLimit(8.0)))
    reply = step(client)
    assert reply.fields["label_epsilon"] == 3.0
    client.release.close()
    with Ledger(path, "0") as ledger:
        assert ledger.epsilon(1e-5) == pytest.approx(3.0 + 4.73, abs=0.01)
    with pytest.raises(FedloraError, match="beyond its privacy-epsilon 8"):
        build(noised, OwnerTerms(path, ClientLimit(8.0)))


def test_spending_survives_the_ledgers_rewriting(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with Ledger(path, "0", ClientLimit(8.0)) as ledger:
        ledger.charge([1, 2], Charge(epsilon=3.0))
        ledger.charge([2, 3], Charge.gaussian(2.0))
    for _ in range(2):  # opening merges charges into sums
        with Ledger(path, "0", ClientLimit(8.0)) as ledger:
            assert ledger.label_epsilon == 3.0 and ledger.label_epsilon_of(3) == 0.0
            assert ledger.rho == pytest.approx(0.5)
            with pytest.raises(FedloraError, match="does not pay for labels at epsilon 6"):
                ledger.charge([2], Charge(epsilon=6.0))


def test_an_owner_can_insist_on_noise(records: Path, tmp_path: Path) -> None:
    terms = OwnerTerms(tmp_path / "ledger", ClientLimit(8.0, min_sigma=1.0))
    with pytest.raises(FedloraError, match="privacy-min-sigma 1"):
        build(labels(records, 4.0), terms)


def test_noised_activations_come_out_of_the_same_budget(records: Path) -> None:
    client = build(labels(records, 8.0, "privacy.activation_sigma=4.0"))
    step(client)
    spent = client.release.spent()
    assert spent["rho"] == pytest.approx(2 / 4.0**2)
    assert 5.0 < spent["label_epsilon"] < 8.0
    with pytest.raises(FedloraError, match="leaves nothing for labels"):
        build(labels(records, 1.0, "privacy.activation_sigma=2.0"))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"sigma": 1.0}, "privacy.sigma is 1.0"),
        ({"epsilon": 1.0, "spread": "channel"}, "privacy.spread is channel"),
        ({"epsilon": 1.0, "uplink": "analog"}, "privacy.uplink is analog"),
    ],
)
def test_settings_that_need_noise_are_refused(values: dict, reason: str) -> None:
    with pytest.raises(FedloraError, match=reason):
        mechanism_of(PrivacyPolicy(release="labels", **values)).check(Scenario())


def test_the_report_of_a_run_without_noised_gradients_can_be_written(
    records: Path, tmp_path: Path
) -> None:
    config = labels(records, 2.0, "evaluate.baseline=false")
    federation = Federation(config).run()
    folder = RunFolder.create(tmp_path / "run")
    folder.write_scenario(scenario_to_toml(config))
    for record in federation.recorder.rounds:
        folder.append_round(record)
    write_results(folder, federation.server, federation.server.end())
    block = json.loads((folder.path / "summary.json").read_text())["privacy"]
    assert block["epsilon"] == block["label_epsilon"] == 2.0
    assert "randomised label" in write_report(folder).read_text()
