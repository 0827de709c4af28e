"""summary.json holds every promised key, and its totals are those of the rounds."""

from __future__ import annotations

import importlib.metadata
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

import fedlora
from fedlora.errors import FedloraError
from fedlora.report import Summary
from fedlora.report.records import DIRECTIONS, client_totals
from fedlora.report.rows import headline
from fedlora.report.summary import commit, versions

ALWAYS = {
    "metric_name",
    "higher_is_better",
    "metric",
    "metric_before",
    "loss",
    "rounds",
    "steps",
    "clients",
    "seed",
    "tokens",
    "seconds",
    "tokens_per_second",
    "steps_per_second",
    "bits",
    "air_seconds",
    "late_deliveries",
    "deliveries_due",
    "raw_bits",
    "samples",
    "mean_rank",
    "trainable_parameters",
    "untrained_rounds",
    "resting_components",
    "privacy",
    "peak_rss_server_bytes",
    "peak_rss_edge_bytes",
    "versions",
    "commit",
}


def test_every_key_is_there(finished):
    summary = json.loads(finished.summary.read_text())
    assert set(summary) == ALWAYS | {"wire_bytes", "client_seconds", "energy_joules", "projections"}
    assert set(summary["bits"]["up"]) == {"activation", "gradient", "head", "control"}
    assert set(summary["bits"]["down"]) == {"representation", "adapter", "head", "control"}
    assert {"epsilon", "delta", "adjacency", "covers", "excludes"} <= set(summary["privacy"])


def test_every_key_is_there_for_a_run_that_finished_no_round(make_run):
    summary = make_run([], metric_before=None, privacy=None).read_summary()
    assert set(summary) >= ALWAYS
    assert summary["metric"] is None
    assert summary["mean_rank"] is None
    assert summary["tokens_per_second"] == 0


def test_totals_are_those_of_the_rounds(make_rounds, make_summary):
    rounds = make_rounds()
    summary = make_summary(rounds)
    assert summary.tokens == sum(r["tokens"] for r in rounds)
    assert summary.seconds == pytest.approx(math.fsum(r["seconds"] for r in rounds))
    assert summary.air_seconds == pytest.approx(math.fsum(r["air_seconds"] for r in rounds))
    assert summary.tokens_per_second == pytest.approx(summary.tokens / summary.seconds)
    assert summary.steps == rounds[-1]["step"]
    assert summary.metric == rounds[-1]["metric"]
    for way, kinds in summary.bits.items():
        for kind, bits in kinds.items():
            assert bits == sum(r["bits"][way].get(kind, 0) for r in rounds)
    assert summary.extra["wire_bytes"]["up"] == sum(r["wire_bytes"]["up"] for r in rounds)


def test_metric_is_that_of_the_last_evaluation(make_rounds, make_summary):
    rounds = make_rounds(rounds=3)
    rounds[2] |= {"metric": None, "loss": None}
    assert make_summary(rounds).metric == rounds[1]["metric"]
    assert make_summary(rounds).loss == rounds[1]["loss"]


def test_a_metric_that_ran_away_is_not_told_as_that_of_an_earlier_round(make_rounds, make_summary):
    """``metrics.jsonl`` has null for an infinite perplexity, and the loss that led to it."""
    rounds = make_rounds(rounds=3)
    rounds[2] |= {"metric": None, "loss": 800.0}
    summary = make_summary(rounds)
    assert (summary.metric, summary.loss) == (None, 800.0)
    assert "beyond what a number holds" in headline({**summary.to_dict(), "privacy": None})
    for own in rounds[2]["clients"].values():
        own |= {"metric": None, "loss": 800.0}
    assert {(own.metric, own.loss) for own in client_totals(rounds)} == {(None, 800.0)}


def test_steps_are_those_that_were_taken(make_rounds, make_summary):
    """Of a round whose time was up the last ones are left out, and the next goes on behind them."""
    rounds = make_rounds(rounds=3)
    assert make_summary(rounds).steps == rounds[2]["step"]
    for record, steps in zip(rounds, (20, 7, 20), strict=True):
        record["steps"] = steps
    summary = make_summary(rounds)
    assert summary.steps == 47
    assert summary.steps_per_second == pytest.approx(47 / summary.seconds)


def test_versions_equal_the_installed_metadata_without_importing_the_packages():
    program = (
        "import json, sys\n"
        "from fedlora.report.summary import versions\n"
        "print(json.dumps([versions(), sorted({'torch', 'transformers', 'peft', 'flwr', 'ray',"
        " 'opacus'} & set(sys.modules))]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    found, imported = json.loads(done.stdout)
    assert imported == []
    assert found["torch"] == importlib.metadata.version("torch")
    assert found["fedlora"] == fedlora.__version__
    assert found == versions()


def test_commit_is_that_of_the_checkout():
    root = Path(fedlora.__file__).parents[1]
    if not (root / ".git").exists():
        pytest.skip("not a checkout")
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert (commit() or "").removesuffix("-dirty") == head


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seconds": -1.0}, "seconds is -1.0"),
        ({"seconds": math.nan}, "seconds is nan"),
        (
            {"bits": {"up": dict.fromkeys(DIRECTIONS["up"], 0), "down": {}}},
            r"bits\.down lacks representation, adapter, head, control",
        ),
        ({"privacy": {"epsilon": 3.0}}, "lacks delta, adjacency, covers, excludes"),
        ({"privacy": {}}, "lacks epsilon"),
        ({"extra": {"loss": 1.0}}, "extra holds loss"),
    ],
)
def test_incomplete_or_impossible_summary_is_refused(make_rounds, make_summary, change, message):
    values = vars(make_summary(make_rounds(rounds=1)))
    with pytest.raises(FedloraError, match=message):
        Summary(**{**values, **change})
