"""Label inference from the gradient at the cut.

Each attack returns one score a sample, larger for the positive class; ``auc`` judges it against the
true labels. The server knows no label (``norm_scores``), a few (``direction_scores``), or the head
(``label_distances``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedlora.errors import FedloraError
from fedlora.privacy.mechanisms import Mechanism


def norm_scores(gradients: torch.Tensor) -> torch.Tensor:
    """Score by the gradient's norm: the rarer class is fitted worse (Li et al. 2022, Section 3.1).

    Parameters
    ----------
    gradients
        Released gradients, shape (samples, ...).

    Returns
    -------
    Tensor
        Scores, shape (samples,).
    """
    return gradients.double().flatten(1).square().sum(1).sqrt()


def direction_scores(
    gradients: torch.Tensor, known: Sequence[int], known_labels: Sequence[int]
) -> torch.Tensor:
    """Score along the difference of the mean gradients of a few samples whose label is known.

    The direction attack of Li et al. 2022, Section 3.2, with as many known samples as the attacker
    has. Judge it on the other samples.

    Parameters
    ----------
    gradients
        Released gradients, shape (samples, ...).
    known, known_labels
        Indices of the known samples and their labels, 0 or 1; both occur.

    Returns
    -------
    Tensor
        Scores, shape (samples,).

    Raises
    ------
    FedloraError
        When a class is not among the known samples.
    """
    rows = gradients.double().flatten(1)
    labels = torch.as_tensor(known_labels)
    if set(labels.tolist()) != {0, 1}:
        raise FedloraError(
            f"the known labels are {sorted(set(labels.tolist()))}; give some of both 0 and 1"
        )
    sample = rows[torch.as_tensor(known)]
    return rows @ (sample[labels == 1].mean(0) - sample[labels == 0].mean(0))


def label_distances(
    uploads: torch.Tensor,
    z: torch.Tensor,
    head_weight: torch.Tensor,
    mechanism: Mechanism | None = None,
) -> torch.Tensor:
    """Return how far each upload is from what it would be, without noise, for every label.

    For a server that knows the bare linear head: it holds z, so it knows all the gradients that a
    sample can have. Without noise the true label's distance is 0, which solves for the label
    exactly. With noise the difference of two labels' distances is their log-likelihood ratio times
    twice the noise variance, and nothing tells two labels apart better from one upload.

    Parameters
    ----------
    uploads
        What was uploaded for each sample, shape (samples, released width).
    z
        Pooled representations that the server had sent, shape (samples, width).
    head_weight
        Weight of the linear head, shape (classes, width).
    mechanism
        What is uploaded; None for exact gradients.

    Returns
    -------
    Tensor
        Squared distances, shape (samples, classes).
    """
    candidates = label_candidates(z, head_weight, mechanism)
    return (uploads.double()[:, None] - candidates).square().sum(-1)


def label_candidates(
    z: torch.Tensor, head_weight: torch.Tensor, mechanism: Mechanism | None = None
) -> torch.Tensor:
    """Return what a sample uploads for every label it could have, before noise.

    Parameters
    ----------
    z, head_weight, mechanism
        See ``label_distances``.

    Returns
    -------
    Tensor
        Shape (samples, classes, released width), float64.
    """
    weight = head_weight.double()
    classes = len(weight)
    p = torch.softmax(z.double() @ weight.T, -1)
    residuals = p[:, None] - torch.eye(classes, dtype=torch.float64)
    gradients = (residuals.flatten(0, 1) @ weight).view(len(z), classes, -1)
    return gradients if mechanism is None else mechanism.noiseless(gradients, head_weight)
