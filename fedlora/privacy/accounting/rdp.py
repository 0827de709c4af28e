"""How much privacy a sequence of noised uploads costs.

Against the server every upload of a sample counts in full (q = 1): it sees which samples take part.
A Gaussian upload then has the Rényi divergence alpha * rho at every order alpha, with
rho = Delta^2 / (2 s^2) for sensitivity Delta and noise s (Mironov 2017, Corollary 3), and rhos add
up, also where each sigma was chosen after earlier releases. One number a sample is therefore the
whole state of its accountant.

When to stop is a Rényi filter. The server chooses ranks and schedule after it has seen earlier
releases, so the costs of later uploads may depend on them. With totals that were fixed beforehand,
stopping before any order's sum would pass its total keeps the guarantee (Feldman and Zrnic 2021,
"Individual privacy accounting via a Rényi filter", Theorem 4.3). Every cost here is alpha * rho,
and so is the total: the orders pass their totals together, and one comparison decides for all.

================  ==========================================================
``sigma``         s / C, noise over the clipping norm
``rho``           Delta^2 / (2 s^2); 2 / sigma^2 for replace-one (Delta = 2C)
``orders``        alpha, the Rényi orders
``conversion``    what turns an order's divergence into epsilon at a delta
================  ==========================================================

SciPy is loaded where an exact epsilon is asked for, and opacus where a sampled mechanism is, so
that a device which keeps a Rényi budget pays for neither.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from fedlora.checks import EPSILON_MAX, check_delta, positive
from fedlora.errors import FedloraError

Adjacency = Literal["replace_one", "zero_out"]

# opacus' own orders, then up to the largest for which it can compute a binomial coefficient: small
# budgets have their optimum above 63
ORDERS: tuple[float, ...] = (
    *(1 + x / 10 for x in range(1, 100)),
    *range(12, 64),
    *range(64, 128, 4),
    *range(128, 256, 8),
    *range(256, 512, 16),
    *range(512, 1025, 32),
)

_UP = 1 + 2.0**-50  # more than the rounding of 2 / sigma^2


def rho(sigma: float, adjacency: Adjacency = "replace_one") -> float:
    """Return what one upload costs: its Rényi divergence at order alpha is alpha * rho.

    Parameters
    ----------
    sigma
        Noise standard deviation over the clipping norm; 0 costs infinitely much.
    adjacency
        ``replace_one``: another sample in its place (sensitivity 2C); ``zero_out``: a zero gradient
        in its place (C).
    """
    if sigma == 0:
        return math.inf
    return (2.0 if adjacency == "replace_one" else 0.5) / sigma**2


def upload_cost(sigma: float) -> float:
    """Return the replace-one rho of one upload, rounded up.

    Raises
    ------
    FedloraError
        When sigma is not positive.
    """
    positive("sigma", sigma)
    return rho(sigma) * _UP


@dataclass(frozen=True)
class Charge:
    """The cost of one release, under replace-one; exactly one of the two is set.

    Attributes
    ----------
    rho
        mu^2 / 2, where the release is mu-GDP (Dong, Roth and Su 2022): two records are no easier to
        tell apart than N(0, 1) and N(mu, 1). Gaussian noise of sigma over the clipping norm has
        mu = 2 / sigma. A release of pure epsilon has mu = 2 Phi^-1(e^epsilon / (1 + e^epsilon)).
    epsilon
        Pure epsilon (delta 0), which adds to the epsilon of all that is charged as ``rho``.
    sigma
        Noise over the clipping norm, which an owner's ``privacy-min-sigma`` is held against; 0
        where there is none.

    Raises
    ------
    FedloraError
        When neither or both are set, or one is not finite: nothing is free.
    """

    rho: float = 0.0
    epsilon: float = 0.0
    sigma: float = 0.0

    def __post_init__(self) -> None:
        costs = self.rho, self.epsilon
        if not all(math.isfinite(c) and c >= 0 for c in costs) or (costs[0] > 0) == (costs[1] > 0):
            raise FedloraError(
                f"a release that costs rho {self.rho} and epsilon {self.epsilon} cannot be booked; "
                "charge one of them, finite and above 0"
            )

    @classmethod
    def gaussian(cls, sigma: float) -> Self:
        """Return the cost of Gaussian noise on what moves by twice the clipping norm at most.

        Parameters
        ----------
        sigma
            Standard deviation of the noise over the clipping norm.

        Raises
        ------
        FedloraError
            When sigma is not positive.
        """
        return cls(rho=upload_cost(sigma), sigma=sigma)


def add_up(spent: float, cost: float) -> float:
    """Return ``spent + cost``, rounded up; what costs nothing changes nothing."""
    return math.nextafter(spent + cost, math.inf) if cost else spent


def convert(rho_replace_one: float, adjacency: Adjacency) -> float:
    """Return the same uploads' cost under ``adjacency``."""
    return rho_replace_one if adjacency == "replace_one" else rho_replace_one / 4


def rdp_epsilon(total_rho: float, delta: float, orders: Sequence[float] = ORDERS) -> float:
    """Return the epsilon of Gaussian uploads that cost ``total_rho`` together, by Rényi DP.

    Raises
    ------
    FedloraError
        When delta is not a probability.
    """
    if total_rho == 0:
        return 0.0
    alphas = np.asarray(orders, dtype=np.float64)
    return _best_epsilon(alphas * total_rho, delta, alphas)


def exact_epsilon(total_rho: float, delta: float) -> float:
    """Return the exact epsilon of Gaussian uploads that cost ``total_rho`` together.

    Composed Gaussian mechanisms are one Gaussian mechanism (Dong, Roth and Su 2022, Corollary 2),
    whose delta(epsilon) is known in closed form (Balle and Wang 2018, Theorem 8). This is what a
    PRV accountant approaches on ever finer grids.

    Raises
    ------
    FedloraError
        When delta is not a probability.
    """
    check_delta("delta", delta)
    if total_rho == 0:
        return 0.0
    if math.isinf(total_rho):
        return math.inf
    mu = math.sqrt(2 * total_rho)
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    from scipy.optimize import brentq

    high = rdp_epsilon(total_rho, delta) + 1.0
    root: float = brentq(lambda eps: _log_gaussian_delta(mu, eps) - math.log(delta), 0.0, high)
    return root


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Return delta(epsilon) of two Gaussians ``mu`` standard deviations apart."""
    return math.exp(_log_gaussian_delta(mu, epsilon))


def _log_gaussian_delta(mu: float, epsilon: float) -> float:
    from scipy.special import log_ndtr

    gain = float(log_ndtr(mu / 2 - epsilon / mu))
    loss = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    return gain + math.log(-math.expm1(loss - gain)) if loss < gain else -math.inf


class SampledAccountant:
    """Epsilon of noised sums over Poisson-sampled batches, as in DP-SGD.

    This is not the local accounting that clients keep: it presumes that nobody who attacks knows
    which samples took part, that batches are Poisson-sampled, and that the stated noise lies on the
    sum of each step whether or not a sample takes part. Adjacency is zero-out.

    Parameters
    ----------
    orders
        Rényi orders.
    """

    def __init__(self, orders: Sequence[float] = ORDERS) -> None:
        self._orders = tuple(orders)
        self._rdp = np.zeros(len(self._orders))
        self._history: list[tuple[float, float, int]] = []

    def step(self, noise_multiplier: float, sample_rate: float, steps: int = 1) -> None:
        """Add ``steps`` steps.

        Parameters
        ----------
        noise_multiplier
            Standard deviation of the noise on the sum, over the clipping norm.
        sample_rate
            Probability q with which each sample takes part in a step.
        steps
            Number of such steps.

        Raises
        ------
        FedloraError
            When a value is out of range.
        """
        if not (noise_multiplier > 0 and 0 <= sample_rate <= 1 and steps >= 0):
            raise FedloraError(
                f"noise multiplier {noise_multiplier}, sample rate {sample_rate} and {steps} steps "
                "cannot be accounted for; set noise above 0 and a rate from 0 to 1"
            )
        self._rdp = self._rdp + steps * _sampled_rdp(noise_multiplier, sample_rate, self._orders)
        self._history.append((noise_multiplier, sample_rate, steps))

    def rdp_epsilon(self, delta: float) -> float:
        """Return epsilon by Rényi DP."""
        if not self._rdp.any():
            return 0.0
        return _best_epsilon(self._rdp, delta, np.asarray(self._orders, dtype=np.float64))

    def prv_epsilon(self, delta: float) -> float:
        """Return an upper bound on epsilon by composing privacy loss variables numerically.

        Never above ``rdp_epsilon``, which also answers where the numerical composition does not
        converge.
        """
        bound = self.rdp_epsilon(delta)
        history = [item for item in self._history if item[1] > 0 and item[2] > 0]
        if not history or bound > EPSILON_MAX:  # the grid would have to reach out to epsilon
            return bound
        from opacus.accountants.prv import PRVAccountant

        accountant = PRVAccountant()
        accountant.history = history
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # about orders that only bound the size of the grid
            try:
                epsilon = float(accountant.get_epsilon(delta))
            except (RuntimeError, ValueError):
                return bound
        return min(bound, epsilon) if math.isfinite(epsilon) else bound


@lru_cache(maxsize=64)
def _sampled_rdp(
    noise_multiplier: float, sample_rate: float, orders: tuple[float, ...]
) -> npt.NDArray[np.float64]:
    from opacus.accountants.analysis.rdp import compute_rdp

    rdp = compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=orders)
    return np.asarray(rdp, dtype=np.float64)


def _best_epsilon(
    rdp: npt.NDArray[np.float64], delta: float, alphas: npt.NDArray[np.float64]
) -> float:
    """Convert Rényi DP to (epsilon, delta) at the best order."""
    check_delta("delta", delta)
    return max(0.0, float(np.nanmin(rdp + conversion(alphas, delta))))


def conversion(alphas: npt.NDArray[np.float64], delta: float) -> npt.NDArray[np.float64]:
    """Return what a Rényi divergence at each order adds to become epsilon.

    Balle et al. 2020, "Hypothesis testing interpretations and Rényi differential privacy",
    Theorem 21.
    """
    added: npt.NDArray[np.float64] = np.log1p(-1 / alphas) - (np.log(delta) + np.log(alphas)) / (
        alphas - 1
    )
    return added
