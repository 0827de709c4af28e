"""What a report says about privacy, in words that a data-protection officer can use.

The ``privacy`` block of ``summary.json``. Its headline is the Rényi bound under replace-one
adjacency, for the sample that spent most; the zero-out figure and the exact ones stand beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

from fedlora.checks import finite
from fedlora.config import PrivacyPolicy
from fedlora.errors import FedloraError
from fedlora.privacy.accounting import SampledAccountant, convert, exact_epsilon, rdp_epsilon
from fedlora.privacy.mechanisms import Mechanism, label_auc, mechanism_of

Accountant = Callable[[float, float], float]

REPLACE_ONE = "replace-one (another sample in its place; every upload counts in full)"
ZERO_OUT = "zero-out (a zero gradient in the sample's place)"

ACTIVATIONS = (
    "The forward activations, from which the server can recover the inputs, such as a text: it "
    "has to be trusted with them."
)
CARRIED = (
    "What adapters, optimiser state and ranks carry of those activations, from which their "
    "gradients are computed as well."
)
PERSONAL_HEAD = (
    "The head that each client trains on its labels as they are: the gradients of later samples "
    "carry traces of earlier ones."
)


@dataclass(frozen=True)
class Exposure:
    """What else of the data leaves the clients, without a mechanism of its own.

    Attributes
    ----------
    head
        ``public``: frozen, or trained on released gradients alone. ``personal``: trained on the
        client with its labels as they are, so that the gradients of later samples carry traces of
        earlier ones. ``shared``: such a head leaves the client too.
    embedding
        Whether token embeddings train.
    losses, statistics
        Whether clients report losses and metrics, and, where their owners allow it, statistics of
        their text.
    """

    head: Literal["public", "personal", "shared"]
    embedding: bool = False
    losses: bool = False
    statistics: bool = False


@dataclass(frozen=True)
class Sampling:
    """How the batches of a run were drawn, for whoever only sees the released adapter.

    Attributes
    ----------
    rate
        Chance that a given sample takes part in a given step.
    steps
        Number of steps.
    """

    rate: float
    steps: int


def privacy_statement(
    policy: PrivacyPolicy,
    rho: float,
    sigma: float | None,
    exposure: Exposure,
    sampling: Sampling | None = None,
    *,
    label_epsilon: float = 0.0,
    classes: int = 0,
) -> dict[str, object]:
    """Return the ``privacy`` block of a run under an enabled policy.

    Parameters
    ----------
    policy
        The run's policy.
    rho
        Largest rho that any sample of any client has spent, replace-one; clients' samples are
        disjoint, so the maximum counts and not the sum.
    sigma
        Least noise of any uploaded gradient, over the clipping norm; None where none was noised.
    exposure
        What else of the data left the clients.
    sampling
        To state the epsilon of DP-SGD under sampling beside the local one.
    label_epsilon
        Largest pure epsilon of any sample's randomised labels; it adds to that of ``rho``.
    classes
        Number of classes; 0 where it is not known, which is taken as two.

    Returns
    -------
    dict
        ``epsilon`` (None without a guarantee), ``delta``, ``adjacency``, ``covers``, ``excludes``,
        and the figures beside them; ``label_auc_bound`` is the largest area under the ROC curve
        with which any attacker can tell two labels apart.

    Raises
    ------
    FedloraError
        When the policy is off.
    """
    mechanism = mechanism_of(policy)
    if mechanism is None:
        raise FedloraError("privacy is off, so there is nothing to state; set privacy.epsilon")
    if not (rho >= 0 and (sigma is None or sigma > 0)):
        raise FedloraError(f"rho {rho} and sigma {sigma} state nothing; pass what was spent")

    def total(rho: float, accountant: Accountant) -> float | None:
        return finite(label_epsilon + accountant(rho, policy.delta)) if secret else None

    # what the noise was calibrated for: a tight plan keeps to the exact epsilon
    stated: Accountant = exact_epsilon if policy.tight else rdp_epsilon
    zero_out = convert(rho, "zero_out") * mechanism.zero_out
    secret = policy.insecure_noise_seed is None
    block: dict[str, Any] = {
        "epsilon": total(rho, stated),
        "delta": policy.delta,
        "adjacency": REPLACE_ONE,
        "guarantee": secret,
        "unit": policy.unit,
        "release": policy.release,
        "spread": policy.spread,
        "uplink": policy.uplink,
        "epsilon_exact": total(rho, exact_epsilon),
        "zero_out": {
            "adjacency": ZERO_OUT,
            "epsilon": total(zero_out, stated),
            "epsilon_exact": total(zero_out, exact_epsilon),
        },
        "label_auc_bound": _label_auc(rho, label_epsilon, classes) if secret else None,
        "rho": finite(rho),
        "sigma": sigma,
        "clip_norm": policy.clip_norm,
        "covers": _covers(mechanism),
        "excludes": _excludes(mechanism, exposure),
    }
    if not secret:
        block["warning"] = (
            f"The noise was drawn from privacy.insecure_noise_seed {policy.insecure_noise_seed}, "
            "so whoever knows that number can remove it: this run protects nobody."
        )
    if label_epsilon:
        block["label_epsilon"] = label_epsilon
    if secret:
        block["adapter"] = _adapter(policy, exposure, total(rho, stated))
        if sampling is not None and sigma is not None and exposure.head == "public":
            block["adapter"] |= _sampled(policy, sigma, sampling)
    return block


def _label_auc(rho: float, label_epsilon: float, classes: int) -> float | None:
    """Return the largest AUC of telling two labels apart; None where both mechanisms took part."""
    if label_epsilon == 0:
        return NormalDist().cdf(math.sqrt(rho))
    if rho > 0:
        return None
    return label_auc(max(2, classes), label_epsilon)  # two classes are the worst case


def _covers(mechanism: Mechanism) -> list[str]:
    activations = "Its forward activations, which are clipped and noised too."
    noised = mechanism.policy.activation_sigma is not None
    return [*mechanism.covers(), *([activations] if noised else [])]


def _excludes(mechanism: Mechanism, exposure: Exposure) -> list[str]:
    policy = mechanism.policy
    parts = {
        ACTIVATIONS: policy.activation_sigma is None,
        CARRIED: policy.activation_sigma is None,
        "A text as a whole: it is protected less, the longer it is.": policy.unit == "token",
        PERSONAL_HEAD: exposure.head != "public",
        "That head itself, which leaves the client.": exposure.head == "shared",
        "The token embeddings, or a front in their place, that clients train.": exposure.embedding,
        "Losses and metrics that clients report.": exposure.losses,
        "Statistics of their text, which clients report where their owners allow it.": (
            exposure.statistics
        ),
        (
            f"Whoever hears the uncoded uplink with more than {policy.analog_snr_db:g} dB: the "
            "receiver's own noise is part of what protects."
        ): policy.uplink == "analog",
        **dict.fromkeys(mechanism.excludes(), True),
        "How long samples are, which take part when, and the time it takes.": True,
        "A record that a client holds more than once: each copy has its own epsilon.": True,
    }
    return [text for text, applies in parts.items() if applies]


def _adapter(policy: PrivacyPolicy, exposure: Exposure, epsilon: float | None) -> dict[str, object]:
    """State what holds for the adapter, whose gradients use the activations as well.

    That of B is the gradient behind it times A x, and x follows from the activations as they were
    sent; so noise on gradients at the cut bounds what the adapter tells of labels alone.
    """
    if exposure.head != "public":
        return {
            "epsilon": None,
            "meaning": (
                "No epsilon holds for the adapter: it is computed with heads that each client "
                "trains on its labels as they are, and from activations."
            ),
        }
    if policy.activation_sigma is None or exposure.embedding:
        what = "that each client computes with embeddings of its own, " * exposure.embedding
        return {
            "epsilon": None,
            "epsilon_of_labels": epsilon,
            "meaning": (
                "The local epsilon holds for what the adapter tells of labels, against anybody who "
                "is given the texts. The adapter also carries what it was computed from beside "
                f"gradients: activations, {what}which no noise covers."
            ),
        }
    return {
        "epsilon": epsilon,
        "meaning": (
            "The adapter is computed from covered gradients and covered activations alone, so the "
            "local epsilon holds for it too, against anybody."
        ),
    }


def _sampled(policy: PrivacyPolicy, sigma: float, sampling: Sampling) -> dict[str, object]:
    """State DP-SGD's epsilon of the labels for those who never saw the uploads."""
    accountant = SampledAccountant()
    accountant.step(sigma, sampling.rate, sampling.steps)
    return {
        "epsilon_sampled": finite(accountant.rdp_epsilon(policy.delta)),
        "epsilon_sampled_prv": finite(accountant.prv_epsilon(policy.delta)),
        "sample_rate": sampling.rate,
        "sampled_meaning": (
            "What DP-SGD's accountant says of these steps under zero-out adjacency, of labels "
            "alone. It holds only against those who know neither the activations nor who took "
            "part, for batches drawn by Poisson sampling, and if as much noise reaches the adapter "
            "in steps without the sample; it is no guarantee of this run."
        ),
    }
