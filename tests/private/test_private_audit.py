"""The audit sees what the server sees: without noise it wins, with noise it stays in its bound."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from private_federation import scenario

from fedlora.errors import FedloraError
from fedlora.privacy.policy import PrivacyPolicy
from simulations.audit import attacks
from simulations.audit.command import audit_scenario
from simulations.audit.plot import draw
from simulations.audit.tap import observe


def test_without_noise_labels_and_tokens_are_recovered(records: Path) -> None:
    config = replace(scenario(records, "train.steps=4"), privacy=PrivacyPolicy())
    observed = observe(config)
    assert len(observed.uploads) == 2 * 2 * 4
    found = attacks.attack_labels(attacks.two_classes(observed.uploads), PrivacyPolicy())
    assert found["likelihood"]["auc"] > 0.95
    assert attacks.recover(observed)["token_accuracy"] > 0.99


@pytest.mark.parametrize("release", ["full", "row_space", "logits"])
def test_over_sigma_the_best_label_attack_follows_its_bound(records: Path, release: str) -> None:
    torch.manual_seed(0)
    config = replace(scenario(records, "train.steps=4"), privacy=PrivacyPolicy())
    exact = attacks.two_classes(observe(config).uploads)
    curve = attacks.label_auc_over_sigma(exact, release, clip_norm=0.001)
    for point in curve:
        assert point["low"] - 0.03 < point["bound"]
    assert curve[0]["auc"] > 0.99
    strict = next(point for point in curve if point["sigma"] == 5.6)
    assert strict["bound"] < 0.6


@pytest.mark.parametrize("release", ["full", "row_space", "logits"])
def test_the_audit_of_a_private_run_reports_both_sides(
    records: Path, tmp_path: Path, release: str
) -> None:
    result = audit_scenario(scenario(records, f"privacy.release={release}"), steps=4)
    assert result["passed"]
    assert result["without_noise"]["label"]["likelihood"]["auc"] > 0.95
    assert result["with_noise"]["label"]["likelihood"]["low"] <= result["label_auc_bound"]
    assert result["with_noise"]["token"]["token_accuracy"] > 0.99  # activations are not covered
    for found in result["mechanism"]:
        assert 0 < found["epsilon_lower_bound"] <= found["epsilon_one_upload"]
    assert json.loads(json.dumps(result)) == result
    assert draw(result, tmp_path / "audit.png").stat().st_size > 5000


def test_noised_activations_hide_tokens(records: Path) -> None:
    observed = observe(scenario(records, "privacy.activation_sigma=5.0"))
    assert attacks.recover(observed)["token_accuracy"] < 0.1


def test_a_task_without_labels_is_refused(records: Path) -> None:
    config = scenario(records)
    config = replace(config, task=replace(config.task, kind="causal_lm"))
    with pytest.raises(FedloraError, match="causal_lm"):
        audit_scenario(config, steps=4)
