"""Label inference from the gradient at the cut.

Each attack returns one score a sample, larger for the positive class; ``auc`` judges it against the
true labels. The server knows no label (``norm_scores``), a few (``direction_scores``), or the head
(``likelihood_scores``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from fedlora.errors import FedloraError
from fedlora.privacy.mechanism import clip_rows


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


def likelihood_scores(
    gradients: torch.Tensor, z: torch.Tensor, head_weight: torch.Tensor, clip_norm: float
) -> torch.Tensor:
    """Score by the likelihood ratio of the two labels, for a server that knows the head.

    It holds z and the bare linear head, so it knows both gradients that a sample can have and asks
    which is nearer to what it received. Nothing does better from one upload.

    Parameters
    ----------
    gradients
        Released pooled gradients, shape (samples, width).
    z
        Pooled representations that the server sent, shape (samples, width).
    head_weight
        Weight of the linear head, shape (2, width).
    clip_norm
        Clipping norm of the mechanism; infinity where it does not clip.

    Returns
    -------
    Tensor
        Log-likelihood ratio times the noise variance, shape (samples,).
    """
    weight = head_weight.double()
    probabilities = torch.softmax(z.double() @ weight.T, dim=-1)
    candidates = []
    for label in (0, 1):
        residual = probabilities - F.one_hot(torch.tensor(label), 2)
        gradient = residual @ weight
        if clip_norm < float("inf"):
            gradient = clip_rows(gradient, [1] * len(gradient), clip_norm).values
        candidates.append(gradient)
    distances = [(gradients.double() - g).square().sum(1) for g in candidates]
    return (distances[0] - distances[1]) / 2
