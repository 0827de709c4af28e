"""Which strategies nobody beats at fewer bits, and which are equal within a margin fixed before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from simulations.studies.compare.statistics import (
    Row,
    by_strategy,
    holm,
    interval,
    mean_of,
    paired,
    snrs_db,
)

FRONTIER_COLUMNS = (
    *("snr_db", "strategy", "seeds", "adapter_bits", "loss", "reward"),
    *("on_loss_frontier", "on_reward_frontier"),
)
EQUIVALENCE_COLUMNS = (
    *("snr_db", "winner", "strategy", "seeds", "loss_difference", "low", "high"),
    *("margin", "p_tost", "p_holm", "equal"),
)
SIGNIFICANCE = 0.05


def frontier(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return each strategy's means at each SNR, and whether another does better at no more bits.

    Strategies are compared over the seeds that all of an SNR have; where they have none in common,
    the SNR is left out.

    Returns
    -------
    list of dict
        With the keys ``FRONTIER_COLUMNS``; at each SNR by bits.
    """
    table: list[dict[str, Any]] = []
    for snr_db in snrs_db(rows):
        here = _common([row for row in rows if row["snr_db"] == snr_db])
        means = [
            {
                "snr_db": snr_db,
                "strategy": name,
                "seeds": len(own),
                **{column: mean_of(own, column) for column in ("adapter_bits", "loss", "reward")},
            }
            for name, own in here.items()
        ]
        for mean in means:
            mean["on_loss_frontier"] = not any(_beats(o, mean, "loss", 1) for o in means)
            mean["on_reward_frontier"] = not any(_beats(o, mean, "reward", -1) for o in means)
        table += sorted(means, key=lambda mean: (mean["adapter_bits"], mean["strategy"]))
    return table


def equivalence(rows: Sequence[Row], margin: float) -> list[dict[str, Any]]:
    """Test whether strategies end at the loss of the one with the highest mean reward.

    Two one-sided paired t-tests (Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987) at each SNR,
    with Holm's correction over all of them. That a difference is not significant is no evidence
    that there is none.

    Parameters
    ----------
    rows
        Of finished trials.
    margin
        Difference of the final held-out loss that does not matter, in nats; fixed before any row.

    Returns
    -------
    list of dict
        With the keys ``EQUIVALENCE_COLUMNS``.
    """
    table: list[dict[str, Any]] = []
    for snr_db in snrs_db(rows):
        here = _common([row for row in rows if row["snr_db"] == snr_db])
        if not here:
            continue
        winner = max(here, key=lambda name: mean_of(here[name], "reward"))
        for name, own in here.items():
            differences = paired(own, here[winner], "loss")
            if name == winner or len(differences) < 2:
                continue
            gap = interval(differences)
            table.append(
                {
                    **{"snr_db": snr_db, "winner": winner, "strategy": name},
                    **{"seeds": len(differences), "loss_difference": gap.mean},
                    **{"low": gap.low, "high": gap.high, "margin": margin},
                    "p_tost": tost(differences, margin),
                }
            )
    for row, p in zip(table, holm([row["p_tost"] for row in table]), strict=True):
        row |= {"p_holm": p, "equal": p < SIGNIFICANCE}
    return table


def tost(differences: Sequence[float], margin: float) -> float:
    """Return the p-value of the hypothesis that a mean difference is beyond a margin."""
    if np.ptp(differences) == 0:
        return 0.0 if abs(differences[0]) < margin else 1.0
    lower = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
    upper = stats.ttest_1samp(differences, margin, alternative="less").pvalue
    return float(max(lower, upper))


def _common(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows by strategy, of the seeds that all strategies have."""
    groups = by_strategy(rows)
    seeds = set.intersection(*({row["seed"] for row in own} for own in groups.values()))
    if not seeds:
        return {}
    return {name: [row for row in own if row["seed"] in seeds] for name, own in groups.items()}


def _beats(other: dict[str, Any], one: dict[str, Any], column: str, sign: int) -> bool:
    """Tell whether another is no worse in bits and in a column, and better in one of them."""
    bits = other["adapter_bits"] - one["adapter_bits"]
    worse = sign * (other[column] - one[column])
    return bool(bits <= 0 and worse <= 0 and (bits < 0 or worse < 0))
