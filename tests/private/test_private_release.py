"""A client keeps its budget and its labels, whatever it is asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.private_federation import scenario

from clients.build import load_parts
from clients.device import take_part
from clients.edge_client import EdgeClient
from clients.owner import OwnerTerms, Private, content
from clients.simulated_data import SimulatedData
from fedlora.config import ClientLimit, NodeKeys, PrivacyPolicy, Scenario, scenario_to_toml
from fedlora.errors import FedloraError
from fedlora.link import Frame, messages as m
from fedlora.privacy.accounting import Charge
from fedlora.privacy.ledger import BudgetSpentError, Ledger
from fedlora.privacy.mechanisms import base, clip_rows
from fedlora.server.run import ServerRun
from simulations.in_process import Record


def build(config: Scenario, terms: OwnerTerms | None = None) -> EdgeClient:
    data = SimulatedData(config, config.federation.clients)
    return data.build(load_parts(config, data.labels), 0, terms=terms)


def ask(client: EdgeClient, kind: str, **fields: object) -> Frame:
    return client.handle(Frame(kind, client.name, 1, fields))


def step(client: EdgeClient, **fields: object) -> Frame:
    rows = client.batches.batch_size
    z = {"representation": torch.randn(rows, client.model.width)}
    return client.handle(Frame(m.STEP, client.name, 1, {"step": 0, **fields}, z))


@pytest.mark.parametrize("release", ["full", "row_space"])
def test_no_two_uploads_share_noise(records: Path, release: str) -> None:
    client = build(scenario(records, f"privacy.release={release}", "privacy.uploads=2"))
    gradient = Private(torch.zeros(3, client.model.width))
    first = client.release(gradient, [1, 1, 1], [0, 1, 2]).value
    again = client.release(gradient, [1, 1, 1], [0, 1, 2]).value
    # noise lies on a grid, so that a single number in 5,000 may coincide
    assert (first == again).sum() <= max(1, 0.05 * first.numel())


def test_a_label_is_drawn_and_paid_once_and_then_repeated(records: Path) -> None:
    client = build(scenario(records))
    gradient = Private(torch.zeros(2, client.model.width))
    first = client.release(gradient, [1, 1], [5, 6]).value
    cost = client.release.spent()["rho"]
    mixed = client.release(gradient, [1, 1, 1], [6, 7, 5]).value
    assert torch.equal(mixed[[2, 0]], first)
    assert client.release.spent()["rho"] == cost == pytest.approx(2 / 2.0**2)


def test_the_message_of_a_label_does_not_depend_on_what_the_server_sends(records: Path) -> None:
    config = scenario(records, "privacy.insecure_noise_seed=3")
    uploads = []
    for scale in (1.0, 1e6):
        client = build(config)
        ask(client, m.BATCH)
        rows = client.batches.batch_size
        z = {"representation": scale * torch.ones(rows, client.model.width)}
        reply = client.handle(Frame(m.STEP, client.name, 1, {"step": 0}, z))
        uploads.append(reply.tensors["gradient"])
    assert torch.equal(*uploads)


def test_more_uploads_than_planned_are_refused_and_the_client_leaves(records: Path) -> None:
    client = build(scenario(records, "privacy.release=full", "privacy.uploads=1"))
    passes = len(client.door.truth(client.train)) // client.batches.batch_size
    for _ in range(passes):
        ask(client, m.BATCH)
        assert step(client).kind == m.GRADIENT
    ask(client, m.PHASE, name="train")  # a hostile server starts anew
    ask(client, m.BATCH)
    reply = step(client)
    assert reply.kind == m.LEAVE
    assert "planned for 1 uploads" in reply.fields["reason"]
    assert not reply.tensors


def test_a_replayed_step_gets_nothing(records: Path) -> None:
    client = build(scenario(records, "privacy.release=full"))
    ask(client, m.BATCH)
    assert "gradient" in step(client).tensors
    spent = client.release.spent()
    with pytest.raises(FedloraError, match="no open batch"):
        step(client)
    assert client.release.spent() == spent


def test_what_the_server_writes_into_a_request_does_not_lower_the_noise(records: Path) -> None:
    client = build(scenario(records, "privacy.release=full"))
    ask(client, m.WELCOME, sigma=0.0, privacy={"sigma": 0.0})
    ask(client, m.BATCH)
    assert step(client, sigma=0.0).fields["sigma"] == 2.0


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        (ClientLimit(8.0, min_sigma=3.0), "privacy-min-sigma 3"),
        (ClientLimit(1.0), "beyond its privacy-epsilon 1"),
    ],
)
def test_the_owners_limit_decides_before_the_run(
    records: Path, tmp_path: Path, limit: ClientLimit, reason: str
) -> None:
    with pytest.raises(FedloraError, match=reason):
        build(scenario(records), OwnerTerms(tmp_path / "ledger", limit))
    Ledger(tmp_path / "ledger", "0").close()  # the refusal let go of it


def test_a_limit_refuses_a_run_without_noise(records: Path) -> None:
    plain = replace(scenario(records), privacy=PrivacyPolicy())
    with pytest.raises(FedloraError, match="privacy-epsilon 8 but the run has no noise"):
        build(plain, OwnerTerms(limit=ClientLimit(8.0)))


@pytest.mark.parametrize("release", ["full", "row_space"])
def test_a_crash_after_the_charge_counts_an_upload_that_never_left(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    terms = OwnerTerms(tmp_path / "ledger")
    client = build(scenario(records, f"privacy.release={release}"), terms)
    ask(client, m.BATCH)

    def killed(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(base, "release", killed)
    with pytest.raises(KeyboardInterrupt):
        step(client)
    client.release.close()
    with Ledger(tmp_path / "ledger", "0") as ledger:
        assert ledger.rho == pytest.approx(0.5)


def test_the_ledger_knows_a_record_whatever_its_columns_are_called() -> None:
    assert content({"text": "a", "label": "b"}) == content({"x": "a", "y": "b"})


def test_an_earlier_runs_spending_counts(records: Path, tmp_path: Path) -> None:
    config = scenario(records, "privacy.sigma=1.8")
    terms = OwnerTerms(tmp_path / "ledger", ClientLimit(6.0))
    client = build(config, terms)
    ask(client, m.BATCH)
    step(client)
    client.release.close()
    with pytest.raises(FedloraError, match="beyond its privacy-epsilon 6"):
        build(config, terms)


def test_a_charge_beyond_the_limit_makes_the_client_leave(records: Path, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    client = build(scenario(records), OwnerTerms(path, ClientLimit(8.0)))
    ledger = client.release._charges.ledger  # another run of the same owner spent meanwhile
    ledger.charge(
        client.release._charges._ids[: len(client.door.truth(client.train))], Charge.gaussian(1.5)
    )
    ask(client, m.BATCH)
    reply = step(client)
    assert reply.kind == m.LEAVE and "privacy-epsilon" in reply.fields["reason"]
    Ledger(path, "0").close()  # the ledger is free again


def test_a_restarted_client_states_what_it_spent_before(records: Path, tmp_path: Path) -> None:
    drawn = []
    for _ in range(2):
        client = build(scenario(records), OwnerTerms(tmp_path / "ledger"))
        ask(client, m.BATCH)
        drawn.append(step(client))
        client.release.close()
    assert [reply.fields["rho"] for reply in drawn] == pytest.approx([0.5, 1.0])
    assert not torch.equal(*(reply.tensors["gradient"] for reply in drawn))


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("head.share=round", "privacy.release=full"), "head.share is round"),
        (("head.share=personal",), "needs a head that the server knows"),
        (("privacy.release=row_space", "evaluate.baseline=true"), "pay for twice"),
        (("model.client_back=1",), "model.client_back"),
        (("privacy.activation_sigma=5", "train.embedding=true"), "train.embedding"),
        (("privacy.delta=0.1",), "privacy.delta is 0.1"),
    ],
)
def test_what_would_leave_without_a_mechanism_is_refused(
    records: Path, overrides: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(FedloraError, match=reason):
        build(scenario(records, *overrides))


TOKENS = ("privacy.unit=token", "head.share=personal", "privacy.release=full")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ((*TOKENS, "model.client_back=1"), r"model\.client_back is 1"),
        ((*TOKENS, "model.client_back=2", "task.kind=causal_lm"), r"model\.client_back is 2"),
        (
            (*TOKENS, "model.client_front=1", "privacy.activation_sigma=5"),
            r"model\.client_front is 1",
        ),
        (
            (
                "privacy.unit=token",
                "privacy.sigma=none",
                "privacy.epsilon=8",
                "privacy.release=labels",
                "model.client_front=1",
                "privacy.activation_sigma=5",
            ),
            r"model\.client_front is 1",
        ),
    ],
)
def test_tokens_are_noised_one_by_one_only_where_nothing_mixes_them(
    records: Path, overrides: tuple[str, ...], reason: str
) -> None:
    config = scenario(records, *overrides)
    with pytest.raises(FedloraError, match=rf"privacy\.unit is token, but {reason}.*; set"):
        build(config)
    with pytest.raises(FedloraError, match=r"privacy\.unit is token"):
        ServerRun(config, Record())
    build(replace(config, privacy=replace(config.privacy, unit="sample")))


def test_one_tokens_label_moves_one_row_of_what_is_clipped_by_tokens(records: Path) -> None:
    client = build(
        scenario(records, *TOKENS, "task.kind=causal_lm", "model.client_front=1", "data.holdout=0")
    )
    sample = max(client.door.truth(client.train), key=lambda s: len(s.ids))
    targets = list(sample.target)
    place = max(i for i, target in enumerate(targets) if target >= 0)
    targets[place] = (targets[place] + 7) % 500
    other = replace(sample, target=tuple(targets))
    z = torch.randn(len(sample.ids), client.model.width)
    clipped = [
        clip_rows(
            client.model.loss(client.head.module, z.clone(), [s], sample_mean=True).gradient,
            [len(sample.ids)],
            1e-4,
            "token",
        ).values
        for s in (sample, other)
    ]
    moved = (clipped[0] - clipped[1]).norm(dim=1)
    assert moved.nonzero().flatten().tolist() == [place]
    assert moved[place] <= 2e-4 * (1 + 1e-5)


def test_a_device_refuses_noise_that_the_server_knows(
    records: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = scenario(
        records, "privacy.insecure_noise_seed=3", "task.labels=['cold','mild','warm']"
    )
    session = {
        "scenario": scenario_to_toml(config),
        "address": "127.0.0.1:1",
        "certificate": b"",
        "token": "",
        "client": 0,
        "clients": 2,
        "run": "0123456789abcdef",
    }
    node = {"scenario-data": "true", "privacy-ledger": str(tmp_path / "ledger")}
    node["state"] = str(tmp_path / "states")
    assert take_part(session, node) == {"reason": "terms"}
    assert "privacy.insecure_noise_seed is 3" in caplog.text and "device" in caplog.text
    assert not (tmp_path / "ledger").exists()


def test_owners_terms_come_from_the_node_alone() -> None:
    given = {"privacy-epsilon": 4, "privacy-ledger": "~/here", "privacy-report": "true"}
    terms = OwnerTerms.of(NodeKeys.read({**given, "model": "package"}))
    assert terms.limit == ClientLimit(4.0)
    assert terms.ledger == Path.home() / "here"
    assert terms.deployed and terms.reports == "true"
    plain = OwnerTerms.of(NodeKeys.read({"partition-id": 3}))
    assert plain.ledger == Path.home() / ".fedlora/privacy-ledger-3"
    assert plain.reports == "false"
    with pytest.raises(FedloraError, match="privacy-report is 'maybe'"):
        NodeKeys.read({"privacy-report": "maybe"})


def test_activations_are_noised_once_and_charged(records: Path) -> None:
    client = build(scenario(records, "privacy.activation_sigma=4.0"))
    plain = build(scenario(records))
    first = ask(client, m.BATCH).tensors["activation"]
    assert not torch.equal(first, ask(plain, m.BATCH).tensors["activation"])
    assert client.release.spent()["rho"] == pytest.approx(2 / 4.0**2)
    ask(client, m.PHASE, name="train")
    assert torch.equal(ask(client, m.BATCH).tensors["activation"], first)
    assert client.release.spent()["rho"] == pytest.approx(2 / 4.0**2)
    step(client)
    assert client.release.spent()["rho"] == pytest.approx(2 / 4.0**2 + 2 / 2.0**2)


def test_a_spent_budget_stops_before_anything_is_drawn(records: Path) -> None:
    client = build(scenario(records, "privacy.release=full", "privacy.uploads=1"))
    gradient = Private(torch.zeros(2, client.model.width))
    with pytest.raises(BudgetSpentError):
        client.release(gradient, [1, 1], [4, 4])
    assert client.release.spent()["rho"] == 0.0
