"""What a study of noise runs: the energies once, and a curve for each noise."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from fedlora.config import Scenario
from simulations.studies.cascade.energy import compare
from simulations.studies.cascade.trend import run_curve


@dataclass(frozen=True)
class Trial:
    """One of them.

    Attributes
    ----------
    sigma
        Noise of the curve; None for the energies, which are taken at the scenario's own.
    """

    sigma: float | None

    @property
    def key(self) -> float | None:
        """What tells trials apart."""
        return self.sigma

    def __str__(self) -> str:
        """Return a few words for a line of progress."""
        return "energies" if self.sigma is None else f"loss at sigma {self.sigma:g}"


def run_trial(trial: Trial, base: Scenario, rounds: int, draws: int) -> dict[str, Any]:
    """Run a trial in this process; return its sigma, and the curve or the energies.

    Parameters
    ----------
    trial
        What to run.
    base
        The scenario, under privacy.
    rounds, draws
        Rounds before energies are taken, and backward passes of each kind.
    """
    if trial.sigma is not None:
        return {"sigma": trial.sigma, "curve": asdict(run_curve(base, trial.sigma))}
    short = replace(
        base,
        train=replace(base.train, rounds=rounds),
        head=replace(base.head, share="personal"),
        privacy=replace(base.privacy, release="full"),
        evaluate=replace(base.evaluate, report=False, baseline=False),
    )
    return {"sigma": None, "energies": [asdict(energy) for energy in compare(short, draws)]}
