"""What a privacy mechanism is: one object that everybody asks what leaves and what it costs.

The client computes, clips, charges and sends; the server reads; plan, report and audit ask. Of a
mechanism they need numbers alone, so a class that overrides a few methods is a whole mechanism, and
none of them is given the client's records, its ledger or its door.

=========================  =====================================================================
asked by                   for
=========================  =====================================================================
``plan.check_release``     ``check``, ``needs_head``, ``repeats``
``plan.check_classes``     ``needs_classes``, ``most_classes``
``plan.plan_release``      ``plan``, from ``uploads`` and ``charge``
the client                 ``values``, ``noised``, ``charge``
the server                 ``width``, ``gradients`` from ``cut``, ``probe``
the statement              ``covers``, ``excludes``, ``zero_out``
the audit                  ``noiseless``, ``noised``
=========================  =====================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedlora.config import PrivacyPolicy, Scenario
from fedlora.errors import FedloraError
from fedlora.privacy.accounting import Charge, gradient_sigma, planned_uploads
from fedlora.privacy.mechanisms.gaussian import clip_rows, release
from fedlora.privacy.mechanisms.head_releases import row_space, zero_sum_basis
from fedlora.privacy.mechanisms.noise import NoiseSource


@dataclass(frozen=True)
class ReleasePlan:
    """How often each sample of a client is uploaded at most, and the noise that this takes.

    Attributes
    ----------
    uploads
        Uploads of a sample's gradient that are paid for; 0 where labels are randomised.
    sigma
        Noise on each of them over the clipping norm.
    label_epsilon
        What randomised labels may cost; 0 where gradients are noised.
    """

    uploads: int = 0
    sigma: float = 0.0
    label_epsilon: float = 0.0


@dataclass(frozen=True)
class Gradients:
    """What the server computes from a release.

    Attributes
    ----------
    cut
        Gradient at the cut, shape (rows, width).
    head
        Gradient of the unreduced loss by a public head's weight, shape (classes, width); None where
        the server knows no head.
    """

    cut: torch.Tensor
    head: torch.Tensor | None


class Mechanism:
    """How what depends on a label leaves a client under a policy.

    As it stands it is the Gaussian mechanism on each sample's gradient at the cut, in all its
    dimensions: ``full``. Another mechanism inherits from it and overrides what differs.
    ``fedlora.privacy.check_mechanism`` tells whether the parts fit each other.

    Parameters
    ----------
    policy
        The run's, which is enabled.

    Attributes
    ----------
    noises_gradients
        Whether gradients are clipped and noised, so that a head that is shared every step learns
        from what was released for the cut.
    needs_head
        Whether the server has to know the head.
    needs_classes
        Whether a task without classes is refused.
    most_classes
        More classes are refused; 0: none are too many.
    repeats
        Whether a record is paid for once, and what left is repeated afterwards.
    """

    noises_gradients: ClassVar[bool] = True
    needs_head: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = False
    most_classes: ClassVar[int] = 0
    repeats: ClassVar[bool] = False

    def __init__(self, policy: PrivacyPolicy) -> None:
        self.policy = policy

    @property
    def gaussian(self) -> bool:
        """Whether a release costs what Gaussian noise costs, as ``charge`` is not overridden."""
        return type(self).charge is Mechanism.charge

    # What it refuses, and what it costs.

    def check(self, scenario: Scenario) -> None:
        """Refuse what of a scenario this mechanism cannot honour.

        Raises
        ------
        FedloraError
            In one sentence with the value and the mend.
        """
        del scenario
        for name, plain in (("spread", "even"), ("uplink", "coded")):
            found = getattr(self.policy, name)
            if not self.gaussian and found != plain:
                raise FedloraError(
                    f"privacy.{name} is {found}, which divides the cost of Gaussian noise, and "
                    f"privacy.release {self.policy.release} has another; set privacy.{name} to "
                    f"{plain}"
                )

    def uploads(self, scenario: Scenario, rows: int) -> int:
        """Return how often a sample of a client with so many is paid for at most.

        Used where ``privacy.uploads`` is 0.
        """
        train = scenario.train
        return planned_uploads(train.total_steps * train.accumulate, train.batch_size, rows)

    def charge(self, sigma: float) -> Charge:
        """Return what one release of a record costs.

        Parameters
        ----------
        sigma
            Noise over the clipping norm. More of it must not cost more.
        """
        return Charge.gaussian(sigma)

    def plan(self, scenario: Scenario, rows: int) -> ReleasePlan:
        """Return the plan of a client with so many training samples.

        Raises
        ------
        FedloraError
            When the budget is too small for it.
        """
        uploads = self.policy.uploads or self.uploads(scenario, rows)
        cost = None if self.gaussian else self._rho
        sigma = gradient_sigma(self.policy, uploads, activation_uploads=1, cost=cost)
        return ReleasePlan(uploads, sigma)

    def _rho(self, sigma: float) -> float:
        charge: object = self.charge(sigma)
        if not isinstance(charge, Charge) or not charge.rho:
            raise FedloraError(
                f"privacy.release {self.policy.release} charges {charge!r:.80} for an upload, "
                "which no plan counts; return a Charge with rho"
            )
        return charge.rho

    # What the client sends.

    def values(self, gradient: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        """Return what is clipped and noised in place of the gradient; a row for each of its rows.

        Parameters
        ----------
        gradient
            At the cut, shape (rows, width).
        weight
            The public head's weight, shape (classes, width), where ``needs_head``.

        Returns
        -------
        torch.Tensor
            Shape (rows, ``width``).
        """
        del weight
        return gradient

    def noised(
        self, values: torch.Tensor, lengths: Sequence[int], sigma: float, noise: NoiseSource
    ) -> torch.Tensor:
        """Clip each sample's values and add its noise: the only thing that leaves.

        Parameters
        ----------
        values
            As ``values`` returns them.
        lengths
            Rows that belong to each sample.
        sigma
            Standard deviation of the noise over the clipping norm.
        noise
            Where all randomness comes from: the client's own generator, never a seed that anybody
            else knows.

        Returns
        -------
        torch.Tensor
            The shape of ``values``, fp32.
        """
        policy = self.policy
        return release(
            values,
            lengths,
            clip_norm=policy.clip_norm,
            sigma=sigma,
            noise=noise,
            unit=policy.unit,
        ).values

    # What the server makes of it.

    def width(self, classes: int, width: int) -> int:
        """Return how many numbers of each row are uploaded.

        Parameters
        ----------
        classes
            Of the task; 0 where it has none.
        width
            Of the gradient at the cut.
        """
        del classes
        return width

    def cut(self, message: torch.Tensor, weight: torch.Tensor | None, width: int) -> torch.Tensor:
        """Return the gradient at the cut that values stand for, shape (rows, width).

        Parameters
        ----------
        message
            What was uploaded, shape (rows, ``width``), float64.
        weight
            The public head's weight, float64; None where the server knows none.
        width
            Of the gradient at the cut.
        """
        del weight, width
        return message

    def gradients(
        self, uploaded: torch.Tensor, z: torch.Tensor, weight: torch.Tensor | None, sigma: float
    ) -> Gradients:
        """Compute the gradient at the cut, and that of a public head, from a release.

        Parameters
        ----------
        uploaded
            As it arrived, shape (rows, ``width``).
        z
            What the client was sent, shape (rows, width).
        weight
            The public head's weight W, shape (classes, width); None where the server knows none.
        sigma
            Noise over the clipping norm, as the client says.
        """
        del sigma
        if weight is None:
            return Gradients(self.cut(uploaded.double(), None, z.shape[1]).float(), None)
        w, message = weight.detach().double(), uploaded.double()
        cut, space = self.cut(message, w, z.shape[1]), row_space(w)
        u = cut @ space.basis @ space.inverse @ zero_sum_basis(len(w)).to(w.device).T
        return Gradients(cut.float(), (u.T @ z.double()).float())

    def probe(
        self,
        z: torch.Tensor,
        weight: torch.Tensor | None,
        sigma: float,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor | None:
        """Draw noise with the covariance of that in a client's gradients at the cut.

        With the forward values fixed, backpropagation is linear, so a fresh draw of the noise gives
        a draw of what it adds to every gradient behind the cut (see
        ``fedlora.privacy.noise_propagation``). It is public and costs no privacy.

        Parameters
        ----------
        z, weight
            See ``gradients``.
        sigma
            Noise on the client's present upload over the clipping norm, root mean square over its
            samples; 0 where gradients have none.
        generator
            Source of the draw, which need not be secret.

        Returns
        -------
        torch.Tensor or None
            Shape (rows, width), fp32; None where the server cannot know.
        """
        if weight is None and self.needs_head:
            return None
        numbers = self.width(0 if weight is None else len(weight), z.shape[1])
        std = sigma * self.policy.clip_norm
        drawn = std * torch.randn(len(z), numbers, generator=generator)
        known = None if weight is None else weight.detach().double()
        return self.cut(drawn.double(), known, z.shape[1]).float()

    # What is said of it.

    @property
    def zero_out(self) -> float:
        """Cost with a zero gradient in a sample's place, over a quarter of the replace-one cost."""
        return 1.0 if self.gaussian else 4.0

    def covers(self) -> list[str]:
        """Return what a report says is covered, beside activations."""
        one = "sample as a whole" if self.policy.unit == "sample" else "single token of a sample"
        return [
            f"What the gradients that a {one} uploads tell the server, above all its label.",
            "What follows from those gradients in adapters, optimiser state and ranks.",
        ]

    def excludes(self) -> list[str]:
        """Return what a report says of this mechanism alone is not covered."""
        return []

    def noiseless(self, gradients: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return what a sample would upload for each label it could have, before noise.

        Parameters
        ----------
        gradients
            At the cut, for every label, shape (samples, classes, width).
        weight
            See ``values``.

        Returns
        -------
        torch.Tensor
            Shape (samples, classes, ``width``), float64.
        """
        samples, classes, _ = gradients.shape
        values = self.values(gradients.flatten(0, 1), weight)
        clipped = clip_rows(values, [1] * len(values), self.policy.clip_norm).values
        return clipped.view(samples, classes, -1)
