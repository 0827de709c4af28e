"""What clients tell of their text reaches strategy, ledger and record, and only if asked for."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from support.federation import Federation, Handler, same, scenario

from clients.edge_client import EdgeClient
from clients.owner import OwnerTerms
from clients.reports import device_report
from clients.text_statistics import text_statistics
from fedlora.config import NodeKeys
from fedlora.errors import FedloraError
from fedlora.link import Frame, messages as m
from fedlora.ranks import (
    ClientReport,
    DataStatistics,
    RankDecision,
    RankSpace,
    RankStrategy,
)
from fedlora.tasks import load_tokenizer

TOLD: list[dict[str, DataStatistics | None]] = []
ASKED = ("ranks.statistics=true",)
LISTENS = ("ranks.strategy=test_training_statistics:Listens",)


class Listens(RankStrategy):
    """Notes what each round's reports tell."""

    def allocate(
        self, round: int, clients: Mapping[str, ClientReport], space: RankSpace
    ) -> dict[str, RankDecision]:
        TOLD.append({client: report.statistics for client, report in clients.items()})
        return dict.fromkeys(clients, RankDecision(space.uniform(2)))


def telling(statistics: Any, only: str = "0") -> Callable[[EdgeClient], Handler]:
    """Put statistics into the reports of a client."""

    def wrap(client: EdgeClient) -> Handler:
        def handle(frame: Frame) -> Frame:
            reply = client.handle(frame)
            if frame.kind == m.ROUND and client.name == only:
                fields = {**reply.fields, "statistics": statistics}
                return dataclasses.replace(reply, fields=fields)
            return reply

        return handle

    return wrap


@pytest.fixture(autouse=True)
def _nothing_told() -> None:
    TOLD.clear()


def test_the_strategy_and_the_record_hold_what_each_client_computed(tiny, records):
    config = scenario(tiny["bert"], records, *ASKED, *LISTENS)
    federation = Federation(config).run()
    tokenizer = load_tokenizer(tiny["bert"])
    own = {c.name: text_statistics(c.door.truth(c.train), tokenizer) for c in federation.clients}
    assert len({told.mean_length for told in own.values()}) == 3
    assert [own] * 2 == TOLD
    for record in federation.recorder.rounds:
        for client, told in own.items():
            assert record["clients"][client]["statistics"] == dataclasses.asdict(told)


def test_telling_costs_32_bits_a_figure_and_changes_nothing_else(tiny, records):
    silent = Federation(scenario(tiny["bert"], records, "channel.deliver_every=1")).run()
    open_ = Federation(scenario(tiny["bert"], records, "channel.deliver_every=1", *ASKED)).run()
    assert same(silent.server.engine.adapter(), open_.server.engine.adapter())
    for before, after in zip(silent.recorder.rounds, open_.recorder.rounds, strict=True):
        assert "statistics" not in str(before)
        assert after["bits"]["up"].pop("control") == before["bits"]["up"].pop("control") + 3 * 128
        assert after["bits"] == before["bits"]
        assert after["wire_bytes"]["up"] == before["wire_bytes"]["up"] + 3 * 16
        for client, own in after["clients"].items():
            assert own["bits_up"] == before["clients"][client]["bits_up"] + 128
            assert own["air_seconds"] > before["clients"][client]["air_seconds"]
    assert open_.server.air.bits_so_far()[0] == silent.server.air.bits_so_far()[0] + 2 * 3 * 128


def test_a_figure_that_is_not_told_costs_nothing():
    assert DataStatistics(9.0, None, 1.5, None).bits == 64
    assert DataStatistics().bits == 0


@pytest.mark.parametrize(
    ("statistics", "reason"),
    [
        ({"token_surprisal": 1e9}, "token_surprisal is 1000000000.0; set a finite number from 0"),
        ({"type_token_ratio": -0.1}, "type_token_ratio is -0.1"),
        ({"mean_length": 1e300}, "mean_length is 1e\\+300"),
        ({"pieces_per_word": "2"}, "pieces_per_word is '2', a str"),
        ({"label_entropy": 1.0}, "unknown key 'label_entropy'"),
        ([9.0], r"statistics of a client report is \[9.0\]; expected a table"),
    ],
)
def test_a_client_that_tells_what_cannot_be_is_left_out(tiny, records, statistics, reason):
    config = scenario(tiny["bert"], records, "train.rounds=1", *ASKED, *LISTENS)
    federation = Federation(config, wrap=telling(statistics)).run()
    assert re.search(reason, federation.server.cohort.lost["0"])
    assert list(TOLD[0]) == ["1", "2"]


def test_what_nobody_asked_for_is_not_read(tiny, records):
    config = scenario(tiny["bert"], records, *LISTENS)
    federation = Federation(config, wrap=telling({"token_surprisal": 9.0})).run()
    assert [dict.fromkeys("012")] * 2 == TOLD
    assert "statistics" not in str(federation.recorder.rounds)


def test_the_server_says_once_who_tells_nothing(tiny, records, caplog):
    config = scenario(tiny["bert"], records, *ASKED)
    with caplog.at_level(logging.WARNING, "fedlora.server"):
        Federation(config, wrap=telling(None, only="1")).run()
    (said,) = [record.getMessage() for record in caplog.records]
    assert "1 of 3 clients (first: 1) tell none" in said


class FastLink:
    """A stream whose probes take as long as on a link of 8 Mbit/s."""

    def probe(self, client: str, up: int, down: int) -> float:
        return (up + down) / 1e6


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("model", ["measured", "awgn"])
def test_a_device_reports_its_link_and_its_text_where_that_is_asked_for(
    tiny, records, model, asked
):
    overrides = [f"channel.model={model}", *(ASKED if asked else ())]
    config = scenario(tiny["bert"], records, *overrides)
    client = Federation(config).clients[0]
    client.report = device_report(config, 0, FastLink())
    reply = client.handle(Frame(m.ROUND, "0", 1, {"round": 1}))
    report = ClientReport.from_dict(reply.fields)
    assert report.channel == client.report(1)
    own = text_statistics(client.door.truth(client.train), load_tokenizer(tiny["bert"]))
    assert report.statistics == (own if asked else None)


@pytest.mark.parametrize(
    ("owner", "private", "tells"),
    [
        (None, False, True),
        (None, True, False),
        (True, False, True),
        (True, True, True),
        (False, False, False),
        (False, True, False),
    ],
)
def test_the_owner_decides_and_where_nobody_did_privacy(owner, private, tells):
    assert OwnerTerms(statistics=owner).tells_statistics(private=private) == tells


def test_a_device_tells_nothing_until_its_owner_says_so():
    assert OwnerTerms.of(NodeKeys.read({})).statistics is False
    assert OwnerTerms.of(NodeKeys.read({"privacy-statistics": True})).statistics is True
    assert OwnerTerms.of(NodeKeys.read({"privacy-statistics": "true"})).statistics is True
    with pytest.raises(FedloraError, match="privacy-statistics is 'perhaps'; set true or false"):
        NodeKeys.read({"privacy-statistics": "perhaps"})
