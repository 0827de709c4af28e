"""Many random scenarios, one after the other."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simulations.fuzz.case import keep_case
from simulations.fuzz.examine import Outcome, quietly
from simulations.fuzz.keys import draw_case
from simulations.fuzz.shrink import SHRINK_S, shrink, try_case


@dataclass
class Fault:
    """A scenario with faults.

    Attributes
    ----------
    number
        ``fedlora fuzz --seed NUMBER --trials 1`` draws it again.
    faults
        What is wrong.
    scenario
        File of the smallest scenario that shows it, with its data beside it.
    """

    number: int
    faults: list[str]
    scenario: str


@dataclass
class Campaign:
    """What scenarios came to.

    Attributes
    ----------
    seed
        Number of the first; they are counted up.
    kinds
        How many ran, were refused, and so on.
    verdicts
        How many each oracle looked at.
    faults
        Those that are wrong.
    seconds
        Of all of them.
    """

    seed: int
    kinds: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def trials(self) -> int:
        """Scenarios so far."""
        return sum(self.kinds.values())

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON takes it."""
        return {
            "seed": self.seed,
            "trials": self.trials,
            "kinds": dict(self.kinds),
            "verdicts": dict(self.verdicts),
            "faults": [vars(fault) for fault in self.faults],
            "seconds": self.seconds,
        }


Told = Callable[[int, Outcome], None]


def run_campaign(
    trials: int,
    seed: int,
    assets: Path,
    out: Path,
    *,
    limit_s: float = float("inf"),
    shrink_s: float = SHRINK_S,
    told: Told | None = None,
) -> Campaign:
    """Draw scenarios and examine them; write the smallest scenario of each fault.

    Parameters
    ----------
    trials
        How many.
    seed
        Number of the first.
    assets
        Where models and adapters are made, once for all.
    out
        Where the smallest scenarios go, each in a folder ``fault-NUMBER``.
    limit_s
        After so many seconds no further one is begun.
    shrink_s
        See ``shrink``.
    told
        Called after each with its number and outcome.
    """
    campaign, began = Campaign(seed), time.monotonic()
    with quietly():
        for number in range(seed, seed + trials):
            if time.monotonic() - began > limit_s:
                break
            case = draw_case(number)
            found = try_case(case, assets)
            campaign.kinds[found.kind] += 1
            campaign.verdicts.update(list(found.verdicts))
            if told is not None:
                told(number, found)
            if found.faults:
                small = shrink(case, found, assets, limit_s=shrink_s)
                path = keep_case(small, out / f"fault-{number}", assets)
                campaign.faults.append(Fault(number, found.faults, str(path)))
    campaign.seconds = time.monotonic() - began
    return campaign
