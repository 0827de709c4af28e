"""What leaves a device depends on a record only where, and only as far as, it was paid for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dp_accounting import GaussianDpEvent
from dp_accounting.rdp import RdpAccountant

import clients.device
from clients.head import ClientHead
from clients.own_records import OwnRecords
from clients.owner import Door, Leaving, OwnerTerms
from clients.release import build as build_release
from clients.release.private import PrivateRelease
from fedlora.privacy.accounting import epsilon_of
from fedlora.privacy.accounting.rdp import ORDERS
from fedlora.tasks import ClassificationCounts
from simulations.audit.device.interference import DeviceAudit, audit_device
from simulations.audit.device.spending import Left
from simulations.audit.device.world import World

DELTA = 1e-5


@pytest.fixture(autouse=True)
def quiet() -> Any:
    logger = logging.getLogger("fedlora")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def dp_accounting_agrees(world: World, left: Left) -> str:
    """Hold the ledger against an independent accountant, for the record that has spent most."""
    with world.spent() as ledger:
        spent = ledger.spent()
    record = max(left.sigmas, key=lambda r: sum(s**-2 for s in left.sigmas[r]), default=None)
    if record is None:
        return ""
    accountant = RdpAccountant(orders=ORDERS)
    for sigma in left.sigmas[record]:
        accountant.compose(GaussianDpEvent(sigma / 2))  # replace-one moves by twice the norm
    theirs, ours = accountant.get_epsilon(DELTA), epsilon_of(spent[record], DELTA)
    if ours < theirs * (1 - 1e-6):
        return f"the ledger says epsilon {ours:.4g}, dp-accounting {theirs:.4g}"
    return ""


def test_two_devices_that_differ_in_one_record_say_the_same(tmp_path: Path) -> None:
    audit = audit_device(tmp_path, 3_000, seed=1, check=dp_accounting_agrees)
    assert not audit.findings
    assert audit.messages >= 3_000
    assert audit.taken > audit.sessions / 10 and audit.charged > 5  # it looked where it matters


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_a_night_of_messages_finds_nothing(tmp_path: Path) -> None:
    audit = audit_device(tmp_path, 100_000, seed=2, check=dp_accounting_agrees)
    assert not audit.findings


def _evaluation_without_consent(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(self: Any) -> bool:
        return True

    def tell(self: Any, parts: Any, classes: int) -> Leaving[Any]:
        del classes
        counts = [c for part in parts for c in part._Private__value]
        told = ClassificationCounts.zero(len(counts[0].confusion)) if counts else None
        for own in counts:
            told = told + own
        return self.door.public(told.to_dict() if told else None)

    monkeypatch.setattr("clients.owner.reporting.Reporting.begin", begin)
    monkeypatch.setattr("clients.owner.reporting.Reporting.tell", tell)


def _a_trained_head_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    step = ClientHead.update

    def update(self: ClientHead, *args: Any, **kwargs: Any) -> Any:
        told = step(self, *args, **kwargs)
        self.trained = False
        return told

    monkeypatch.setattr(ClientHead, "update", update)
    monkeypatch.setattr(build_release, "_check_head", lambda *args, **kwargs: None)
    monkeypatch.setattr(clients.device, "binding", lambda *args: "")


def _a_personal_head_moves_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_release, "_check_head", lambda *args, **kwargs: None)


def _labels_decide_who_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(self: OwnRecords, records: Any, parts: Any) -> Any:
        return super(OwnRecords, self).encode(records, parts)

    monkeypatch.setattr(OwnRecords, "encode", encode)


def _a_sentence_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        OwnerTerms, "simulated", property(lambda self: self.ledger is None and self.deployed)
    )
    _labels_decide_who_takes_part(monkeypatch)


def _no_noise_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    def bare(self: Any, values: Any, *args: Any, **kwargs: Any) -> Any:
        return 1e3 * values.double()

    monkeypatch.setattr(PrivateRelease, "_add_noise", bare)


def _nothing_is_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Door, "released", lambda self, value, records, receipts: self.public(value._Private__value)
    )
    monkeypatch.setattr(PrivateRelease, "_pay", lambda self, samples, noises: [])


def _noise_is_shared_by_two_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clients.build._model_name", lambda parts: "one")


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize(
    "unmend",
    [
        _evaluation_without_consent,
        _a_trained_head_leaves,
        _a_personal_head_moves_others,
        _labels_decide_who_takes_part,
        _a_sentence_leaves,
        _no_noise_is_added,
        _nothing_is_charged,
        _noise_is_shared_by_two_cuts,
    ],
)
def test_a_fault_is_found_once_its_mend_is_taken_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unmend: Callable[[pytest.MonkeyPatch], None]
) -> None:
    unmend(monkeypatch)
    audit: DeviceAudit = audit_device(tmp_path, 20_000, seed=3, stop=True)
    assert audit.findings, audit
