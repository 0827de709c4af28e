"""Means with confidence intervals, paired differences, and who wins."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

Row = Mapping[str, Any]

CONFIDENCE = 0.95
BEST_FIXED = "best fixed rank"
FIXED = re.compile(r"uniform(\(.*\))?")

WINNER_COLUMNS = (
    "snr_db",
    "winner",
    "second",
    "seeds",
    "reward",
    "second_reward",
    "difference",
    "low",
    "high",
    "p",
    "p_holm",
    "metric",
    "second_metric",
    "adapter_bits",
    "second_adapter_bits",
)


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% confidence interval (Student's t; infinite for one value)."""

    mean: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether there is one: of a single value there is not."""
        return bool(np.isfinite(self.low))


ANY = (-np.inf, np.inf)
LIMITS = {"accuracy": (0.0, 1.0), "perplexity": (1.0, np.inf), "adapter_bits": (0.0, np.inf)}
"""Between which values a mean of what is measured can lie."""


def interval(values: Sequence[float], limits: tuple[float, float] = ANY) -> Interval:
    """Return the mean of independent values with its interval.

    Parameters
    ----------
    values
        One a seed.
    limits
        Between which their mean can lie; the interval ends there.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, -np.inf, np.inf)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values))
    low, high = limits
    return Interval(mean, min(mean, max(low, mean - half)), max(mean, min(high, mean + half)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values (Holm, Scand. J. Statist. 6, 1979).

    Parameters
    ----------
    p_values
        Of the tests of one family.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def with_best_fixed(rows: Sequence[Row]) -> list[Row]:
    """Replace all ``uniform`` strategies by the one with the highest mean reward at each SNR.

    The rank is chosen with the seeds that it is judged by, which favours it.
    """
    others = [row for row in rows if not FIXED.fullmatch(row["strategy"])]
    fixed = [row for row in rows if FIXED.fullmatch(row["strategy"])]
    for snr_db in snrs_db(fixed):
        here = by_strategy([row for row in fixed if row["snr_db"] == snr_db])
        # A rank that was tried with few seeds only must not win by luck.
        most = max(len(own) for own in here.values())
        here = {name: own for name, own in here.items() if len(own) == most}
        best = max(here, key=lambda name: mean_of(here[name], "reward"))
        others += [{**row, "strategy": BEST_FIXED, "chosen": best} for row in here[best]]
    return others


def winners(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return for each SNR the best and the second best strategy, paired by seed.

    Where they were run with different seeds, the two are judged by those that both have; where
    they have none in common, the SNR is left out. The p-values of the SNRs are one family for
    Holm's correction.
    """
    table: list[dict[str, Any]] = []
    for snr_db in snrs_db(rows):
        here = by_strategy([row for row in rows if row["snr_db"] == snr_db])
        order = sorted(here, key=lambda name: -mean_of(here[name], "reward"))
        if len(order) < 2:
            continue
        first, second = _shared(here[order[0]], here[order[1]])
        if not first:
            continue
        difference = paired(first, second, "reward")
        gap = interval(difference)
        table.append(
            {
                "snr_db": snr_db,
                "winner": _name(first),
                "second": _name(second),
                "seeds": len(difference),
                "reward": mean_of(first, "reward"),
                "second_reward": mean_of(second, "reward"),
                "difference": gap.mean,
                "low": gap.low if gap.known else None,
                "high": gap.high if gap.known else None,
                "p": p_value(difference),
                "metric": mean_of(first, "metric"),
                "second_metric": mean_of(second, "metric"),
                "adapter_bits": mean_of(first, "adapter_bits"),
                "second_adapter_bits": mean_of(second, "adapter_bits"),
            }
        )
    for row, p in zip(table, holm([row["p"] for row in table]), strict=True):
        row["p_holm"] = p
    return table


def _shared(first: Sequence[Row], second: Sequence[Row]) -> tuple[Sequence[Row], Sequence[Row]]:
    """Return two strategies' rows of the seeds that both have, the better one first."""
    seeds = {row["seed"] for row in first} & {row["seed"] for row in second}
    one, other = ([row for row in rows if row["seed"] in seeds] for rows in (first, second))
    if seeds and mean_of(one, "reward") < mean_of(other, "reward"):
        one, other = other, one
    return one, other


def paired(first: Sequence[Row], second: Sequence[Row], column: str) -> list[float]:
    """Return the differences of a column, seed by seed."""
    of_second = {row["seed"]: row[column] for row in second}
    return [row[column] - of_second[row["seed"]] for row in first if row["seed"] in of_second]


def p_value(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of a paired t-test; 1 where it cannot be computed."""
    if len(differences) < 2:
        return 1.0
    if np.ptp(differences) == 0:
        return 0.0 if differences[0] else 1.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def snrs_db(rows: Sequence[Row]) -> list[float]:
    """Return the SNRs that occur, in order."""
    return sorted({row["snr_db"] for row in rows})


def by_strategy(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Group rows by strategy, in the order of their first row."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["strategy"], []).append(row)
    return groups


def mean_of(rows: Sequence[Row], column: str) -> float:
    """Return the mean of a column."""
    return float(np.mean([row[column] for row in rows]))


def _name(rows: Sequence[Row]) -> str:
    chosen = rows[0].get("chosen")
    return f"{rows[0]['strategy']}, {chosen}" if chosen else str(rows[0]["strategy"])
