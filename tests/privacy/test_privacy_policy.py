from __future__ import annotations

import math

import pytest

from fedlora.config import (
    ClientLimit,
    NodeKeys,
    PrivacyPolicy,
    Scenario,
    scenario_from_toml,
    scenario_to_toml,
    with_overrides,
)
from fedlora.errors import FedloraError
from fedlora.privacy.plan import check_samples


def test_privacy_is_off_unless_epsilon_or_sigma_is_set() -> None:
    assert not PrivacyPolicy().enabled
    assert PrivacyPolicy(epsilon=8.0).enabled
    assert PrivacyPolicy(sigma=5.6).enabled


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epsilon": 0.0}, r"privacy\.epsilon is 0\.0; set"),
        ({"epsilon": -1.0}, r"privacy\.epsilon is -1\.0; set"),
        ({"epsilon": 1e3}, r"privacy\.epsilon is 1000, which promises nothing; set at most 50"),
        ({"epsilon": math.nan}, r"privacy\.epsilon is nan; set"),
        ({"sigma": 0.0}, r"privacy\.sigma is 0\.0; set"),
        ({"epsilon": 8.0, "sigma": 1.0}, "set one"),
        ({"epsilon": 8.0, "delta": 0.0}, r"privacy\.delta is 0\.0; set"),
        ({"epsilon": 8.0, "delta": 1.0}, r"privacy\.delta is 1\.0; set"),
        ({"epsilon": 8.0, "clip_norm": 0.0}, r"privacy\.clip_norm is 0\.0; set"),
        ({"epsilon": 8.0, "clip_norm": math.inf}, r"privacy\.clip_norm is inf; set"),
        ({"epsilon": 8.0, "unit": "row"}, r"privacy\.unit is 'row'; set sample or token"),
        ({"epsilon": 8.0, "uploads": -1}, r"privacy\.uploads is -1; set"),
        (
            {"epsilon": 8.0, "uploads": 10**400},
            r"privacy\.uploads is 10+\.\.\.0+; set 0 for .*, or 1 to 1000000000",
        ),
        ({"sigma": 1e308}, r"privacy\.sigma is 1e\+308; set 1e-06 to 1e\+06"),
        (
            {"epsilon": 8.0, "activation_sigma": 1e-320},
            r"privacy\.activation_sigma is .*; set 1e-06 to",
        ),
        ({"activation_sigma": 2.0}, r"privacy\.activation_sigma is 2\.0 but gradients"),
        ({"epsilon": 8.0, "activation_clip_norm": 0.0}, r"activation_clip_norm is 0\.0; set"),
    ],
)
def test_a_wrong_value_is_refused_in_one_sentence(values: dict, message: str) -> None:
    with pytest.raises(FedloraError, match=message) as error:
        PrivacyPolicy(**values)
    assert "\n" not in str(error.value)


def test_delta_has_to_stay_below_one_over_the_samples() -> None:
    policy = PrivacyPolicy(epsilon=8.0, delta=1e-3)
    check_samples(policy, 999)
    with pytest.raises(FedloraError, match=r"delta is 0\.001 with 1000 samples; set it below"):
        check_samples(policy, 1000)


def test_the_section_survives_toml_and_overrides() -> None:
    scenario = with_overrides(Scenario(), ["privacy.epsilon=8", "privacy.unit=token"])
    assert scenario.privacy == PrivacyPolicy(epsilon=8.0, unit="token")
    assert scenario_from_toml(scenario_to_toml(scenario)) == scenario


def test_a_limit_is_read_from_node_config_as_numbers_or_text() -> None:
    assert NodeKeys.read({"partition-id": 3}).limit is None
    own = {"model": "package"}
    keys = NodeKeys.read({"privacy-epsilon": "4", "privacy-min-sigma": 2, **own})
    assert keys.limit == ClientLimit(epsilon=4.0, min_sigma=2.0)
    keys = NodeKeys.read({"privacy-epsilon": 4, "privacy-tight": "true", **own})
    assert keys.limit == ClientLimit(epsilon=4.0, tight=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"privacy-epsilon": "much"}, "privacy-epsilon is 'much'; set a number"),
        ({"privacy-epsilon": -1}, "privacy-epsilon is -1"),
        ({"privacy-delta": 1e-5}, "no privacy-epsilon"),
        ({"privacy-epsilon": 4, "privacy-delta": 1}, "privacy-delta is 1"),
        ({"privacy-epsilon": 4, "privacy-min-sigma": -2}, "privacy-min-sigma is -2"),
        ({"privacy-epsilon": 4, "privacy-tight": "yes"}, "privacy-tight is 'yes'; set true"),
    ],
)
def test_a_wrong_limit_is_refused_in_one_sentence(config: dict, message: str) -> None:
    with pytest.raises(FedloraError, match=message):
        NodeKeys.read(config)
