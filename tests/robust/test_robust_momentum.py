"""A client's momentum: what it is, what it forgets, and what it lets an average see."""

from __future__ import annotations

import pytest
import torch

from fedlora.config import RobustConfig
from fedlora.errors import FedloraError
from fedlora.robust.aggregation import create_average, robust_mean
from fedlora.robust.base import Block
from fedlora.robust.momentum import ClientMomentum

CLIENTS, COMPONENTS, WIDTH = 7, 3, 40
EVERYWHERE = torch.ones(CLIENTS, COMPONENTS, dtype=torch.bool)
NAMES = [str(k) for k in range(CLIENTS)]


def gradients(step: int, *, spread: float = 1.0) -> torch.Tensor:
    """Honest gradients: the same direction for all, and noise of each step and client."""
    noise = torch.randn(
        CLIENTS, COMPONENTS, WIDTH, generator=torch.Generator().manual_seed(100 + step)
    )
    return 1.0 + spread * noise


def test_it_is_adams_first_moment_without_its_bias():
    momentum, beta = ClientMomentum(0.75), 0.75
    total, weight = torch.zeros(CLIENTS, COMPONENTS, WIDTH), 0.0
    for step in range(6):
        given = gradients(step)
        total, weight = beta * total + given, beta * weight + 1
        [found] = momentum.blend(NAMES, [Block(given, EVERYWHERE)])
        torch.testing.assert_close(found.values, total / weight)


def test_without_momentum_each_step_stands_alone():
    momentum = ClientMomentum(0.0)
    for step in range(3):
        given = Block(gradients(step), EVERYWHERE)
        assert momentum.blend(NAMES, [given]) == [given]
    assert momentum.state_dict() == {}


def test_a_component_or_client_that_sits_out_keeps_its_average():
    momentum = ClientMomentum(0.5)
    fewer = EVERYWHERE.clone()
    fewer[2, 1] = False
    first, between, last = gradients(0), gradients(1), gradients(2)
    momentum.blend(NAMES, [Block(first, EVERYWHERE)])
    masked = torch.where(fewer[:, :, None], between, 0.0)
    [found] = momentum.blend(NAMES[:6], [Block(masked[:6], fewer[:6])])
    assert not found.values[2, 1].any()
    assert torch.equal(found.present, fewer[:6])
    [found] = momentum.blend(NAMES, [Block(last, EVERYWHERE)])
    torch.testing.assert_close(found.values[2, 1], (1 / 3) * first[2, 1] + (2 / 3) * last[2, 1])
    torch.testing.assert_close(found.values[6], (1 / 3) * first[6] + (2 / 3) * last[6])


def test_what_is_not_finite_is_left_out_of_one_step_and_not_remembered():
    momentum = ClientMomentum(0.5)
    momentum.blend(NAMES, [Block(gradients(0), EVERYWHERE)])
    broken = gradients(1)
    broken[3, 0, 5] = torch.nan
    average = create_average(RobustConfig(average="median"))
    assert average is not None
    blended = momentum.blend(NAMES, [Block(broken, EVERYWHERE)])
    [mean], _ = robust_mean(average, blended, torch.ones(CLIENTS))
    assert mean.isfinite().all()
    [found] = momentum.blend(NAMES, [Block(gradients(2), EVERYWHERE)])
    torch.testing.assert_close(
        found.values[3], (1 / 3) * gradients(0)[3] + (2 / 3) * gradients(2)[3]
    )


@pytest.mark.parametrize("name", ["median", "trimmed_mean"])
def test_a_gradient_that_is_merely_turned_round_moves_the_average_less(name):
    """The distance from the honest mean, over steps whose noise is three times the signal."""
    average = create_average(RobustConfig(average=name))
    assert average is not None
    errors = []
    for beta in (0.0, 0.9):
        momentum, error = ClientMomentum(beta), 0.0
        for step in range(60):
            given = gradients(step, spread=3.0)
            given[0] *= -1
            blended = momentum.blend(NAMES, [Block(given, EVERYWHERE)])
            [mean], _ = robust_mean(average, blended, torch.ones(CLIENTS))
            if step >= 20:
                honest = blended[0].values[1:].mean(0)
                error += float((mean - honest).norm() / honest.norm())
        errors.append(error)
    assert errors[1] < 0.6 * errors[0]


def test_its_state_goes_through_a_checkpoint():
    kept, taken_up = ClientMomentum(0.9), ClientMomentum(0.9)
    kept.blend(NAMES, [Block(gradients(0), EVERYWHERE)])
    taken_up.load_state_dict(kept.state_dict())
    block = Block(gradients(1), EVERYWHERE)
    [expected], [found] = kept.blend(NAMES, [block]), taken_up.blend(NAMES, [block])
    assert torch.equal(expected.values, found.values)


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_a_momentum_that_is_none_is_refused(value):
    with pytest.raises(FedloraError, match=r"robust.momentum is .*; set 0 to 0.9999"):
        RobustConfig(average="median", momentum=value)
