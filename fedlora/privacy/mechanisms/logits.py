"""``logits``: the label alone, as a noised corner of a simplex, drawn and paid once for a record.

Of the residual u = p - y only the label y is private: the server has sent z and knows W, hence p.
So the client releases y, as one of K corners that are 2C apart; nothing is clipped, whatever the
server sends. The message does not depend on the step. It is noised and paid once for each sample,
and repeated afterwards, whereas fresh noise in each of T passes would have to be sqrt(T) times
larger. The server takes the gradient of the likelihood of what it received,
-log sum_k p_k N(received; corner_k, s^2 I), by the logits: p - q, where q is the posterior of the
label. It goes to p - y as the noise goes to zero.

===================  ================================
``label_corners``    the simplex, shape (K, K - 1)
``label_reach``      norm of a corner over C
===================  ================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from fedlora.config import Scenario
from fedlora.privacy.mechanisms.base import Gradients, Mechanism
from fedlora.privacy.mechanisms.gaussian import release
from fedlora.privacy.mechanisms.head_releases import MOST_CLASSES, believed_labels, zero_sum_basis
from fedlora.privacy.mechanisms.noise import NoiseSource


def label_corners(classes: int, clip_norm: float) -> torch.Tensor:
    """Return what each label is released as: K points that are all 2C apart.

    Parameters
    ----------
    classes
        Number K of classes.
    clip_norm
        C; any two samples' messages differ by at most 2C, as clipped gradients do.

    Returns
    -------
    torch.Tensor
        Shape (K, K - 1), float64.
    """
    return zero_sum_basis(classes) * (math.sqrt(2.0) * clip_norm)


def label_reach(classes: int) -> float:
    """Return the norm of ``label_corners`` over C: from 1 for two classes towards sqrt(2)."""
    return math.sqrt(2 * (classes - 1) / classes)


class Logits(Mechanism):
    """Noises a message about each label, and sends it in place of all its gradients."""

    needs_head = True
    most_classes = MOST_CLASSES
    repeats = True

    def uploads(self, scenario: Scenario, rows: int) -> int:
        """See ``Mechanism``: drawn once, repeated afterwards."""
        del scenario, rows
        return 1

    def messages(self, classes: int) -> torch.Tensor:
        """Return what each label is released as before noise, shape (classes, numbers), float64."""
        return label_corners(classes, self.policy.clip_norm)

    def noised(
        self, values: torch.Tensor, lengths: Sequence[int], sigma: float, noise: NoiseSource
    ) -> torch.Tensor:
        """See ``Mechanism``; messages are of a norm of at most ``label_reach`` and none is cut."""
        reach = label_reach(values.shape[1] + 1)
        return release(
            values,
            lengths,
            clip_norm=reach * self.policy.clip_norm,
            sigma=sigma / reach,
            noise=noise,
            unit=self.policy.unit,
        ).values

    def width(self, classes: int, width: int) -> int:
        """See ``Mechanism``."""
        del width
        return classes - 1

    def gradients(
        self, uploaded: torch.Tensor, z: torch.Tensor, weight: torch.Tensor | None, sigma: float
    ) -> Gradients:
        """See ``Mechanism``."""
        assert weight is not None
        w, x, message = weight.detach().double(), z.double(), uploaded.double()
        corners = self.messages(len(w)).to(w.device)
        logits = x @ w.T
        # the corners have equal norms, so their distances differ by the inner product alone
        evidence = message @ corners.T / (sigma * self.policy.clip_norm) ** 2
        u = torch.softmax(logits, -1) - torch.softmax(logits + evidence, -1)
        return Gradients((u @ w).float(), (u.T @ x).float())

    def probe(
        self,
        z: torch.Tensor,
        weight: torch.Tensor | None,
        sigma: float,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor | None:
        """See ``Mechanism``.

        Of two messages about one label, drawn by the model's own belief, half the squared
        difference has the expectation of the noise's energy.
        """
        if weight is None:
            return None
        w = weight.detach().double()
        logits, label = believed_labels(z, w, generator)
        corners, std = self.messages(len(w)), sigma * self.policy.clip_norm

        def target() -> torch.Tensor:
            shape = len(z), corners.shape[1]
            noise = torch.randn(*shape, generator=generator, dtype=torch.float64)
            evidence = (corners[label] + std * noise) @ corners.T / std**2
            return torch.softmax(logits + evidence, -1)

        first, second = target(), target()
        return ((first - second) @ w / math.sqrt(2)).float()

    @property
    def zero_out(self) -> float:
        """See ``Mechanism``: labels are released as points of a norm of up to sqrt(2) C."""
        return 2.0

    def noiseless(self, gradients: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """See ``Mechanism``: the same whatever the gradient."""
        del weight
        samples, classes, _ = gradients.shape
        return self.messages(classes).expand(samples, classes, -1)
