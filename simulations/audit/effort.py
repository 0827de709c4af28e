"""How much an audit does."""

from __future__ import annotations

from dataclasses import dataclass, field

from simulations.audit.attacks.inverter import Fit


@dataclass(frozen=True)
class Effort:
    """How much an audit does.

    Attributes
    ----------
    steps
        Training steps of each run that is attacked.
    depths
        Most cut depths at which tokens are recovered.
    noises
        Noise levels on activations.
    fit
        How learned inverters are trained.
    inverted, inversion_steps
        Samples of the gradient inversion, and steps of its search.
    references
        Reference models of the membership attack.
    """

    steps: int = 20
    depths: int = 4
    noises: tuple[float, ...] = (0.03, 0.1, 1.0)
    fit: Fit = field(default_factory=Fit)
    inverted: int = 6
    inversion_steps: int = 150
    references: int = 2

    @classmethod
    def quick(cls, steps: int) -> Effort:
        """Return the least that still shows each attack."""
        return cls(steps, 2, (0.1, 1.0), Fit(steps=60, rows=16), 2, 40, 1)
