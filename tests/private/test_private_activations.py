"""Noised activations are drawn and charged once a run, over restarts, crashes and epochs."""

from __future__ import annotations

import math
import stat
from pathlib import Path

import pytest
import torch
from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
from dp_accounting.rdp import RdpAccountant
from support.private_federation import scenario

from clients.build import load_parts
from clients.edge_client import EdgeClient
from clients.owner import OwnerTerms
from clients.simulated_data import SimulatedData
from fedlora.config import ClientLimit, Scenario
from fedlora.link import Frame, messages as m
from fedlora.privacy.accounting import rdp_epsilon
from fedlora.privacy.accounting.rdp import ORDERS, rho

SIGMA = 4.0


def build(config: Scenario, terms: OwnerTerms, run: str = "run") -> EdgeClient:
    data = SimulatedData(config, config.federation.clients)
    return data.build(load_parts(config, data.labels), 0, terms=terms, run=run)


def sent(client: EdgeClient, batches: int = 3) -> torch.Tensor:
    """Return the activations of the first batches of a run, and let another process go on."""
    client.restart()
    found = []
    for seq in range(batches):
        found.append(client.handle(Frame(m.BATCH, "0", seq)).tensors["activation"])
        client._batch = []
    client.release.close()
    return torch.cat(found)


def noised(records: Path, *overrides: str) -> Scenario:
    return scenario(records, f"privacy.activation_sigma={SIGMA}", *overrides)


def test_a_restarted_client_repeats_the_bytes_and_pays_once(records: Path, tmp_path: Path) -> None:
    terms = OwnerTerms(tmp_path / "ledger", ClientLimit(50.0))
    first, rhos = sent(build(noised(records), terms)), []
    for _ in range(3):
        client = build(noised(records), terms)
        assert torch.equal(sent(client), first)
        rhos.append(client.release._charges.ledger.rho)
    assert rhos == pytest.approx([rho(SIGMA)] * 3)
    kept = tmp_path / "ledger.activations"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    other = sent(build(noised(records), terms, "another"))
    assert not torch.equal(other, first), "another run draws anew, and pays"
    assert build(noised(records), terms).release._charges.ledger.rho == pytest.approx(
        2 * rho(SIGMA)
    )


@pytest.mark.parametrize("killed", ["keep", "charge"])
def test_a_crash_before_it_leaves_costs_one_charge_and_shows_one_noise(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    terms = OwnerTerms(tmp_path / "ledger", ClientLimit(50.0))
    client = build(noised(records), terms)

    def kill(*args: object) -> None:
        raise KeyboardInterrupt

    release = client.release._activations
    owner = release._keys if killed == "keep" else client.release._charges.ledger
    monkeypatch.setattr(owner, killed, kill)
    with pytest.raises(KeyboardInterrupt):
        sent(client)
    client.release.close()
    first, again = (sent(build(noised(records), terms)) for _ in range(2))
    assert torch.equal(first, again)
    assert build(noised(records), terms).release._charges.ledger.rho == pytest.approx(rho(SIGMA))


def test_a_lost_file_of_keys_is_a_second_look_and_paid_for(records: Path, tmp_path: Path) -> None:
    terms = OwnerTerms(tmp_path / "ledger", ClientLimit(50.0))
    first = sent(build(noised(records), terms))
    (tmp_path / "ledger.activations").unlink()
    assert not torch.equal(sent(build(noised(records), terms)), first)
    assert build(noised(records), terms).release._charges.ledger.rho == pytest.approx(
        2 * rho(SIGMA)
    )


@pytest.mark.parametrize(
    "other", ["model.dtype=bf16", "model.client_front=1", "model.client_front=2", "seed=3"]
)
def test_whatever_else_makes_activations_under_the_same_run_draws_and_pays_anew(
    records: Path, tmp_path: Path, other: str
) -> None:
    """The same noise on two activations of a text would cancel out."""
    terms = OwnerTerms(tmp_path / "ledger", ClientLimit(50.0))
    first = sent(build(noised(records), terms))
    client = build(noised(records, other), terms)
    second = sent(client)
    assert client.release._charges.ledger.rho == pytest.approx(2 * rho(SIGMA))
    if first.shape == second.shape:
        assert float((first - second).std()) > SIGMA, "two draws of noise, not the same one twice"


def test_what_a_lost_file_had_paid_for_pays_for_no_later_draw(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run takes the file's place; the first is killed between drawing anew and paying."""
    terms = OwnerTerms(tmp_path / "ledger", ClientLimit(50.0))
    sent(build(noised(records), terms))
    sent(build(noised(records), terms, "another"))
    client = build(noised(records), terms)

    def kill(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(client.release._charges.ledger, "charge", kill)
    with pytest.raises(KeyboardInterrupt):
        sent(client)
    client.release.close()
    again = build(noised(records), terms)
    sent(again)
    assert again.release._charges.ledger.rho == pytest.approx(3 * rho(SIGMA))


def test_what_a_limit_just_pays_for_a_restart_does_not_ask_for_again(
    records: Path, tmp_path: Path
) -> None:
    config = noised(records, "privacy.release=full", "privacy.uploads=1")
    sigma = config.privacy.sigma
    assert sigma is not None
    most = rdp_epsilon((rho(SIGMA) + rho(sigma)) * (1 + 1e-9), 1e-5)
    terms = OwnerTerms(tmp_path / "ledger", ClientLimit(most * (1 + 1e-6)))
    for _ in range(2):
        sent(build(config, terms))


@pytest.mark.parametrize("epochs", [1, 5, 25])
def test_repeating_costs_what_one_release_costs_and_drawing_anew_what_all_cost(
    epochs: int,
) -> None:
    """Sigma for one release beside that for each of E: at one epsilon they differ by sqrt(E)."""

    def epsilon(sigma: float, releases: int) -> float:
        accountant = RdpAccountant(ORDERS)
        # a record is replaced, so activations differ by up to two clipping norms
        accountant.compose(SelfComposedDpEvent(GaussianDpEvent(sigma / 2), releases))
        return float(accountant.get_epsilon(1e-5))

    anew = SIGMA * math.sqrt(epochs)
    assert epsilon(SIGMA, 1) == pytest.approx(epsilon(anew, epochs), rel=1e-9)
    assert rdp_epsilon(rho(SIGMA), 1e-5) == pytest.approx(epsilon(SIGMA, 1), rel=1e-6)
    assert rdp_epsilon(epochs * rho(anew), 1e-5) == pytest.approx(epsilon(SIGMA, 1), rel=1e-6)
