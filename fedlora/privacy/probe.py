"""Noise like that in the released gradients, for one more backward pass.

With the forward values fixed, backpropagation is linear, so a fresh draw of the noise gives a draw
of what it adds to every gradient behind the cut (see ``fedlora.privacy.noise_propagation``).
Nothing here is secret and nothing costs privacy: it needs the mechanism, which is public, and what
the server has.

Noise that is added to a gradient is drawn again. In the releases ``logits`` and ``labels`` the
gradient is a function of a noised label instead: of two messages about one label, drawn by the
model's own belief, half the squared difference has the expectation of the noise's energy.
"""

from __future__ import annotations

import math

import torch

from fedlora.config import PrivacyPolicy
from fedlora.privacy.mechanisms import flip_probability, label_corners, row_space_basis
from fedlora.privacy.plan import label_epsilon


def noise_probe(
    policy: PrivacyPolicy,
    z: torch.Tensor,
    weight: torch.Tensor | None,
    sigma: float,
    generator: torch.Generator | None = None,
) -> torch.Tensor | None:
    """Draw noise with the covariance of that in a client's gradients at the cut.

    Parameters
    ----------
    policy
        An enabled policy.
    z
        What the client was sent, shape (rows, width).
    weight
        The shared head's weight, shape (classes, width); None for heads that the server cannot see.
    sigma
        Noise on the client's present upload over the clipping norm, root mean square over its
        samples; 0 where gradients have none.
    generator
        Source of the draw, which need not be secret.

    Returns
    -------
    torch.Tensor or None
        Shape (rows, width), fp32; None where the server cannot know.
    """
    std = sigma * policy.clip_norm
    if policy.release == "full":
        return std * torch.randn(z.shape, generator=generator)
    if weight is None:
        return None
    w = weight.detach().double()
    if policy.release == "row_space":
        drawn = torch.randn(len(z), len(w) - 1, generator=generator, dtype=torch.float64)
        return (std * drawn @ row_space_basis(w).T).float()
    logits = z.double() @ w.T
    label = torch.multinomial(torch.softmax(logits, -1), 1, generator=generator).squeeze(1)
    first, second = (_message(policy, logits, label, sigma, generator) for _ in range(2))
    return ((first - second) @ w / math.sqrt(2)).float()


def _message(
    policy: PrivacyPolicy,
    logits: torch.Tensor,
    label: torch.Tensor,
    sigma: float,
    generator: torch.Generator | None,
) -> torch.Tensor:
    """Return what one message about each label makes of the target, shape (rows, classes)."""
    rows, classes = logits.shape
    if policy.release == "labels":
        flip = flip_probability(classes, label_epsilon(policy))
        flipped = torch.rand(rows, generator=generator) < flip
        other = 1 + torch.randint(classes - 1, (rows,), generator=generator)
        told = torch.where(flipped, (label + other) % classes, label)
        return torch.nn.functional.one_hot(told, classes).double()
    corners = label_corners(classes, policy.clip_norm)
    std = sigma * policy.clip_norm
    noise = torch.randn(rows, classes - 1, generator=generator, dtype=torch.float64)
    evidence = (corners[label] + std * noise) @ corners.T / std**2
    return torch.softmax(logits + evidence, -1)
