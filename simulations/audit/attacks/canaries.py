"""Bounding the privacy of a whole training from below, with one run.

The auditor draws a fair coin for each of some planted records, trains once, and guesses the coins
from what came out. Under (epsilon, delta)-differential privacy each guess is right with a
probability of at most about e^epsilon / (1 + e^epsilon), so many right guesses refute a small
epsilon (Steinke, Nasr and Jagielski 2023, Theorem 5.2). The bound is far below the truth where the
attack is weak, as it is against a model that hardly memorises; it is reported, and a low figure
proves nothing.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import binom

from fedlora.errors import FedloraError

_EPSILON_MAX = 50.0


def epsilon_lower_bound(
    canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95
) -> float:
    """Return the largest epsilon that so many right guesses refute.

    Parameters
    ----------
    canaries
        Planted records, each with a coin of its own.
    guesses
        Canaries whose coin was guessed; the attacker may pass over the others.
    correct
        Guesses that were right.
    delta
        The delta that epsilon is stated at.
    confidence
        Confidence of the bound.

    Raises
    ------
    FedloraError
        When the counts do not fit each other.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise FedloraError(
            f"{correct} of {guesses} guesses about {canaries} canaries cannot be; pass the counts"
        )
    if _chance(canaries, guesses, correct, delta, 0.0) > 1 - confidence:
        return 0.0
    low, high = 0.0, _EPSILON_MAX
    for _ in range(40):
        middle = (low + high) / 2
        if _chance(canaries, guesses, correct, delta, middle) <= 1 - confidence:
            low = middle
        else:
            high = middle
    return low


def _chance(canaries: int, guesses: int, correct: int, delta: float, epsilon: float) -> float:
    """Bound the chance of so many right guesses under (epsilon, delta)."""
    rate = 1 / (1 + math.exp(-epsilon))
    slack = 0.0
    if delta > 0:
        fewer = np.arange(1, correct + 1)
        lost = np.cumsum(binom.pmf(correct - fewer, guesses, rate)) / fewer
        slack = 2 * canaries * delta * float(lost.max(initial=0.0))
    return min(1.0, float(binom.sf(correct - 1, guesses, rate)) + slack)
