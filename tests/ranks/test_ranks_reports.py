from __future__ import annotations

import json
import math

import pytest

from fedlora.errors import ProtocolError
from fedlora.ranks import (
    ChannelState,
    ClientOutcome,
    ClientReport,
    DataStatistics,
    DeviceInfo,
    FedloraError,
)

REPORT = ClientReport(
    ChannelState(None, 3.5, 1e6, 2e6, 3e6, age_s=0.25, derived=True),
    DataStatistics(9.5, 0.4, 1.25, None),
    DeviceInfo(None, 2e9, 0.5),
    budget_bits=1.5e6,
)
OUTCOME = ClientOutcome(
    loss_before=2.25,
    loss_after=2.0,
    delivered=False,
    bits={"up": {"activation": 8, "gradient": 8}, "down": {"adapter": 64}},
    seconds={"down": {"adapter": 0.5}},
    epsilon=1.5,
    sensitivity=(0.5, 0.0),
)


def over_the_wire(table: dict[str, object]) -> object:
    return json.loads(json.dumps(table, allow_nan=False))


@pytest.mark.parametrize("record", [REPORT, ClientReport(), OUTCOME, ClientOutcome()])
def test_a_record_survives_json(record):
    assert type(record).from_dict(over_the_wire(record.to_dict())) == record


def test_what_a_report_leaves_out_is_none():
    assert ClientReport.from_dict({}) == ClientReport()
    assert ClientReport.from_dict({"statistics": {}}).statistics == DataStatistics()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], r"a client report is \[\]; expected a table"),
        ({"snr": 1}, "unknown key 'snr'"),
        ({1: 1}, "unknown key '1'"),
        ({"budget_bits": math.nan}, "budget_bits is nan"),
        ({"budget_bits": math.inf}, "budget_bits is inf"),
        ({"budget_bits": -1}, "budget_bits is -1"),
        ({"budget_bits": "1"}, "budget_bits is '1', a str"),
        ({"budget_bits": True}, "budget_bits is True, a bool"),
        ({"statistics": 3}, "statistics of a client report is 3; expected a table"),
        ({"statistics": {"entropy": 1}}, "statistics of a client report has an unknown key"),
        ({"statistics": {"type_token_ratio": 1.5}}, "type_token_ratio is 1.5"),
        ({"statistics": {"token_surprisal": math.nan}}, "token_surprisal is nan; set a finite"),
        ({"statistics": {"token_surprisal": 65}}, "token_surprisal is 65; .* from 0 to 64"),
        ({"statistics": {"pieces_per_word": 1e9}}, "pieces_per_word is 1000000000.0"),
        ({"statistics": {"mean_length": -1}}, "mean_length is -1"),
        ({"device": {"battery": 80}}, "battery is 80; set a finite number from 0 to 1"),
        ({"channel": {"down_snr_db": 1}}, "a channel state lacks"),
    ],
)
def test_a_report_that_is_not_valid_is_refused_in_one_sentence(table, message):
    with pytest.raises(ProtocolError, match=message):
        ClientReport.from_dict(table)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"loss_after": math.nan}, "loss_after is nan"),
        ({"delivered": "yes"}, "delivered is 'yes'"),
        ({"bits": {"sideways": {}}}, "expected a table with the keys up and down"),
        ({"bits": {"up": 3}}, "bits.up is 3"),
        ({"seconds": {"down": {"adapter": -0.5}}}, "seconds.down.adapter is -0.5"),
        ({"sensitivity": 1.0}, "sensitivity is 1.0"),
        ({"sensitivity": [1.0, None]}, "a sensitivity is None"),
        ({"epsilon": -1}, "epsilon is -1"),
    ],
)
def test_an_outcome_that_is_not_valid_is_refused_in_one_sentence(table, message):
    with pytest.raises(ProtocolError, match=message):
        ClientOutcome.from_dict(table)


def test_a_record_checks_its_values_when_it_is_made():
    with pytest.raises(FedloraError, match="battery is 2"):
        DeviceInfo(battery=2)


def test_the_loss_drop_is_known_only_where_both_losses_are():
    assert OUTCOME.loss_drop == 0.25
    assert ClientOutcome(loss_before=1.0).loss_drop is None
    assert ClientOutcome(loss_after=1.0).loss_drop is None


def test_adapter_bits_are_0_where_none_was_sent():
    assert OUTCOME.adapter_bits == 64
    assert ClientOutcome().adapter_bits == 0
