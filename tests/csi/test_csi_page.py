"""``docs/csi.md`` says what the committed rows say, and bytes are planned as they are sent."""

from __future__ import annotations

import json

import pytest
from support.house import ROOT

from fedlora.config import load_scenario
from fedlora.errors import FedloraError
from fedlora.scenarios import find_scenario
from simulations.csi.air import main, over_raw, raw_bytes, trained_samples
from simulations.csi.tables import FOLDER, PAGE, SETTINGS, read_rows, tables
from simulations.csi.trial import SPLIT
from simulations.studies.kit.pages import rewritten


def test_the_page_says_what_the_committed_rows_say():
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    assert rewritten(text, tables()) == text
    assert all(f"<!-- table {name} -->" in text for name in tables())
    changed = text.replace("no training |", "some training |")
    assert rewritten(changed, tables()) == text != changed


def test_bytes_are_planned_as_the_committed_runs_sent_them():
    scenario = load_scenario(FOLDER / SETTINGS[0] / "scenario.toml")
    planned = over_raw(scenario)
    raw = raw_bytes(scenario, trained_samples(scenario))
    assert raw == 4000 * 16 * 48 * 4
    runs = [
        r for r in read_rows(SETTINGS[0]) if (r.model, r.how, r.sites) == (SPLIT, "federated", 10)
    ]
    assert len(runs) == 3
    for row in runs:
        assert sum(planned.values()) == pytest.approx(
            row.bytes / raw, rel=0.03
        )  # Gaussian levels are planned
        assert row.bytes < raw  # at most the raw CSI's
        for kind in ("up gradient", "down representation", "up head"):
            assert planned[kind] == pytest.approx(row.bytes_by_kind[kind] / raw, rel=0.07)


def test_the_module_prints_each_kind_and_their_sum(capsys):
    main(["--set", "train.rounds=1"])
    *kinds, last = capsys.readouterr().out.splitlines()
    shares = [float(line.split()[0]) for line in kinds]
    assert last.endswith("  all") and sum(shares) == pytest.approx(
        float(last.split()[0]), abs=0.005
    )
    assert json.dumps(kinds).count("down representation") == 1


def test_a_scenario_without_histories_is_refused():
    with pytest.raises(FedloraError, match=r"task\.kind is classification, which has no histories"):
        over_raw(find_scenario("quickstart"))
