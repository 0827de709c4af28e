"""The study of repeated noise: one noise a sample, or one each time it goes up, at one epsilon."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from dp_accounting import GaussianDpEvent
from dp_accounting.rdp import RdpAccountant
from PIL import Image
from support.private_federation import scenario, write_records

from clients.owner import Private
from fedlora.config import with_overrides
from fedlora.privacy.accounting import calibrate_sigma
from fedlora.storage.files import append_line
from simulations.noisy_activations import NoisyActivations
from simulations.studies.utility import repeated
from simulations.studies.utility.repeated import AnewActivations, Trial, run_trial, sigma_of


def test_once_repeats_and_anew_does_not():
    packed, lengths, samples = Private(torch.zeros(3, 8)), [1, 2], [4, 5]
    once, anew = NoisyActivations(1.0, 1.0), AnewActivations(1.0, 1.0)
    assert torch.equal(*(once.activation(packed, lengths, samples).value for _ in range(2)))
    assert not torch.equal(*(anew.activation(packed, lengths, samples).value for _ in range(2)))


def test_both_spend_one_epsilon_and_differ_by_the_root_of_the_times():
    assert sigma_of(8.0, 9) == pytest.approx(calibrate_sigma(8.0, 1e-5, 9), rel=1e-6)
    for epsilon in (8.0, 100.0, 10_000.0):
        assert sigma_of(epsilon, 9) == pytest.approx(3 * sigma_of(epsilon, 1))
        accountant = RdpAccountant(orders=[1 + 10**place for place in np.arange(-3, 3, 0.01)])
        accountant.compose(GaussianDpEvent(sigma_of(epsilon, 9) / 2), 9)  # replace-one
        assert 0.95 * epsilon < accountant.get_epsilon(1e-5) < (1 + 1e-6) * epsilon


def test_a_trial_of_each_way_is_run(tmp_path: Path):
    base = scenario(write_records(tmp_path / "rows.csv", 24), "train.rounds=1")
    base = with_overrides(base, ["privacy.epsilon=none", "privacy.sigma=none"])
    rows = [run_trial(Trial(way, 1000.0, 0), base) for way in ("once", "anew")]
    assert [row["way"] for row in rows] == ["once", "anew"]
    assert rows[0]["sent"] == 1 and all(0 <= row["metric"] <= 1 for row in rows)
    assert math.isfinite(rows[1]["metric"])


def test_what_is_there_is_drawn_without_a_run_more(tmp_path, monkeypatch):
    rows = [{"way": "exact", "epsilon": None, "seed": 0, "sent": 1, "metric": 0.9}]
    for way, metric in (("once", 0.8), ("anew", 0.6)):
        for seed in range(2):
            row = {"way": way, "epsilon": 100.0, "seed": seed, "sent": 5, "metric": metric}
            rows.append(row | {"epsilon": 1000.0})
            rows.append(row)
    for row in rows:
        append_line(tmp_path / "repeated.jsonl", row, sync=False)
    monkeypatch.setattr(repeated, "run_trial", None)
    repeated.main("quickstart", tmp_path, None, 0, 1)
    assert Image.open(tmp_path / "repeated.png").size[0] > 500
