"""What quality costs in bits: perplexity over that of fp32 against bits at the cut, and its plot.

    python -m simulations.bench.bits.frontier --overwrite --out docs/images/bits-quality.png
    python -m simulations.bench.bits.frontier --rows FILE --seeds 3 --only tokens --out PLOT

The first draws the rows that lie beside this file; the second trains ``e2e-tinystories`` with the
settings that are named so, or whose name begins so, and with fp32, as ``fedlora bench --only bits``
does, as far as FILE lacks their rows, and draws it.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import typer
from scipy.stats import t as student

from fedlora.errors import FedloraError
from fedlora.report.figure import COLOURS, MUTED, label, legend, panels, save
from fedlora.storage import check_new_file
from fedlora.storage.files import append_line, read_lines
from simulations.bench.bits.measure import BEST, TOKENS, passes_of, run_once
from simulations.bench.context import Settings
from simulations.options import OverwriteOption
from simulations.refusals import one_sentence

SCENARIO, EXACT = "e2e-tinystories", "fp32"
SETTINGS: Mapping[str, tuple[str, ...]] = {
    EXACT: (),
    "rotated 8, entropy 4.7, 3.2": BEST[SCENARIO],
    "tokens, entropy 4.7, 3.2": (*BEST[SCENARIO], *TOKENS),
    "tokens, entropy 4.7, 3.2, all whole": (*BEST[SCENARIO], *TOKENS, "link.residual_mib=0"),
    "tokens, entropy 5, 3": (
        *BEST[SCENARIO],
        *TOKENS,
        "link.representation_bits=5",
        "link.gradient_bits=3",
    ),
    "tokens, entropy 4.25, 3.25": (
        *BEST[SCENARIO],
        *TOKENS,
        "link.representation_bits=4.25",
        "link.gradient_bits=3.25",
    ),
}
"""By name: what is set beside the scenario; activations, representations, gradients."""
ROWS = Path(__file__).with_name("frontier.jsonl")
_MOST = 1.0  # percent of perplexity


@dataclass(frozen=True)
class Point:
    """One setting.

    Attributes
    ----------
    name
        Of the setting.
    share
        Bits at the cut of those of the raw cut, in percent, over all seeds.
    lost
        Perplexity over that of fp32 with the same seed, in percent, by seed.
    """

    name: str
    share: float
    lost: Sequence[float]

    @property
    def interval(self) -> float | None:
        """Half of the mean's 95% interval by Student's t; None of fewer than three seeds."""
        runs = len(self.lost)
        if runs < 3:
            return None
        return float(student.ppf(0.975, runs - 1)) * stdev(self.lost) / math.sqrt(runs)


def points(rows: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Return the settings of rows, with the seeds that fp32 was run with, too."""
    exact = {row["seed"]: row["perplexity"] for row in rows if row["setting"] == EXACT}
    found = []
    for name in dict.fromkeys(row["setting"] for row in rows):
        own = [row for row in rows if row["setting"] == name and row["seed"] in exact]
        if own:
            lost = [100 * (row["perplexity"] / exact[row["seed"]] - 1) for row in own]
            found.append(Point(name, 100 * fmean(row["to_raw"] for row in own), lost))
    return found


def draw(found: Sequence[Point], path: Path) -> Path:
    """Draw settings over their bits; fp32 is a line."""
    figure, (ax,) = panels(1, height=3.8)
    few = [point for point in found if point.name != EXACT]
    for colour, point in zip((*COLOURS, *COLOURS), few, strict=False):
        seeds = len(point.lost)
        told = f"{point.name} ({seeds} seed{'s' * (seeds > 1)})"
        half = point.interval
        mean = fmean(point.lost)
        ax.errorbar(point.share, mean, half, fmt="o", color=colour, ms=5, capsize=3, label=told)
    ax.axhline(_MOST, color=MUTED, linestyle=":", linewidth=1.2, label="target")
    for point in found:
        if point.name == EXACT:
            line = f"fp32: {point.share:.1f}% of the raw cut"
            ax.axhline(0.0, color=MUTED, linewidth=1.0, label=line)
    ax.margins(x=0.15, y=0.15)
    x, y = "bits at the cut, % of the raw cut", "perplexity over that of fp32, %"
    label(ax, title=f"{SCENARIO}: what quality costs", x=x, y=y)
    legend(ax, columns=2)
    return save(figure, path)


def choose(only: Sequence[str]) -> list[str]:
    """Return fp32, and the settings that are named, or whose name begins so.

    Raises
    ------
    FedloraError
        When none is.
    """
    found = {EXACT}
    for own in only:
        named = {own} & set(SETTINGS) or {name for name in SETTINGS if name.startswith(own)}
        if not named:
            told = "; ".join(SETTINGS)
            raise FedloraError(f"--only is {own!r:.80}, as no setting begins; there are {told}")
        found |= named
    return [name for name in SETTINGS if name in found]


def read(path: Path) -> Sequence[Mapping[str, Any]]:
    """Return the rows of a file; none where there is none.

    Raises
    ------
    FedloraError
        When it holds something else.
    """
    rows, _ = read_lines(path)
    for row in rows:
        numbers = (row.get("to_raw"), row.get("perplexity"))
        if row.get("setting") not in SETTINGS or not all(isinstance(n, float) for n in numbers):
            raise FedloraError(f"{path} holds something else than rows of this study; name another")
    return rows


def main(
    out: Annotated[Path, typer.Option(help="The plot, as PNG.")],
    rows: Annotated[Path, typer.Option(help="File of rows; new ones are added.")] = ROWS,
    seeds: Annotated[int, typer.Option(min=0, help="Runs each; 0 draws what is there.")] = 0,
    only: Annotated[
        list[str] | None, typer.Option(help="This setting, or all whose name begins so.")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Train what is missing, and draw perplexity over bits."""
    check_new_file(out, "--out", overwrite=overwrite)
    there = {(row["setting"], row["seed"]) for row in read(rows)}
    chosen = choose(only or [""])
    for seed in range(seeds):
        for name in chosen:
            if (name, seed) not in there:
                print(f"training {name}, seed {seed}", file=sys.stderr)
                began = time.perf_counter()
                own = run_once(passes_of(Settings(), SCENARIO, seed, SETTINGS[name]))
                row: dict[str, Any] = {"setting": name, "seed": seed}
                row |= {"to_raw": round(own.bits / own.raw_bits, 6)}
                row |= {"perplexity": round(own.metric, 6)}
                row |= {"seconds": round(time.perf_counter() - began, 1)}
                append_line(rows, row, sync=False)
    found = points(read(rows))
    if not found:
        raise FedloraError(f"{rows} holds no seed of {EXACT} and another; train some by --seeds 1")
    for point in found:
        half = "" if point.interval is None else f" +- {point.interval:.2f}"
        print(f"{point.name}: {point.share:.2f}%, {fmean(point.lost):+.2f}{half}%")
    draw(found, out)


if __name__ == "__main__":
    with one_sentence():
        typer.run(main)
