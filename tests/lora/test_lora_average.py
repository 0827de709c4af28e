"""A component's gradient is averaged over those who trained it."""

from __future__ import annotations

import torch
from support.lora_factors import factors, set_random_gradients

from fedlora.lora.average import ContributionCount, average_gradients


def test_each_component_is_divided_by_its_contributors_weight():
    projections = factors()
    set_random_gradients(projections, 0)
    sums = [(p.A.grad.clone(), p.B.grad.clone()) for p in projections]
    count = ContributionCount(2, 3)
    count.add([1, 3], 4.0)
    count.add([0, 2], 10.0)
    count.add([2, 0], 5.0)
    count.add([1, 3], 0.5)
    weights = [[9.5, 5.0, 0.0], [14.5, 14.5, 4.5]]
    active = average_gradients(projections, count)
    assert active.tolist() == [[True, True, False], [True, True, True]]
    for projection, (A, B), own in zip(projections, sums, weights, strict=True):
        for j, weight in enumerate(own):
            torch.testing.assert_close(projection.A.grad[j], A[j] / (weight or 1.0))
            torch.testing.assert_close(projection.B.grad[:, j], B[:, j] / (weight or 1.0))


def test_nobody_means_nothing_is_active():
    projections = factors()
    active = average_gradients(projections, ContributionCount(2, 3))
    assert not active.any()
    assert projections[0].A.grad is None
