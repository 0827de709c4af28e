"""A deployment whose scenario says nothing of a channel reckons with no radio."""

from __future__ import annotations

import dataclasses

import pytest
from support.federation import Federation, scenario

from fedlora.config import ChannelConfig, DataConfig, Scenario, scenario_from_toml
from fedlora.report import Summary, result_rows
from fedlora.report.records import client_totals
from fedlora.report.rows import client_table, headline
from fedlora.server.flower.run import resolved

FACTS = {"metric_name": "accuracy", "higher_is_better": True, "clients": 3, "seed": 0}


def summary_of(rounds: list) -> dict:
    return Summary.from_rounds(rounds, trainable_parameters=1, **FACTS).to_dict()


@pytest.mark.parametrize("strategy", ["uniform", "greedy", "random", "importance", "bandit"])
def test_without_a_radio_bits_are_booked_and_nothing_is_told_of_the_air(tiny, records, strategy):
    federation = Federation(scenario(tiny["gpt2"], records, f"ranks.strategy={strategy}"))
    federation.server.air.radio = False
    rounds = federation.run().recorder.rounds
    assert rounds
    for record in rounds:
        assert sum(record["bits"]["up"].values()) > 0
        assert not {"air_seconds", "energy_joules", "late_deliveries"} & record.keys()
        for own in record["clients"].values():
            assert own["snr_db"] is own["rate_bps"] is None
            assert not {"air_seconds", "energy_joules"} & own.keys()
    names = [name for group in result_rows(summary_of(rounds)) for name, _, _ in group]
    assert not {"air time", "energy", "late deliveries"} & set(names)
    header, _ = client_table(client_totals(rounds), "accuracy", wide=True)
    assert not [name for name in header if name.startswith(("SNR", "energy", "in"))]


def test_the_resolved_scenario_of_a_deployment_names_no_data_and_no_radio_that_nobody_used():
    plain = Scenario(name="mine")
    text = resolved(plain, deployed=True)
    assert "[data]" not in text
    assert "[channel" not in text
    assert scenario_from_toml(text) == plain
    own = dataclasses.replace(
        plain, data=DataConfig(train="/mine.csv"), channel=ChannelConfig(model="rayleigh")
    )
    for other, deployed in ((own, True), (plain, False)):
        text = resolved(other, deployed=deployed)
        assert "[data]" in text
        assert "[channel]" in text
        assert scenario_from_toml(text) == other


@pytest.mark.parametrize(("late", "said"), [(48, True), (40, True), (20, False), (0, False)])
def test_a_channel_that_lets_hardly_any_adapter_through_is_said_with_what_helps(late, said):
    clients = [{str(c): {"delivered": 8 * r + c >= late} for c in range(8)} for r in range(6)]
    late_in = [sum(not own["delivered"] for own in row.values()) for row in clients]
    rounds = [
        {"round": n + 1, "metric": 0.2, "late_deliveries": late_in[n], "clients": clients[n]}
        for n in range(6)
    ]
    text = headline(summary_of(rounds))
    assert ("of 48 adapters arrived within channel.deadline_s" in text) == said
    assert not said or f"Only {48 - late} of 48" in text
