"""The optimiser is torch's AdamW where every component trains, and leaves the others alone."""

from __future__ import annotations

import pytest
import torch
from support.lora_factors import SIZES, factors, set_random_gradients, values

from fedlora.errors import FedloraError
from fedlora.lora.adamw import ComponentAdamW, clip_global_norm

ALL = torch.ones(len(SIZES), 3, dtype=torch.bool)
SOME = torch.tensor([[True, True, False], [False, False, False]])


def moments(optimizer: ComponentAdamW) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in optimizer.state_dict().items()}


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_all_components_active_is_torch_adamw(weight_decay):
    ours, theirs = factors(), factors()
    optimizer = ComponentAdamW(ours, weight_decay)
    reference = torch.optim.AdamW(
        [f for p in theirs for f in (p.A, p.B)], weight_decay=weight_decay
    )
    for step in range(20):
        rate = 0.1 / (1 + step)
        set_random_gradients(ours, step)
        set_random_gradients(theirs, step)
        optimizer.step(rate, ALL)
        reference.param_groups[0]["lr"] = rate
        reference.step()
    for mine, other in zip(values(ours), values(theirs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_untouched_components_keep_weights_moments_and_counters():
    projections = factors()
    optimizer = ComponentAdamW(projections, weight_decay=0.3)
    for step in range(3):  # momentum that would carry every component on
        set_random_gradients(projections, step)
        optimizer.step(0.1, ALL)
    weights, state = values(projections), moments(optimizer)
    for step in range(3, 9):
        set_random_gradients(projections, step)
        optimizer.step(0.1, SOME)
    after, new_state = values(projections), moments(optimizer)
    assert torch.equal(after[0][2], weights[0][2])
    assert torch.equal(after[1][:, 2], weights[1][:, 2])
    assert torch.equal(after[2], weights[2])
    assert torch.equal(after[3], weights[3])
    for name, tensor in state.items():
        if name == "steps":
            assert tensor.tolist() == [[3, 3, 3], [3, 3, 3]]
            assert new_state[name].tolist() == [[9, 9, 3], [3, 3, 3]]
        elif int(name.partition(".")[0]) < 2:  # both factors' moments hold a component in a row
            assert torch.equal(tensor[2], new_state[name][2])
            assert not torch.equal(tensor[:2], new_state[name][:2])
        else:
            assert torch.equal(tensor, new_state[name])


def test_component_that_starts_late_is_corrected_from_its_own_first_step():
    """The oracle gives the late component an AdamW of its own, which starts when it does."""
    projections = factors()
    optimizer = ComponentAdamW(projections)
    late = torch.nn.Parameter(projections[0].A[2].detach().clone())
    reference = torch.optim.AdamW([late], lr=0.1, weight_decay=0.0)
    for step in range(8):
        set_random_gradients(projections, step)
        if step >= 5:
            late.grad = projections[0].A.grad[2].clone()
            reference.step()
        optimizer.step(0.1, ALL if step >= 5 else SOME)
    torch.testing.assert_close(projections[0].A[2], late, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("row", [1, 1 << 18], ids=["a row for each", "one row"])
def test_each_component_steps_as_an_adamw_of_its_own_that_sees_its_steps_alone(row, monkeypatch):
    monkeypatch.setattr("fedlora.lora.adamw._ROW", row)
    projections, draws = factors(), torch.Generator().manual_seed(8)
    optimizer = ComponentAdamW(projections, weight_decay=0.3)
    own = {
        (p, j): [torch.nn.Parameter(f.detach().clone()) for f in (ours.A[j], ours.B[:, j])]
        for p, ours in enumerate(projections)
        for j in range(3)
    }
    references = {
        key: torch.optim.AdamW(both, lr=0.1, weight_decay=0.3) for key, both in own.items()
    }
    for step in range(12):
        active = torch.rand(len(SIZES), 3, generator=draws) < 0.6
        set_random_gradients(projections, step)
        for (p, j), (a, b) in own.items():
            if active[p, j]:
                a.grad = projections[p].A.grad[j].clone()
                b.grad = projections[p].B.grad[:, j].clone()
                references[p, j].step()
        optimizer.step(0.1, active)
    for (p, j), (a, b) in own.items():
        torch.testing.assert_close(projections[p].A[j], a, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(projections[p].B[:, j], b, rtol=1e-5, atol=1e-6)


def test_projections_that_step_together_step_as_each_by_itself():
    together, alone = factors(), factors()
    first, second = ComponentAdamW(together, 0.1), ComponentAdamW(alone, 0.1)
    second._is_plain = lambda index: False
    for step, active in enumerate([ALL, SOME, ALL, ALL]):  # after SOME, counts differ in one alone
        set_random_gradients(together, step)
        set_random_gradients(alone, step)
        first.step(0.1, active)
        second.step(0.1, active)
    for mine, other in zip(values(together), values(alone), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    for name, own in first.state_dict().items():
        torch.testing.assert_close(own, second.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_state_goes_round():
    first = factors()
    optimizer = ComponentAdamW(first, 0.1)
    for step in range(4):
        set_random_gradients(first, step)
        optimizer.step(0.1, ALL if step % 2 else SOME)
    second = factors()
    with torch.no_grad():
        for mine, other in zip(second, first, strict=True):
            mine.A.copy_(other.A)
            mine.B.copy_(other.B)
    resumed = ComponentAdamW(second, 0.1)
    resumed.load_state_dict(moments(optimizer))
    for projections, its in ((first, optimizer), (second, resumed)):
        set_random_gradients(projections, 9)
        its.step(0.05, ALL)
    assert all(torch.equal(a, b) for a, b in zip(values(first), values(second), strict=True))


def test_state_of_another_rank_is_refused():
    state = ComponentAdamW(factors(r_max=2)).state_dict()
    with pytest.raises(FedloraError, match="of other projections"):
        ComponentAdamW(factors()).load_state_dict(state)


def test_gradients_are_forgotten():
    projections = factors()
    set_random_gradients(projections, 0)
    ComponentAdamW(projections).zero_grad()
    assert all(p.A.grad is None and p.B.grad is None for p in projections)


@pytest.mark.parametrize("norm", [0.5, 1e6])
def test_global_norm_is_clipped_as_torch_clips_it(norm):
    ours, theirs = factors(), factors()
    set_random_gradients(ours, 0)
    set_random_gradients(theirs, 0)
    gradients = [f.grad for p in ours for f in (p.A, p.B)]
    reference = torch.nn.utils.clip_grad_norm_([f for p in theirs for f in (p.A, p.B)], norm)
    assert clip_global_norm(gradients, norm) == pytest.approx(float(reference))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.A.grad, other.A.grad)
        torch.testing.assert_close(mine.B.grad, other.B.grad)


def test_a_factor_without_gradient_stays_and_the_other_moves_as_with_torch():
    ours, theirs = factors(), factors()
    optimizer = ComponentAdamW(ours, weight_decay=0.3)
    reference = torch.optim.AdamW([p.B for p in theirs], weight_decay=0.3, lr=0.1)
    before = [p.A.detach().clone() for p in ours]
    for step in range(5):
        for projections in (ours, theirs):
            set_random_gradients(projections, step)
            for p in projections:
                p.A.grad = None
        optimizer.step(0.1, ALL)
        reference.step()
    for mine, other, A in zip(ours, theirs, before, strict=True):
        assert torch.equal(mine.A, A)
        torch.testing.assert_close(mine.B, other.B, rtol=1e-5, atol=1e-6)
