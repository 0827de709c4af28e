"""From a privacy target to noise: the accountant, inverted."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fedlora.checks import EPSILON_MAX, check_target
from fedlora.config import SIGMA_MAX, SIGMA_MIN, PrivacyPolicy
from fedlora.errors import FedloraError
from fedlora.privacy.accounting.rdp import (
    ORDERS,
    Adjacency,
    conversion,
    exact_epsilon,
    rdp_epsilon,
    rho,
)

_RHO_OF_ONE = rho(1.0)
_MARGIN = 1 + 1e-9  # on sigma, so that a plan's rounded-up spending stays within the budget


def epsilon_of(rho_replace_one: float, delta: float, *, tight: bool = False) -> float:
    """Return the epsilon of uploads that cost ``rho_replace_one`` together.

    Parameters
    ----------
    rho_replace_one
        Sum of ``rdp.rho`` over a sample's uploads.
    delta
        The delta that epsilon is stated at.
    tight
        Exact value instead of the Rényi bound.
    """
    return (exact_epsilon if tight else rdp_epsilon)(rho_replace_one, delta)


def rho_budget(
    epsilon: float,
    delta: float,
    *,
    tight: bool = False,
    names: tuple[str, str] = ("epsilon", "delta"),
) -> float:
    """Return the largest total rho whose epsilon does not exceed the target.

    Parameters
    ----------
    epsilon, delta
        The target.
    tight
        Whether the exact epsilon is meant, instead of its Rényi bound.
    names
        What errors call the two.

    Raises
    ------
    FedloraError
        When epsilon or delta is out of range, or too small for any budget at this delta.
    """
    check_target(epsilon, delta, names)
    # each order allows (epsilon - conversion) / alpha; the best order decides
    alphas = np.asarray(ORDERS, dtype=np.float64)
    budget = float(np.max((epsilon - conversion(alphas, delta)) / alphas))
    if tight:
        from scipy.optimize import brentq

        high = max(budget, 1e-9)
        while exact_epsilon(high, delta) < epsilon:
            high *= 2
        root = brentq(lambda r: exact_epsilon(r, delta) - epsilon, 0.0, high, xtol=1e-15)
        budget = root * (1 - 1e-9)  # the root's own tolerance
    if budget <= 0:
        raise FedloraError(
            f"{names[0]} {epsilon:g} at {names[1]} {delta:g} is less than Rényi accounting can "
            "state; raise one of them"
        )
    return budget * (1 - 1e-12)  # rounding of the best order's quotient


def calibrate_sigma(
    epsilon: float,
    delta: float,
    uploads: int,
    *,
    adjacency: Adjacency = "replace_one",
    tight: bool = False,
) -> float:
    """Return the least noise with which a sample can be uploaded so often within the target.

    Parameters
    ----------
    epsilon, delta
        Target.
    uploads
        Number of uploads of the same sample, each counted in full.
    adjacency
        Neighbouring relation that the target is meant for.
    tight
        Meet the exact epsilon instead of its Rényi bound.

    Returns
    -------
    float
        Standard deviation of the noise over the clipping norm.

    Raises
    ------
    FedloraError
        When the target is out of range or no upload is planned.
    """
    if uploads < 1:
        raise FedloraError(f"{uploads} uploads of a sample are planned; plan 1 or more")
    budget = rho_budget(epsilon, delta, tight=tight)
    return math.sqrt(uploads * rho(1.0, adjacency) / budget) * _MARGIN


def planned_uploads(steps: int, batch_size: int, samples: int) -> int:
    """Return how often a sample is uploaded at most when passes over the data follow each other."""
    return math.ceil(steps * min(batch_size, samples) / samples)


def gradient_sigma(
    policy: PrivacyPolicy,
    uploads: int,
    activation_uploads: int = 0,
    cost: Callable[[float], float] | None = None,
) -> float:
    """Return the noise on each uploaded gradient under a policy.

    Parameters
    ----------
    policy
        An enabled policy; its ``uploads`` go before the argument.
    uploads
        Uploads of a sample's gradient that the run comes to.
    activation_uploads
        Noised uploads of a sample's activations, where the policy has any; they are paid first.
        Bytes that are stored and sent again count once.
    cost
        Rho of one upload by its noise over the clipping norm, which falls with it; that of Gaussian
        noise where it is left out.

    Returns
    -------
    float
        Standard deviation of the noise over the clipping norm.

    Raises
    ------
    FedloraError
        When the plan has no budget left for gradients, or is past any meaningful epsilon.
    """
    uploads = policy.uploads or uploads
    spent = 0.0
    if policy.activation_sigma is not None:
        spent = activation_uploads * rho(policy.activation_sigma)
    if policy.sigma is not None:
        total = spent + uploads * (cost or rho)(policy.sigma)
        epsilon = rdp_epsilon(total, policy.delta)
        if epsilon > EPSILON_MAX:
            raise FedloraError(
                f"privacy.sigma {policy.sigma:g} over {uploads} uploads comes to epsilon "
                f"{epsilon:.3g}, which promises nothing; raise it or plan fewer rounds"
            )
        return policy.sigma
    if policy.epsilon is None:
        raise FedloraError("privacy is off, so there is no noise; set privacy.epsilon")
    if uploads < 1:
        raise FedloraError(f"{uploads} uploads of a sample are planned; plan 1 or more")
    names = ("privacy.epsilon", "privacy.delta")
    left = rho_budget(policy.epsilon, policy.delta, tight=policy.tight, names=names) - spent
    if left <= 0:
        raise FedloraError(
            f"privacy.activation_sigma {policy.activation_sigma:g} over {activation_uploads} "
            f"uploads already costs more than privacy.epsilon {policy.epsilon:g}; raise it"
        )
    if cost is not None:
        return _least_sigma(cost, left / uploads)
    return math.sqrt(uploads * _RHO_OF_ONE / left) * _MARGIN


def _least_sigma(cost: Callable[[float], float], most: float) -> float:
    """Return by bisection the least noise at which an upload costs no more than ``most``."""
    low, high = math.log(SIGMA_MIN), math.log(SIGMA_MAX)
    if not cost(SIGMA_MAX) <= most:
        raise FedloraError(
            f"an upload has to cost at most rho {most:.3g} and costs {cost(SIGMA_MAX):.3g} at "
            f"privacy.sigma {SIGMA_MAX:g}; raise privacy.epsilon or plan fewer uploads"
        )
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(math.exp(middle)) <= most else (middle, high)
    return math.exp(high) * _MARGIN
