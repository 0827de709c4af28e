"""A private scenario that cannot work is refused before anything starts, in one sentence."""

from __future__ import annotations

import pytest

from fedlora.check import check_scenario
from fedlora.config import with_overrides
from fedlora.errors import FedloraError
from fedlora.privacy.statement import Exposure, privacy_statement
from fedlora.scenarios import find_scenario


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["privacy.epsilon=0"], "privacy.epsilon is 0.0; set a finite number above 0"),
        (["privacy.epsilon=-1"], "privacy.epsilon is -1.0"),
        (["privacy.epsilon=1000"], "privacy.epsilon is 1000, which promises nothing"),
        (["privacy.delta=1.5"], "privacy.delta is 1.5"),
        (["privacy.delta=0.01"], "privacy.delta is 0.01 with .* samples; set it below 0.00"),
        (["privacy.clip_norm=0"], "privacy.clip_norm is 0.0; set 1e-09 to"),
        (["privacy.release=words"], "privacy.release"),
        (["head.share=round", "privacy.release=full"], "head.share is round"),
        (["privacy.release=full"], "pay for twice"),
        (["privacy.spread=channel"], "there is nothing to spread"),
    ],
)
def test_a_plan_without_meaning_is_refused(overrides: list[str], reason: str) -> None:
    with pytest.raises(FedloraError, match=reason) as refused:
        check_scenario(with_overrides(find_scenario("quickstart-private"), overrides))
    assert "\n" not in str(refused.value)


def test_noise_that_promises_nothing_is_refused() -> None:
    scenario = with_overrides(find_scenario("quickstart-strict"), ["privacy.sigma=0.05"])
    with pytest.raises(FedloraError, match=r"privacy\.sigma 0\.05 over 1 uploads comes to epsilon"):
        check_scenario(scenario)


def test_the_strict_scenario_holds_the_label_auc_at_0_6() -> None:
    scenario = find_scenario("quickstart-strict")
    check_scenario(scenario)
    policy = scenario.privacy
    assert policy.sigma is not None
    block = privacy_statement(policy, 2 / policy.sigma**2, policy.sigma, Exposure(head="public"))
    assert 0.5 < block["label_auc_bound"] <= 0.6
    assert block["epsilon"] < 1.6
