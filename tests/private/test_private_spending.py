"""What the server states of clients that left, from its checkpoint too: never too little."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.private_federation import scenario

from fedlora.link import Frame
from fedlora.privacy.accounting import rdp_epsilon
from fedlora.server.exchange.spending import Spending

SPENT, PLANNED, SIGMA = 0.01, 0.08, 8.0
ROWS = (40, 12)


def joined(records: Path) -> Spending:
    """Return what a server knows of two clients, of which each has uploaded once."""
    spending = Spending(scenario(records))
    figures = {"rho": SPENT, "sigma": SIGMA, "sigma_now": SIGMA}
    for client in "01":
        hello = {"rho_planned": PLANNED, "label_epsilon": 0.5 * int(client)}
        spending.note_plan(client, Frame("hello", client, fields=hello))
        spending.note(client, Frame("gradient", client, fields=figures))
    spending.note_rows(ROWS)
    return spending


@pytest.mark.parametrize("resumed", [False, True])
def test_a_client_that_is_gone_counts_with_what_it_planned(records: Path, resumed: bool) -> None:
    """In a server that was resumed without it, too, which nobody there has lost."""
    spending = joined(records)
    if resumed:
        state = json.loads(json.dumps(spending.state_dict()))
        spending = Spending(scenario(records))
        spending.load_state_dict(state)
    here, gone = spending.statement(["0", "1"]), spending.statement(["0"])
    assert here is not None and gone is not None
    assert here["epsilon"] == pytest.approx(rdp_epsilon(SPENT, 1e-5))
    assert gone["epsilon"] == pytest.approx(rdp_epsilon(PLANNED, 1e-5) + 0.5)


def test_the_sampling_rate_is_that_of_the_smallest_client_in_a_resumed_run_too(
    records: Path,
) -> None:
    config = scenario(records, "privacy.release=row_space")
    state = json.loads(json.dumps(joined(records).state_dict()))
    resumed = Spending(config)
    resumed.note_rows(ROWS[:1])  # the smallest is not back
    resumed.load_state_dict(state)
    block = resumed.statement(["0", "1"])
    assert block is not None
    assert block["adapter"]["sample_rate"] == config.train.batch_size / ROWS[1]
