"""What the server computes from a release equals the true gradients where there is no noise."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fedlora.config import PrivacyPolicy
from fedlora.privacy.mechanisms import (
    Mechanism,
    label_corners,
    label_reach,
    mechanism_class,
    row_space_coordinates,
    zero_sum_basis,
)

CLASSES = [2, 3, 20]
WIDTH, ROWS, CLIP_NORM = 32, 9, 0.05


def mechanism(release: str, clip_norm: float = CLIP_NORM) -> Mechanism:
    return mechanism_class(release)(PrivacyPolicy(sigma=1.0, release=release, clip_norm=clip_norm))


def problem(classes: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Return z, W, labels, and the gradients of the summed cross-entropy by both."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(ROWS, WIDTH, generator=generator).requires_grad_()
    weight = (0.3 * torch.randn(classes, WIDTH, generator=generator)).requires_grad_()
    labels = torch.randint(classes, (ROWS,), generator=generator)
    F.cross_entropy(z @ weight.T, labels, reduction="sum").backward()
    return z.detach(), weight.detach(), labels, z.grad, weight.grad


@pytest.mark.parametrize("classes", CLASSES)
def test_the_basis_is_orthonormal_and_sums_to_zero(classes: int) -> None:
    basis = zero_sum_basis(classes)
    torch.testing.assert_close(basis.T @ basis, torch.eye(classes - 1, dtype=torch.float64))
    assert basis.sum(0).abs().max() < 1e-12


@pytest.mark.parametrize("classes", CLASSES)
def test_any_two_labels_are_2c_apart(classes: int) -> None:
    corners = label_corners(classes, CLIP_NORM)
    distances = torch.cdist(corners, corners)
    expected = 2 * CLIP_NORM * (1 - torch.eye(classes, dtype=torch.float64))
    torch.testing.assert_close(distances, expected, atol=1e-9, rtol=0)
    norms = corners.norm(dim=1)
    assert norms == pytest.approx(torch.full_like(norms, label_reach(classes) * CLIP_NORM))


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("release", ["full", "row_space", "logits"])
def test_without_noise_both_gradients_are_the_true_ones(release: str, classes: int) -> None:
    z, weight, labels, cut, head = problem(classes)
    uploaded = {
        "full": cut,
        "row_space": row_space_coordinates(cut, weight),
        "logits": label_corners(classes, CLIP_NORM)[labels],
    }[release]
    assert uploaded.shape == (ROWS, mechanism(release).width(classes, WIDTH))
    found = mechanism(release).gradients(uploaded, z, weight, 1e-3)
    torch.testing.assert_close(found.cut, cut, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.head, head, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("classes", CLASSES)
def test_row_space_coordinates_are_no_longer_than_the_gradient(classes: int) -> None:
    _, weight, _, cut, _ = problem(classes)
    inside = row_space_coordinates(cut, weight).norm(dim=1)
    torch.testing.assert_close(inside, cut.double().norm(dim=1), rtol=1e-5, atol=1e-8)
    anything = torch.randn(50, WIDTH)
    assert (row_space_coordinates(anything, weight).norm(dim=1) <= anything.norm(dim=1)).all()


def test_a_head_without_full_rank_is_released_in_what_it_spans() -> None:
    z, weight, _, _, _ = problem(3)
    weight[2] = weight[1]
    gradient = torch.randn(ROWS, 3) @ weight
    coordinates = row_space_coordinates(gradient, weight)
    found = mechanism("row_space", 1.0).gradients(coordinates, z, weight, 1.0)
    assert torch.isfinite(found.cut).all() and torch.isfinite(found.head).all()
    assert row_space_coordinates(gradient, torch.zeros_like(weight)).abs().max() == 0


@pytest.mark.parametrize("sigma", [0.5, 1.3, 6.0])
def test_logits_give_the_gradient_of_the_likelihood_of_what_was_received(sigma: float) -> None:
    z, weight, labels, _, _ = problem(3)
    corners = label_corners(3, CLIP_NORM)
    received = corners[labels] + sigma * CLIP_NORM * torch.randn(ROWS, 2).double()
    x = z.double().requires_grad_()
    w = weight.double().requires_grad_()
    distances = (received[:, None] - corners[None]).square().sum(-1)
    log_density = -distances / (2 * (sigma * CLIP_NORM) ** 2)
    (-torch.logsumexp(F.log_softmax(x @ w.T, -1) + log_density, -1).sum()).backward()
    found = mechanism("logits").gradients(received, z, weight, sigma)
    assert x.grad is not None and w.grad is not None
    torch.testing.assert_close(found.cut, x.grad.float(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.head, w.grad.float(), atol=1e-5, rtol=1e-5)
