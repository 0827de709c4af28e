"""The claims of ``docs/results.md``: at which SNRs the rows bear them out, what repeats them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from simulations.studies.compare.frontier import frontier
from simulations.studies.kit.pages import markdown_line
from simulations.studies.results.judge import verdicts
from simulations.studies.results.rows import (
    FOLDER,
    judged_rows,
    read_protocol,
)


@dataclass(frozen=True)
class Claim:
    """A sentence of the page that rows can contradict.

    Attributes
    ----------
    says
        The sentence.
    rows
        File with the rows that it stands on.
    command
        What repeats them.
    cell
        One of the rows (strategy, snr_db, seed), for who repeats only that.
    rival
        With which ours is compared.
    reward, loss, bits
        What the verdict has to be, one of several.
    frontier
        ``loss`` or ``reward``: on which frontier ours is.
    """

    says: str
    rows: str
    command: str
    cell: dict[str, Any]
    rival: str = ""
    reward: tuple[str, ...] = ()
    loss: tuple[str, ...] = ()
    bits: tuple[str, ...] = ()
    frontier: str = ""

    @property
    def comparison(self) -> str:
        """What of ``protocol.toml`` the rows are of."""
        return self.rows.removesuffix(".csv")

    def holds(self) -> dict[float, bool]:
        """Return at which SNRs the rows bear the claim out."""
        protocol, rows = read_protocol(self.comparison), judged_rows(self.comparison)
        if self.frontier:
            key = f"on_{self.frontier}_frontier"
            own = [row for row in frontier(rows) if row["strategy"] == protocol.ours]
            return {row["snr_db"]: bool(row[key]) for row in own}
        return {
            v.snr_db: all(
                not allowed or found in allowed
                for found, allowed in (
                    (v.reward_is, self.reward),
                    (v.loss_is, self.loss),
                    (v.bits_are, self.bits),
                )
            )
            for v in verdicts(rows, protocol)
            if v.rival == self.rival
        }


def read_claims() -> list[Claim]:
    """Return the claims of ``claims.toml``."""
    table = tomllib.loads((FOLDER / "claims.toml").read_text(encoding="utf-8"))
    lists = ("reward", "loss", "bits")

    def fields(claim: dict[str, Any]) -> dict[str, Any]:
        return {key: tuple(v) if key in lists else v for key, v in claim.items()}

    return [Claim(**fields(claim)) for claim in table["claim"]]


def claims_table() -> list[str]:
    """Return what makes each file of rows, and where each claim on them holds and where not."""
    lines: list[str] = []
    for command, claims in groupby(read_claims(), lambda claim: claim.command):
        titles = ("claim", "holds at, dB", "not at, dB", "rows")
        lines += ["", f"    {command}", "", markdown_line(*titles), markdown_line(*["---"] * 4)]
        for claim in claims:
            found = claim.holds()
            at = [
                ", ".join(f"{snr_db:g}" for snr_db, held in found.items() if held is wanted)
                for wanted in (True, False)
            ]
            lines.append(
                markdown_line(claim.says, at[0] or "none", at[1] or "none", f"`{claim.rows}`")
            )
    return [*lines[1:], ""]
