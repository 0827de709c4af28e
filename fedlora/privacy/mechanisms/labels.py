"""``labels``: exact gradients of randomised labels, which are drawn once and paid for all runs.

See ``fedlora.privacy.mechanisms.randomised_response``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from fedlora.config import PrivacyPolicy, Scenario
from fedlora.errors import FedloraError
from fedlora.privacy.accounting import Charge, rdp_epsilon, upload_cost
from fedlora.privacy.mechanisms.base import Mechanism, ReleasePlan
from fedlora.privacy.mechanisms.head_releases import believed_labels
from fedlora.privacy.mechanisms.randomised_response import flip_probability, randomise


def label_epsilon(policy: PrivacyPolicy) -> float:
    """Return what is left of the budget for randomised labels, after noised activations.

    Raises
    ------
    FedloraError
        When nothing is.
    """
    assert policy.epsilon is not None
    activations = 0.0
    if policy.activation_sigma is not None:
        activations = rdp_epsilon(upload_cost(policy.activation_sigma), policy.delta)
    if activations >= policy.epsilon:
        raise FedloraError(
            f"privacy.activation_sigma {policy.activation_sigma:g} costs epsilon {activations:.3g} "
            f"of privacy.epsilon {policy.epsilon:g}, which leaves nothing for labels; raise it"
        )
    return policy.epsilon - activations


class Labels(Mechanism):
    """Randomised response; another way to draw a label inherits and overrides ``randomise``."""

    noises_gradients = False
    needs_classes = True
    repeats = True

    def check(self, scenario: Scenario) -> None:
        """See ``Mechanism``: without noise there is no sigma, and nothing to spread."""
        del scenario
        policy = self.policy
        if policy.sigma is not None:
            raise FedloraError(
                f"privacy.sigma is {policy.sigma}, but privacy.release {policy.release} adds no "
                "noise to gradients; set privacy.epsilon instead"
            )
        for name, plain in (("spread", "even"), ("uplink", "coded")):
            if getattr(policy, name) != plain:
                raise FedloraError(
                    f"privacy.{name} is {getattr(policy, name)}, but privacy.release "
                    f"{policy.release} adds no noise to gradients; set privacy.{name} to {plain}"
                )

    def plan(self, scenario: Scenario, rows: int) -> ReleasePlan:
        """See ``Mechanism``."""
        del scenario, rows
        return ReleasePlan(label_epsilon=label_epsilon(self.policy))

    def charge(self, sigma: float = 0.0) -> Charge:
        """See ``Mechanism``: the label's pure epsilon, whatever is computed from it."""
        del sigma
        return Charge(epsilon=label_epsilon(self.policy))

    def randomise(
        self, label: int, classes: int, epsilon: float, below: Callable[[int], int]
    ) -> int:
        """Draw what stands for a label; see ``randomised_response.randomise``."""
        return randomise(label, classes, epsilon, below)

    def probe(
        self,
        z: torch.Tensor,
        weight: torch.Tensor | None,
        sigma: float,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor | None:
        """See ``Mechanism``: of two draws about one label, as in ``logits``."""
        del sigma
        if weight is None:
            return None
        w = weight.detach().double()
        logits, label = believed_labels(z, w, generator)
        rows, classes = logits.shape
        flip = flip_probability(classes, label_epsilon(self.policy))

        def target() -> torch.Tensor:
            flipped = torch.rand(rows, generator=generator) < flip
            other = 1 + torch.randint(classes - 1, (rows,), generator=generator)
            told = torch.where(flipped, (label + other) % classes, label)
            return torch.nn.functional.one_hot(told, classes).double()

        first, second = target(), target()
        return ((first - second) @ w / math.sqrt(2)).float()

    @property
    def zero_out(self) -> float:
        """See ``Mechanism``; rho is that of noised activations alone."""
        return 1.0

    def covers(self) -> list[str]:
        """See ``Mechanism``."""
        label = (
            "The label of a sample: everything that is computed from it is computed from a "
            "randomised label, which is drawn once and kept."
        )
        return [
            label,
            "So also, of the label, gradients, losses, heads, adapters, ranks.",
        ]

    def excludes(self) -> list[str]:
        """See ``Mechanism``."""
        return ["Labels that follow from the text: whoever reads the text knows them too."]
