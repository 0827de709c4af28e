"""Each oracle finds what it is there for: the product is broken on purpose."""

from __future__ import annotations

import dataclasses
import random
import signal
import time

import pytest
import torch

from clients.edge_client import EdgeClient
from clients.head import ClientHead
from clients.owner.charges import Charges
from fedlora.channel.ledger import AirLedger
from fedlora.errors import FedloraError
from fedlora.lora.export import Adapter
from fedlora.server.compute import SplitEngine, adapter_update
from fedlora.server.exchange.spending import Spending
from fedlora.server.training import Training

TIMERS = ((signal.SIGALRM, signal.ITIMER_REAL, 3),)
PRIVATE = {"privacy.epsilon": 8.0, "head.share": "step", "privacy.release": "row_space"}
RANKS = {"ranks.strategy": "simulations.fuzz.by_client:ByClient", "ranks.options.ranks": [2, 1]}
AIR = {"channel.model": "rayleigh", "channel.deliver_every": 1, "channel.deadline_s": 100.0}


def test_nothing_is_found_where_nothing_is_wrong(examined):
    found = examined({**RANKS, **AIR, "head.share": "step", "train.rounds": 2}, start=1)
    assert (found.kind, found.faults) == ("ran", [])
    assert found.verdicts.keys() >= {
        *("unsplit", "bits", "resume", "unrelated", "exports", "told", "inferred"),
        *("start", "moved", "finite", "undisturbed", "written"),
    }
    private = examined(PRIVATE)
    assert (private.kind, private.faults) == ("ran", [])
    assert private.verdicts.keys() >= {"target", "accounting", "ledgers", "limits"}


def test_an_average_over_clients_instead_of_samples_is_found(examined, monkeypatch):
    backward = SplitEngine.backward

    def by_clients(self, gradients, weights, noise=()):
        pairs = zip(gradients, weights, strict=True)
        return backward(self, [g / w for g, w in pairs], [1.0] * len(weights), noise)

    monkeypatch.setattr(SplitEngine, "backward", by_clients)
    uneven = {"partition.kind": "column", "partition.column": "group", "train.batch_size": 40}
    uneven |= {"data.holdout": 0.0, "federation.clients": 3, "_rows": 20, "train.rounds": 2}
    assert examined(uneven, by=["unsplit"]).verdicts["unsplit"]


def test_a_personal_head_that_forgets_its_round_is_found(examined, monkeypatch):
    monkeypatch.setattr(ClientHead, "load_state_dict", lambda self, state: None)
    found = examined({"train.rounds": 2, "head.share": "personal"}, by=["resume"])
    assert found.verdicts["resume"]


def test_a_random_order_is_found(examined, monkeypatch):
    book = AirLedger.book

    def noisy(self, client, direction, kind, bits, wire_bytes):
        seconds = book(self, client, direction, kind, bits, wire_bytes)
        if kind != "evaluation":
            self._row(client).seconds[direction][kind] += random.random() * 1e-12
        return seconds

    monkeypatch.setattr(AirLedger, "book", noisy)
    found = examined({**AIR, "evaluate.baseline": False}, by=["repeat"])
    assert "air_seconds" in found.verdicts["repeat"]


def test_a_payload_that_is_not_booked_is_found(examined, monkeypatch):
    book = AirLedger.book

    def blind(self, client, direction, kind, bits, wire_bytes):
        return book(self, client, direction, kind, bits // 2, wire_bytes)

    monkeypatch.setattr(AirLedger, "book", blind)
    assert examined(AIR, by=["bits"]).verdicts["bits"]


def test_an_epsilon_that_is_told_too_small_is_found(examined, monkeypatch):
    note = Spending.note

    def half(self, client, reply):
        note(self, client, reply)
        self._rho[client] /= 2

    monkeypatch.setattr(Spending, "note", half)
    found = examined(PRIVATE, by=["accounting", "limits"]).verdicts
    assert found["accounting"] and found["limits"]


def test_an_epsilon_beyond_the_target_is_found(examined, monkeypatch):
    note = Spending.note

    def twice(self, client, reply):
        note(self, client, reply)
        self._rho[client] *= 2

    monkeypatch.setattr(Spending, "note", twice)
    assert examined(PRIVATE, by=["target"]).verdicts["target"]


def test_a_plan_that_forgets_what_was_paid_before_a_restart_is_found(examined, monkeypatch):
    monkeypatch.setattr(Charges, "rho", property(lambda self: max(self._rho.values(), default=0.0)))
    keys = {**PRIVATE, "train.rounds": 2, "_rows": 8, "train.batch_size": 8}
    assert examined(keys, by=["ledgers"]).verdicts["ledgers"]


def test_a_limit_that_allows_everything_is_found(examined, monkeypatch):
    monkeypatch.setattr(Charges, "check", lambda self, policy, sigma, gradients: None)
    assert examined(PRIVATE, by=["limits"]).verdicts["limits"]


def test_an_export_of_another_scale_is_found(examined, monkeypatch):
    save = Adapter.save

    def louder(self, folder, ranks=None):
        save(dataclasses.replace(self, alpha=2 * self.alpha), folder, ranks)

    monkeypatch.setattr(Adapter, "save", louder)
    found = examined({"train.lr": 0.1}, by=["exports", "told"]).verdicts
    assert found["exports"] and found["told"]


def test_a_client_of_rank_0_that_is_followed_is_found(examined, monkeypatch):
    backward = SplitEngine.backward

    def shared(self, gradients, weights, noise=()):
        mean = sum(g.mean() for g in gradients)
        return backward(self, [g + mean for g in gradients], weights, noise)

    monkeypatch.setattr(SplitEngine, "backward", shared)
    found = examined({**RANKS, "ranks.options.ranks": [0, 2]}, by=["without_rank"])
    assert found.verdicts["without_rank"]


def test_a_component_that_decays_untrained_is_found(examined, monkeypatch):
    step = adapter_update.AdapterUpdate.step

    def decays(self, number, shared=()):
        step(self, number, shared)
        with torch.no_grad():
            for projection in self.projections:
                projection.A.mul_(0.999)

    monkeypatch.setattr(adapter_update.AdapterUpdate, "step", decays)
    ranks = {"ranks.strategy": "uniform", "ranks.options.r": 1}
    assert examined(ranks, by=["moved"]).verdicts["moved"]


def test_an_evaluation_that_moves_the_order_of_samples_is_found(examined, monkeypatch):
    evaluate = Training._evaluate

    def reads_on(self, round_, decisions):
        found = evaluate(self, round_, decisions)
        if found is not None:
            for member in self.cohort.clients:
                CLIENTS[member].batches.position += 1
        return found

    CLIENTS: dict[str, EdgeClient] = {}
    init = EdgeClient.__init__

    def noted(self, name, *rest, **more):
        init(self, name, *rest, **more)
        CLIENTS[name] = self

    monkeypatch.setattr(EdgeClient, "__init__", noted)
    monkeypatch.setattr(Training, "_evaluate", reads_on)
    keys = {"train.rounds": 3, "compute.checkpoint": True, "compute.device_map": {"disk": "0"}}
    oracles = ["unrelated", "unsplit"]
    assert any(examined({**keys, "seed": seed}, by=oracles).faults for seed in range(6))


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        ("it cannot be", "names neither key nor value"),
        ("train.lr is 3. Set another", "is more than one sentence"),
        ("train.lr is 3", "names no mend"),
        ("train.lr is 3\n; set 1", "has line breaks"),
        ("train.lr is 3; " + "set it " * 100, "characters long"),
    ],
)
def test_a_refusal_that_says_too_little_or_too_much_is_found(examined, monkeypatch, message, wrong):
    def refuse(scenario):
        raise FedloraError(message)

    monkeypatch.setattr("simulations.fuzz.examine.check_scenario", refuse)
    found = examined()
    assert found.kind == "refused" and wrong in found.faults[0]


def test_a_refusal_in_the_middle_of_training_is_found(examined, monkeypatch):
    def refuse(self, round_):
        raise FedloraError("train.lr is 3; set another")

    monkeypatch.setattr(Training, "_train_round", refuse)
    assert examined().faults == ["late refusal: train.lr is 3; set another"]


def test_a_crash_and_a_hang_are_found(examined, monkeypatch):
    monkeypatch.setattr(Training, "_train_round", lambda self, round_: 1 / 0)
    assert examined().faults[0].startswith("crash: ZeroDivisionError at ")
    monkeypatch.setattr("simulations.fuzz.examine.HANG_S", 1.5)
    monkeypatch.setattr(Training, "_train_round", lambda self, round_: all(iter(lambda: 1, 0)))
    assert examined().faults == ["hang: train takes more than 1.5 s of a processor"]
    monkeypatch.setattr("simulations.fuzz.examine._TIMERS", TIMERS)
    monkeypatch.setattr(Training, "_train_round", lambda self, round_: time.sleep(60))
    assert examined().kind == "hang"
