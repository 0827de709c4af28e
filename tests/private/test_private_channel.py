"""Noise that follows the channel: the same total, and what a receiver adds is counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.private_federation import Federation, scenario

from clients.build import load_parts
from clients.edge_client import EdgeClient
from clients.owner import OwnerTerms, Private
from clients.simulated_data import SimulatedData
from fedlora.config import ClientLimit, Scenario
from fedlora.errors import FedloraError, ProtocolError
from fedlora.link import Frame, messages as m
from fedlora.privacy.accounting import calibrate_sigma, rdp_epsilon
from fedlora.privacy.ledger import Ledger

FADING = ("channel.model=rayleigh", "privacy.release=row_space")
SPREAD = (*FADING, "privacy.spread=channel", "privacy.uploads=8", "train.rounds=8")


def build(config: Scenario, terms: OwnerTerms | None = None) -> EdgeClient:
    data = SimulatedData(config, config.federation.clients)
    return data.build(load_parts(config, data.labels), 0, terms=terms)


def step(client: EdgeClient, **fields: object) -> Frame:
    client.handle(Frame(m.BATCH, client.name, 1))
    z = {"representation": torch.randn(client.batches.batch_size, client.model.width)}
    return client.handle(Frame(m.STEP, client.name, 1, {"step": 0, **fields}, z))


def test_a_spread_budget_meets_the_plans_epsilon_and_uses_several_noises(
    records: Path, tmp_path: Path
) -> None:
    config = scenario(records, *SPREAD, "ranks.strategy=random")
    terms = {n: OwnerTerms(tmp_path / str(n), ClientLimit(40.0)) for n in range(2)}
    federation = Federation(config, terms).run()
    assert federation.server.cohort.lost == {}
    assert any("rank" in request.fields for request, _ in federation.sent)
    limit = rdp_epsilon(8 * 2 / 2.0**2, 1e-5)
    for client in federation.clients:
        client.release.close()
        with Ledger(tmp_path / client.name, client.name) as ledger:
            assert 0 < ledger.epsilon(1e-5) <= limit * (1 + 1e-9)
            costs = {round(cost, 9) for cost in ledger._book.spent.values()}
        assert len(costs) > 3
        assert client.release.spent()["sigma"] < 2.0


@pytest.mark.parametrize("rank", [0.0, 8.0, 1e9, -5, None])
def test_no_rank_that_a_server_tells_makes_a_sample_spend_more(records: Path, rank: object) -> None:
    config = scenario(records, *SPREAD, "train.batch_size=16", "lora.r_max=8")
    client = build(config)
    for _ in range(9):
        reply = step(client, rank=rank)
        if reply.kind == m.LEAVE:
            break
    assert reply.kind == m.LEAVE and "planned for 8 uploads" in reply.fields["reason"]
    assert client.release.spent()["rho"] <= 8 * (2 / 2.0**2) * (1 + 1e-9)


@pytest.mark.parametrize("rank", ["all", True, float("nan")])
def test_a_rank_that_is_no_number_is_refused_and_nothing_is_spent(
    records: Path, rank: object
) -> None:
    client = build(scenario(records, *SPREAD, "lora.r_max=8"))
    with pytest.raises(ProtocolError, match="rank"):
        step(client, rank=rank)
    assert client.release.spent()["rho"] == 0.0


def test_the_floor_of_the_owner_holds_in_the_best_round(records: Path, tmp_path: Path) -> None:
    terms = OwnerTerms(tmp_path / "ledger", ClientLimit(40.0, min_sigma=1.9))
    client = build(scenario(records, *SPREAD), terms)
    client.handle(Frame(m.ROUND, client.name, 1, {"round": 1}))
    client.release.begin_round({"up_rate_bps": 1e12})
    assert step(client).kind == m.GRADIENT
    assert client.release.spent()["sigma"] >= 1.9


def test_labels_that_are_paid_once_have_nothing_to_spread(records: Path) -> None:
    with pytest.raises(FedloraError, match=r"privacy\.spread is channel"):
        build(scenario(records, "privacy.spread=channel"))


@pytest.mark.parametrize("release", ["full", "row_space", "logits"])
def test_receiver_noise_is_really_added_and_at_least_what_is_charged(
    records: Path, release: str
) -> None:
    config = scenario(
        records,
        "channel.model=awgn",
        "channel.snr_db=[3.0]",
        f"privacy.release={release}",
        "privacy.uplink=analog",
        "privacy.analog_snr_db=10.0",
        "privacy.uploads=30",
        "privacy.insecure_noise_seed=1",
    )
    client = build(config)
    client.handle(Frame(m.ROUND, client.name, 1, {"round": 1}))
    gradient = Private(torch.zeros(1, client.model.width))
    if release == "logits":
        heard = torch.cat([client.release(gradient, [1], [s]).value for s in range(16)])
        targets = [sample.target for sample in client.door.truth(client.train)[:16]]
        heard = heard - client.release._messages[targets]
    else:
        heard = torch.cat(
            [client.release(gradient, [1], [s]).value for s in range(16) for _ in range(25)]
        )
    sigma = float(heard.std()) / 0.05
    noise = client.release._upload_noise.take([1], [heard.shape[1]])[0]
    assert noise.artificial < noise.charged == 2.0 < noise.applied
    assert sigma == pytest.approx(noise.applied, rel=0.25 if release == "logits" else 0.06)
    assert client.release.spent()["sigma"] == 2.0


def test_a_better_channel_than_the_bound_lowers_its_power(records: Path) -> None:
    config = scenario(
        records, "channel.snr_db=[40.0]", "privacy.uplink=analog", "privacy.analog_snr_db=10.0"
    )
    client = build(config)
    client.handle(Frame(m.ROUND, client.name, 1, {"round": 1}))
    noise = client.release._upload_noise.take([1], [2])[0]
    assert noise.applied == pytest.approx(2.0) and noise.charged == 2.0


def test_free_noise_is_charged_as_what_it_is(records: Path) -> None:
    config = scenario(
        records,
        "privacy.sigma=0.9",
        "channel.snr_db=[-10.0]",
        "privacy.uplink=analog",
        "privacy.analog_snr_db=-10.0",
    )
    client = build(config)
    client.handle(Frame(m.ROUND, client.name, 1, {"round": 1}))
    client.release(Private(torch.zeros(1, client.model.width)), [1], [0])
    expected = (1 / (2 * 0.1)) ** 0.5  # C^2 / (d gamma) for d = 2
    assert client.release.spent()["rho"] == pytest.approx(2 / expected**2, rel=1e-6)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("link.gradient=int8", "link.gradient is int8"),
        ("channel.report.error_db=1.0", "know the channel exactly"),
        ("channel.coherence_s=0.1", "know the channel exactly"),
    ],
)
def test_an_uncertain_or_coded_uplink_is_refused(records: Path, override: str, reason: str) -> None:
    with pytest.raises(FedloraError, match=reason):
        build(scenario(records, "privacy.uplink=analog", override))


def test_a_device_refuses_receiver_noise_that_its_link_does_not_have(
    records: Path, tmp_path: Path
) -> None:
    terms = OwnerTerms(tmp_path / "ledger", deployed=True)
    with pytest.raises(FedloraError, match=r"privacy\.uplink is analog.*device"):
        build(scenario(records, "privacy.uplink=analog"), terms)


def test_the_statement_says_who_hears_more(records: Path) -> None:
    federation = Federation(scenario(records, "privacy.uplink=analog")).run()
    block = federation.server.training.summary_fields()["privacy"]
    assert block["uplink"] == "analog" and block["spread"] == "even"
    assert any("10 dB" in text for text in block["excludes"])
    assert block["epsilon"] == pytest.approx(
        rdp_epsilon(2 / max(2.0, calibrate_sigma(50, 1e-5, 1)) ** 2, 1e-5), rel=1e-6
    )


def test_a_baseline_that_uploads_nothing_leaves_the_noise_of_the_rounds_as_it_is(
    records: Path,
) -> None:
    """Its rounds train no rank, so the first rounds after them would look like far better ones."""

    def noises(baseline: str) -> list[float]:
        config = scenario(
            records,
            "channel.model=rayleigh",
            "privacy.release=full",
            "head.share=personal",
            "privacy.spread=channel",
            "train.rounds=4",
            f"evaluate.baseline={baseline}",
        )
        sent = Federation(config).run().sent
        told = [reply.fields.get("sigma_now") for request, reply in sent if request.kind == m.STEP]
        steps = config.train.total_steps * config.federation.clients
        assert len(told) == steps * (1 + (baseline == "true"))
        return told[-steps:]

    assert noises("true") == noises("false")
