"""The committed rows of the rank study, and what was fixed before they were there."""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlora.errors import FedloraError
from simulations.studies.compare.statistics import Row, by_strategy

FOLDER = Path(__file__).parent
_NAMES = ("strategy", "channel")


@dataclass(frozen=True)
class Protocol:
    """What was fixed for a channel before the first judged trial.

    Attributes
    ----------
    ours, rivals
        Strategies, as in the rows; ours is compared with each rival.
    seeds
        The same for all strategies.
    margin
        Difference of the final held-out loss that does not matter, in nats.
    snrs_db
        Mean SNRs.
    scenario
        That was compared.
    of
        File with the rows of ours where they are another comparison's, else nothing.
    """

    ours: str
    rivals: tuple[str, ...]
    seeds: tuple[int, ...]
    margin: float
    snrs_db: tuple[float, ...]
    scenario: str = ""
    of: str = ""

    @property
    def strategies(self) -> tuple[str, ...]:
        """All that are compared."""
        return (self.ours, *self.rivals)

    @property
    def run(self) -> tuple[str, ...]:
        """Those that the comparison's own command runs."""
        return self.rivals if self.of else self.strategies


def read_protocol(name: str) -> Protocol:
    """Return what ``protocol.toml`` says of a channel, or of a further comparison."""
    table = _protocols()
    judged, own = table["judged"], table[name]
    first, last = judged["seeds"]
    return Protocol(
        own["ours"],
        tuple(own["rivals"]),
        tuple(range(first, last + 1)),
        judged["margin"],
        tuple(own.get("snrs_db", judged["snrs_db"])),
        own.get("scenario", f"study-{name}"),
        own.get("of", ""),
    )


def further() -> list[str]:
    """Return the further comparisons of ``protocol.toml`` that have rows."""
    names = [name for name, table in _protocols().items() if "scenario" in table]
    return [name for name in names if (FOLDER / f"{name}.csv").is_file()]


def _protocols() -> dict[str, dict[str, Any]]:
    return tomllib.loads((FOLDER / "protocol.toml").read_text(encoding="utf-8"))


def judged_rows(name: str) -> list[Row]:
    """Return the rows of a channel or comparison that are judged, those of ours included."""
    protocol, rows = read_protocol(name), read_rows(f"{name}.csv")
    if protocol.of:
        ours = [r for r in read_rows(protocol.of) if r["strategy"] == protocol.ours]
        rows = [*(r for r in ours if r["snr_db"] in protocol.snrs_db), *rows]
    return judged(rows, protocol)


def read_rows(name: str) -> list[dict[str, Any]]:
    """Read the rows of a comparison in this folder, numbers as numbers."""
    return [row | {"seed": int(row["seed"])} for row in read_table(name)]


def read_table(name: str) -> list[dict[str, Any]]:
    """Read a table of this folder; what is no name is a number."""
    with (FOLDER / name).open(encoding="utf-8", newline="") as stream:
        return [
            {key: value if key in _NAMES else float(value) for key, value in row.items()}
            for row in csv.DictReader(stream)
        ]


def judged(rows: Sequence[Row], protocol: Protocol) -> list[Row]:
    """Return the rows of the SNRs at which every strategy has every seed.

    Raises
    ------
    FedloraError
        When rows are of other strategies, seeds or SNRs than the protocol's, or a cell is there
        twice.
    """
    cells: set[tuple[str, float, int]] = set()
    for row in rows:
        key = (row["strategy"], row["snr_db"], row["seed"])
        known = (protocol.strategies, protocol.snrs_db, protocol.seeds)
        if key in cells or not all(k in those for k, those in zip(key, known, strict=True)):
            raise FedloraError(
                f"the row of {key[0]} at {key[1]:g} dB with seed {key[2]} is there twice or not "
                "in protocol.toml, which was fixed before; leave it out"
            )
        cells.add(key)
    whole = []
    for snr_db in protocol.snrs_db:
        here = [row for row in rows if row["snr_db"] == snr_db]
        counts = {len(own) for own in by_strategy(here).values()}
        if len(by_strategy(here)) == len(protocol.strategies) and counts == {len(protocol.seeds)}:
            whole += here
    return whole
