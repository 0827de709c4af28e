"""One of eight clients is hostile: the adapter is ruined without a robust average, not with one."""

from __future__ import annotations

import pytest
import torch
from support.poisoned import outcome

ALLOWED = 0.03
"""How much of the metric a hostile client may cost."""


def test_flipped_gradients_ruin_the_mean_and_not_the_median():
    clean = outcome("").metric
    assert clean > 0.5
    assert outcome("flipped").metric < clean - 0.3
    median = outcome("flipped", "robust.average=median")
    assert not median.lost  # nobody is told apart by anything but its gradients
    assert median.metric > clean - ALLOWED
    assert all(torch.isfinite(factor).all() for factor in median.adapter.values())


@pytest.mark.slow
@pytest.mark.parametrize("poison", ["huge", "flipped", "random"])
@pytest.mark.parametrize("average", ["median", "trimmed_mean", "norm_filter"])
def test_no_poison_ruins_any_robust_average(average, poison):
    assert outcome(poison, f"robust.average={average}").metric > outcome("").metric - ALLOWED


@pytest.mark.slow
@pytest.mark.parametrize("average", ["median", "trimmed_mean", "norm_filter"])
def test_robust_average_costs_unlike_honest_clients_little(average):
    unlike = ("partition.kind=dirichlet", "partition.alpha=0.5")
    robust = outcome("", f"robust.average={average}", *unlike)
    assert robust.metric > outcome("", *unlike).metric - ALLOWED
