"""How much an audit does."""

from __future__ import annotations

from dataclasses import dataclass, field

from simulations.audit.attacks.inverter import Fit

START_S, RUN_STEP_S, FIT_ROW_S, INVERSION_STEP_S, MECHANISM_S = 12.0, 0.35, 0.002, 0.031, 9.5
"""Processor seconds of the quickstart's model on one core, by which an audit is foretold."""


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
    mechanism_levels
        Noises at which the mechanism is audited: the run's, then that of epsilon 1.
    """

    steps: int = 20
    depths: int = 4
    noises: tuple[float, ...] = (0.03, 0.1, 1.0)
    fit: Fit = field(default_factory=Fit)
    inverted: int = 6
    inversion_steps: int = 150
    references: int = 2
    mechanism_levels: int = 2

    @classmethod
    def quick(cls, steps: int) -> Effort:
        """Return the least that still shows each attack."""
        return cls(steps, 2, (0.1,), Fit(steps=60, rows=16), 2, 40, 1, 1)

    @property
    def quickstart_s(self) -> float:
        """Processor seconds for the quickstart's model; larger ones take longer."""
        runs = (2 + len(self.noises)) * self.steps * RUN_STEP_S
        fits = (1 + self.depths + len(self.noises)) * self.fit.steps * self.fit.rows * FIT_ROW_S
        inversions = 2 * self.inverted * self.inversion_steps * INVERSION_STEP_S
        return START_S + runs + fits + inversions + self.mechanism_levels * MECHANISM_S
