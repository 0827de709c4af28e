from __future__ import annotations

import json
import math

import pytest

from fedlora.config import PrivacyPolicy
from fedlora.errors import FedloraError
from fedlora.privacy.accounting import (
    SampledAccountant,
    calibrate_sigma,
    exact_epsilon,
    gradient_sigma,
    rdp_epsilon,
)
from fedlora.privacy.accounting.rdp import rho
from fedlora.privacy.statement import (
    ACTIVATIONS,
    CARRIED,
    PERSONAL_HEAD,
    Exposure,
    Sampling,
    privacy_statement,
)
from fedlora.report.summary import PRIVACY_KEYS

UPLOADS = 3
SIGMA = calibrate_sigma(8.0, 1e-5, UPLOADS)
POLICY = PrivacyPolicy(epsilon=8.0)
PUBLIC = Exposure(head="public")


def state(policy: PrivacyPolicy = POLICY, exposure: Exposure = PUBLIC, **more: object) -> dict:
    return privacy_statement(policy, UPLOADS * rho(SIGMA), SIGMA, exposure=exposure, **more)


def test_the_headline_is_replace_one_with_zero_out_beside_it() -> None:
    block = state()
    assert set(PRIVACY_KEYS) <= set(block)
    assert block["epsilon"] == pytest.approx(8.0, rel=1e-6)
    assert block["adjacency"].startswith("replace-one")
    assert block["epsilon_exact"] == pytest.approx(exact_epsilon(UPLOADS * rho(SIGMA), 1e-5))
    zero_out = UPLOADS * rho(SIGMA, "zero_out")
    assert block["zero_out"]["epsilon"] == pytest.approx(rdp_epsilon(zero_out, 1e-5))
    assert block["zero_out"]["epsilon"] < block["epsilon_exact"] < block["epsilon"]
    assert block["guarantee"]


def test_what_leaves_unprotected_is_named() -> None:
    excluded = " ".join(state()["excludes"])
    assert ACTIVATIONS in excluded
    assert PERSONAL_HEAD not in excluded
    assert "Losses" not in excluded
    exposure = Exposure(head="shared", embedding=True, losses=True, statistics=True)
    excluded = " ".join(state(exposure=exposure)["excludes"])
    for part in (PERSONAL_HEAD, "leaves the client", "embeddings", "Losses", "Statistics"):
        assert part in excluded
    assert PERSONAL_HEAD in state(exposure=Exposure(head="personal"))["excludes"]


def test_noised_activations_move_to_what_is_covered() -> None:
    block = state(PrivacyPolicy(epsilon=8.0, activation_sigma=4.0))
    assert ACTIVATIONS not in block["excludes"]
    assert any("activations" in text for text in block["covers"])


def test_a_token_unit_says_that_texts_are_protected_less() -> None:
    block = state(PrivacyPolicy(epsilon=8.0, unit="token"))
    assert "single token" in block["covers"][0]
    assert any("longer" in text for text in block["excludes"])


def test_an_insecure_seed_takes_every_guarantee_away() -> None:
    block = state(
        PrivacyPolicy(epsilon=8.0, insecure_noise_seed=1), sampling=Sampling(rate=0.1, steps=5)
    )
    assert not block["guarantee"]
    assert block["epsilon"] is block["epsilon_exact"] is block["zero_out"]["epsilon"] is None
    assert "insecure_noise_seed 1" in block["warning"]
    assert "adapter" not in block


def test_the_adapter_has_an_epsilon_only_where_all_that_it_is_computed_from_is_covered() -> None:
    noised = PrivacyPolicy(epsilon=8.0, activation_sigma=4.0)
    whole = state(noised)["adapter"]
    assert whole["epsilon"] == pytest.approx(8.0, rel=1e-6)
    assert "against anybody" in whole["meaning"]
    for policy, exposure in (
        (POLICY, PUBLIC),
        (noised, Exposure(head="public", embedding=True)),
    ):
        labels = state(policy, exposure)["adapter"]
        assert labels["epsilon"] is None
        assert labels["epsilon_of_labels"] == pytest.approx(8.0, rel=1e-6)
        assert "given the texts" in labels["meaning"]
        assert "activations" in labels["meaning"] and "no noise covers" in labels["meaning"]
    for head in ("personal", "shared"):
        none = state(noised, Exposure(head=head), sampling=Sampling(rate=0.1, steps=5))["adapter"]
        assert none["epsilon"] is None and "No epsilon" in none["meaning"]
        assert not {"epsilon_of_labels", "epsilon_sampled"} & set(none)


def test_randomised_labels_count_in_what_is_said_of_the_adapter() -> None:
    policy = PrivacyPolicy(epsilon=8.0, release="labels", activation_sigma=4.0)
    block = privacy_statement(policy, rho(4.0), None, PUBLIC, label_epsilon=3.0, classes=3)
    assert block["adapter"]["epsilon"] == block["epsilon"]
    assert block["epsilon"] == pytest.approx(3.0 + rdp_epsilon(rho(4.0), 1e-5))


def test_an_adapter_of_exact_activations_is_not_called_covered() -> None:
    assert CARRIED in state()["excludes"]
    assert CARRIED not in state(PrivacyPolicy(epsilon=8.0, activation_sigma=4.0))["excludes"]
    assert not any(text.startswith("Whatever is computed") for text in state()["covers"])


def test_sampling_is_stated_beside_the_local_epsilon_and_not_as_a_guarantee() -> None:
    adapter = state(sampling=Sampling(rate=0.01, steps=300))["adapter"]
    accountant = SampledAccountant()
    accountant.step(SIGMA, 0.01, 300)
    local = adapter["epsilon_of_labels"]
    assert local == pytest.approx(8.0, rel=1e-6)
    assert adapter["epsilon_sampled"] == accountant.rdp_epsilon(1e-5) < local
    assert adapter["epsilon_sampled_prv"] <= adapter["epsilon_sampled"]
    assert "no guarantee" in adapter["sampled_meaning"]


def test_the_block_is_json() -> None:
    block = state(sampling=Sampling(rate=0.01, steps=300))
    assert json.loads(json.dumps(block, allow_nan=False)) == block
    infinite = privacy_statement(POLICY, math.inf, SIGMA, exposure=PUBLIC)
    json.dumps(infinite, allow_nan=False)


def test_nothing_is_stated_where_nothing_is_protected() -> None:
    with pytest.raises(FedloraError, match="privacy is off"):
        privacy_statement(PrivacyPolicy(), 1.0, 1.0, exposure=PUBLIC)
    with pytest.raises(FedloraError, match="state nothing"):
        privacy_statement(POLICY, math.nan, 1.0, exposure=PUBLIC)


@pytest.mark.parametrize("tight", [True, False])
@pytest.mark.parametrize("uploads", [1, 12, 300])
def test_a_run_that_spends_its_plan_tells_the_epsilon_that_it_was_planned_for(
    tight: bool, uploads: int
) -> None:
    policy = PrivacyPolicy(epsilon=8.0, tight=tight)
    sigma = gradient_sigma(policy, uploads)
    block = privacy_statement(policy, uploads * rho(sigma), sigma, PUBLIC)
    assert block["epsilon"] == pytest.approx(8.0, rel=1e-6) and block["epsilon"] <= 8.0
    assert block["adapter"]["epsilon_of_labels"] == block["epsilon"]
