"""The tables of ``docs/results.md``, written from the rows in this folder.

``python -m simulations.studies.results.tables`` replaces each table of the page by what the rows
say; ``--check`` tells whether it would.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from simulations.refusals import one_sentence
from simulations.studies.compare.frontier import frontier
from simulations.studies.compare.statistics import (
    Row,
    by_strategy,
    interval,
    mean_of,
    snrs_db,
)
from simulations.studies.kit.pages import keep_page, markdown_head, markdown_line
from simulations.studies.results.claims import claims_table
from simulations.studies.results.judge import verdicts
from simulations.studies.results.rows import (
    FOLDER,
    Protocol,
    further,
    judged_rows,
    read_protocol,
    read_rows,
    read_table,
)

PAGE = Path("docs/results.md")
CHANNELS = ("awgn", "rayleigh")


def means(rows: Sequence[Row]) -> list[str]:
    """Return a line for each SNR and strategy: means, half intervals, and who is on a frontier."""
    lines = markdown_head(
        *("SNR", "strategy", "seeds", "reward", "final loss", "Mbit", "late", "mean rank"),
        *("loss frontier", "reward frontier"),
    )
    on = {(r["snr_db"], r["strategy"]): r for r in frontier(rows)}
    for snr_db in snrs_db(rows):
        groups = by_strategy([row for row in rows if row["snr_db"] == snr_db])
        for name, own in sorted(groups.items(), key=lambda item: -mean_of(item[1], "reward")):
            flags = on[(snr_db, name)]
            lines.append(
                markdown_line(
                    *(f"{snr_db:g}", f"`{name}`", str(len(own))),
                    *(_with_half(own, "reward", 3), _with_half(own, "loss", 3)),
                    _with_half(own, "adapter_bits", 1, 1e-6),
                    *(f"{mean_of(own, 'late'):.1f}", f"{mean_of(own, 'mean_rank'):.2f}"),
                    *("yes" if flags[f"on_{of}_frontier"] else "" for of in ("loss", "reward")),
                )
            )
    return lines


def duels(rows: Sequence[Row], protocol: Protocol) -> list[str]:
    """Return a line for each SNR and rival, paired by seed."""
    lines = markdown_head(
        *("SNR", "rival", "bits", "bits are", "reward, difference", "p (Holm)"),
        *("reward is", "final loss, difference", "p (Holm)", "TOST p (Holm)", "loss is"),
    )
    for v in verdicts(rows, protocol):
        lines.append(
            markdown_line(
                *(f"{v.snr_db:g}", f"`{v.rival}`"),
                f"{100 * v.bits.mean:+.0f} ± {100 * (v.bits.high - v.bits.mean):.0f}%",
                *(v.bits_are, _range(v.rewards), f"{v.p_reward:.2g}", v.reward_is),
                *(_range(v.losses), f"{v.p_loss:.2g}", f"{v.p_equal:.2g}", v.loss_is),
            )
        )
    return lines


def profile(losses: Mapping[str, Sequence[float]]) -> list[str]:
    """Return a line for each rank: the held-out loss after each round."""
    rounds = range(1, len(losses["1"]) + 1)
    lines = markdown_head("rank", *(f"round {number}" for number in rounds))
    for rank, own in losses.items():
        lines.append(markdown_line(rank, *(f"{loss:.2f}" for loss in own)))
    return lines


def chosen(rows: Sequence[Row]) -> list[str]:
    """Return a line for each channel and strategy on the table of losses: means over the SNRs."""
    lines = markdown_head("channel", "strategy", "reward", "ranks sent", "final loss")
    for channel in CHANNELS:
        for name, own in by_strategy([r for r in rows if r["channel"] == channel]).items():
            figures = [mean_of(own, column) for column in ("reward", "sent", "final_loss")]
            cells = (f"{figures[0]:.3f}", f"{figures[1]:.1f}", f"{figures[2]:.3f}")
            lines.append(markdown_line(channel, f"`{name}`", *cells))
    return lines


def tables() -> dict[str, Callable[[], list[str]]]:
    """Return what writes each table of the page, by the name in its marker."""
    found: dict[str, Callable[[], list[str]]] = {
        "profile": lambda: profile(json.loads((FOLDER / "profile.json").read_bytes())),
        "chosen": lambda: chosen(read_table("chosen.csv")),
        "claims": claims_table,
        "fixed": lambda: means([*_at_5_db("awgn"), *read_rows("fixed.csv")]),
    }
    for name in (*CHANNELS, *further()):
        found[f"{name}-means"] = lambda name=name: means(judged_rows(name))  # type: ignore[misc]
        found[f"{name}-duels"] = lambda name=name: duels(  # type: ignore[misc]
            judged_rows(name), read_protocol(name)
        )
    return found


def _at_5_db(channel: str) -> list[Row]:
    return [row for row in judged_rows(channel) if row["snr_db"] == 5.0]


def _range(differences: Sequence[float]) -> str:
    gap = interval(differences)
    return f"{gap.mean:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"


def _with_half(rows: Sequence[Row], column: str, digits: int, scale: float = 1.0) -> str:
    mean = interval([scale * row[column] for row in rows])
    half = mean.high - mean.mean
    return f"{mean.mean:.{digits}f}" + (f" ± {half:.{digits}f}" if np.isfinite(half) else "")


if __name__ == "__main__":
    with one_sentence():
        keep_page(PAGE, tables(), sys.argv[1:])
