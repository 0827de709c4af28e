"""What an attack's guesses prove of a mechanism: a lower bound on its Gaussian privacy parameter.

The rates of false alarms and of hits give mu >= Phi^-1(hits) - Phi^-1(false alarms) (Dong, Roth and
Su 2022; for audits Nasr et al. 2023), with Clopper and Pearson's bounds on both rates. SciPy is
loaded when a bound is asked for, as no device needs one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def mu_lower_bound(scores: Floats, positive: Bools, confidence: float) -> float:
    """Bound the parameter of Gaussian differential privacy from scores of two neighbours.

    The threshold is chosen on the first half of the scores and judged on the second, so that the
    choice does not bias the bound.

    Parameters
    ----------
    scores
        Attacker's statistic of each release, larger for positives.
    positive
        Which of the two neighbours each release came from.
    confidence
        Confidence of the bound.

    Returns
    -------
    float
        Lower bound on mu, at least 0.
    """
    from scipy.special import ndtri

    half = len(scores) // 2
    threshold = _best_threshold(scores[:half], positive[:half])
    hit, labels = scores[half:] > threshold, positive[half:]
    tail = (1 - confidence) / 2
    return max(
        0.0,
        # a shifted Gaussian seen from either side
        float(ndtri(rate_low(hit[labels], tail)) - ndtri(rate_high(hit[~labels], tail))),
    )


def _best_threshold(scores: Floats, positive: Bools) -> float:
    """Return the threshold where hits exceed false alarms most."""
    order = np.argsort(-scores)
    labels = positive[order]
    gain = np.cumsum(labels) / max(1, labels.sum()) - np.cumsum(~labels) / max(1, (~labels).sum())
    best = int(gain[:-1].argmax())
    return float(scores[order[best : best + 2]].mean())


def rate_low(hits: Bools, tail: float) -> float:
    """Return Clopper and Pearson's lower bound on the rate of hits."""
    from scipy.stats import beta

    count = int(hits.sum())
    return float(beta.ppf(tail, count, len(hits) - count + 1)) if count else 0.0


def rate_high(hits: Bools, tail: float) -> float:
    """Return Clopper and Pearson's upper bound on the rate of hits."""
    from scipy.stats import beta

    count = int(hits.sum())
    return float(beta.ppf(1 - tail, count + 1, len(hits) - count)) if count < len(hits) else 1.0
