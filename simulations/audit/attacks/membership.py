"""Membership inference: telling samples that were trained on from others.

The attacker has the final model and computes its loss on the sample. A low loss speaks for a
member, but also for an easy sample. Reference models, which the attacker trains on text of its own,
tell how easy a sample is (Watson et al. 2022; Carlini et al. 2022, the offline likelihood-ratio
attack).
"""

from __future__ import annotations

import torch

_SPREAD_MIN = 1e-3


def loss_scores(losses: torch.Tensor) -> torch.Tensor:
    """Score by the final model's loss alone (Yeom et al. 2018).

    Parameters
    ----------
    losses
        Loss of each sample in nats, shape (samples,).

    Returns
    -------
    Tensor
        Larger for members.
    """
    return -losses.double()


def calibrated_scores(losses: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Score by how much lower the loss is than reference models' (Watson et al. 2022, eq. 4).

    Parameters
    ----------
    losses
        Shape (samples,).
    references
        Losses of models that never saw any of the samples, shape (models, samples).

    Returns
    -------
    Tensor
        Larger for members.
    """
    return references.double().mean(0) - losses.double()


def likelihood_ratio_scores(losses: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Score by the offline likelihood-ratio attack, LiRA (Carlini et al. 2022, eq. 4).

    The logit of the true label's probability is taken as Gaussian over models that did not train on
    the sample, with a mean of each sample and, as fits few reference models, one variance for all.

    Parameters
    ----------
    losses, references
        See ``calibrated_scores``; with one reference model there is no variance, and the score is
        the difference of the logits.

    Returns
    -------
    Tensor
        Larger for members.
    """
    logits, outside = _logit(losses), _logit(references)
    spread = torch.ones((), dtype=torch.float64)
    if len(outside) > 1:
        spread = outside.var(0).mean().sqrt().clamp(min=_SPREAD_MIN)
    return (logits - outside.mean(0)) / spread


def _logit(losses: torch.Tensor) -> torch.Tensor:
    """Return log(p / (1 - p)) for p = exp(-loss)."""
    x = losses.double().clamp(min=1e-9)
    return -(x + torch.log(-torch.expm1(-x)))
