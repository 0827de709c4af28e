"""How well a score tells two classes apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from fedlora.errors import FedloraError

_RESAMPLES = 1000


@dataclass(frozen=True)
class Auc:
    """Area under the ROC curve with a bootstrap confidence interval.

    Attributes
    ----------
    value
        Chance that a positive scores above a negative; 0.5 tells nothing.
    low, high
        Ends of the interval.
    """

    value: float
    low: float
    high: float


def auc(
    scores: npt.ArrayLike,
    positive: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Auc:
    """Return the AUC of scores, with the percentile bootstrap over positives and negatives.

    Parameters
    ----------
    scores
        One score a sample; larger means rather positive.
    positive
        Whether each sample is.
    confidence
        Coverage of the interval.
    seed
        Seed of the resampling.

    Raises
    ------
    FedloraError
        When a class is missing or a score is not finite.
    """
    values, labels = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    if values.shape != labels.shape or values.ndim != 1 or not np.isfinite(values).all():
        raise FedloraError(
            f"scores of shape {values.shape} for labels of shape {labels.shape} give no AUC; pass "
            "one finite score for each label"
        )
    if labels.all() or not labels.any():
        raise FedloraError(f"{len(labels)} labels are all equal; an AUC needs both classes")
    distinct, place = np.unique(values, return_inverse=True)
    above, below = place[labels], place[~labels]
    generator = np.random.default_rng(seed)
    resampled = [
        _area(
            above[generator.integers(len(above), size=len(above))],
            below[generator.integers(len(below), size=len(below))],
            len(distinct),
        )
        for _ in range(_RESAMPLES)
    ]
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Auc(_area(above, below, len(distinct)), float(low), float(high))


def label_auc_bound(sigma: float, uploads: int = 1) -> float:
    """Return the largest AUC with which gradients can give a binary label away.

    Two clipped gradients differ by at most 2C, so ``uploads`` releases of a sample are Gaussians at
    most 2 sqrt(uploads) / sigma deviations apart.

    Parameters
    ----------
    sigma
        Noise over the clipping norm; 0 gives 1.
    uploads
        Releases of the same sample that the attacker combines.
    """
    return float(ndtr(math.sqrt(2 * uploads) / sigma)) if sigma > 0 else 1.0


def _area(above: npt.NDArray[np.intp], below: npt.NDArray[np.intp], places: int) -> float:
    """Return the Mann-Whitney estimate from places in the order of scores; ties count a half."""
    positives, negatives = (
        np.bincount(above, minlength=places),
        np.bincount(below, minlength=places),
    )
    wins = positives @ (np.cumsum(negatives) - negatives / 2)
    return float(wins / (len(above) * len(below)))
