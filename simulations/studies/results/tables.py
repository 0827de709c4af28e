"""The tables of ``docs/results.md``, written from the rows in this folder.

``python -m simulations.studies.results.tables docs/results.md`` replaces what is between the page's
markers.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simulations.studies.compare.statistics import (
    BEST_FIXED,
    Interval,
    Row,
    by_strategy,
    interval,
    mean_of,
    paired,
    snrs_db,
    winners,
    with_best_fixed,
)

CHANNELS = ("awgn", "rayleigh")
BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"
OURS = "airllm(rounds=8)"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a comparison's rows, numbers as numbers."""
    with path.open(encoding="utf-8", newline="") as stream:
        return [
            {
                key: value if key == "strategy" else (int if key == "seed" else float)(value)
                for key, value in row.items()
            }
            for row in csv.DictReader(stream)
        ]


def shared(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the seeds that ``airllm`` has at their SNR: only like is compared."""
    ours = {(row["snr_db"], row["seed"]) for row in rows if row["strategy"] == OURS}
    return [row for row in rows if (row["snr_db"], row["seed"]) in ours]


def results(rows: Sequence[Row]) -> list[str]:
    """Return a line for each SNR and strategy: mean and half of the 95% interval."""
    lines = [
        "| SNR | strategy | seeds | reward | final loss | perplexity | Mbit | late | mean rank |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for snr_db in snrs_db(rows):
        groups = by_strategy([row for row in rows if row["snr_db"] == snr_db])
        for own in sorted(groups.values(), key=lambda own: -mean_of(own, "reward")):
            cells = [f"{snr_db:g}", _title(own), str(len(own))]
            cells += [
                _with_half(own, name, digits) for name, digits in (("reward", 3), ("loss", 3))
            ]
            cells += [f"{mean_of(own, 'metric'):.2f}", _with_half(own, "adapter_bits", 1, 1e-6)]
            cells += [f"{mean_of(own, 'late'):.1f}", f"{mean_of(own, 'mean_rank'):.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def duels(rows: Sequence[Row]) -> list[str]:
    """Return a line for each SNR: the best strategy against the second best, paired by seed."""
    lines = [
        "| SNR | winner | second | seeds | difference | 95% interval | p (Holm) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in winners(rows):
        lines.append(
            f"| {row['snr_db']:g} | {row['winner']} | {row['second']} | {row['seeds']} | "
            f"{row['difference']:+.3f} | {_range(row['low'], row['high'])} | "
            f"{row['p_holm']:.2g} |"
        )
    return lines


def savings(rows: Sequence[Row]) -> list[str]:
    """Return a line for each SNR: bits and final loss of ``airllm`` against the best fixed rank."""
    lines = [
        "| SNR | best fixed rank | seeds | bits, 95% | final loss, difference | 95% interval |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for snr_db in snrs_db(rows):
        groups = by_strategy([row for row in rows if row["snr_db"] == snr_db])
        ours, fixed = groups.get(OURS, []), groups.get(BEST_FIXED, [])
        if not ours or not fixed:
            continue
        saved = change(ours, fixed, "adapter_bits")
        half = f" ± {100 * (saved.high - saved.mean):.0f}" if np.isfinite(saved.high) else ""
        loss = interval(paired(ours, fixed, "loss"))
        lines.append(
            f"| {snr_db:g} | `{fixed[0]['chosen']}` | {len(ours)} "
            f"| {100 * saved.mean:+.0f}{half}% | {loss.mean:+.3f} | {_range(loss.low, loss.high)} |"
        )
    return lines


def change(first: Sequence[Row], second: Sequence[Row], column: str) -> Interval:
    """Return by what fraction a mean differs from another, paired by seed, and its 95% interval.

    The interval is that of a ratio of means by its first-order expansion (Cochran 1977, 2.11).
    """
    of_second = {row["seed"]: row[column] for row in second}
    base = mean_of(second, column)
    ratio = mean_of(first, column) / base
    rest = interval([(row[column] - ratio * of_second[row["seed"]]) / base for row in first])
    return Interval(ratio - 1, ratio - 1 + rest.low - rest.mean, ratio - 1 + rest.high - rest.mean)


def page() -> str:
    """Return all tables."""
    parts = []
    for channel in CHANNELS:
        rows = with_best_fixed(shared(read_rows(Path(__file__).with_name(f"{channel}.csv"))))
        own = (results(rows), duels(rows), savings(rows))
        parts.append(f"### `{channel}`\n\n" + "\n\n".join("\n".join(table) for table in own))
    return "\n\n".join(parts)


def _title(rows: Sequence[Row]) -> str:
    chosen = rows[0].get("chosen")
    return f"best fixed, `{chosen}`" if chosen else f"`{rows[0]['strategy']}`"


def _range(low: float, high: float) -> str:
    return f"{low:+.3f} to {high:+.3f}" if np.isfinite(low) else "one seed"


def _with_half(rows: Sequence[Row], column: str, digits: int, scale: float = 1.0) -> str:
    mean = interval([scale * row[column] for row in rows])
    half = mean.high - mean.mean
    return f"{mean.mean:.{digits}f}" + (f" ± {half:.{digits}f}" if np.isfinite(half) else "")


def main(path: Path) -> None:
    """Replace the tables of a page."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{page()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
