"""The tables of ``docs/csi.md``, written from the rows in ``results``.

``python -m simulations.csi.tables`` replaces each table of the page by what the rows say;
``--check`` tells whether it would.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from fedlora.config import load_scenario
from fedlora.report import decibels
from fedlora.storage import read_lines
from simulations.csi import sharing
from simulations.csi.air import raw_bytes, trained_samples
from simulations.csi.study import gaps, grouped, with_half
from simulations.csi.trial import AUTOREGRESSION, SPLIT, Row
from simulations.refusals import one_sentence
from simulations.studies.compare.statistics import interval
from simulations.studies.kit.folder import SCENARIO, TRIALS
from simulations.studies.kit.pages import keep_page, markdown_head, markdown_line

PAGE = Path("docs/csi.md")
FOLDER = Path(__file__).parent / "results"
SETTINGS = ("cdl", "sampled-2.35-ms")
_HOW = {
    "untrained": "no training",
    "own": "each site alone",
    "union": "all in one place",
    "federated": "federated, {}",
}


def read_rows(setting: str) -> list[Row]:
    """Return the committed rows of a setting, by the name of its folder."""
    return [Row(**line) for line in read_lines(FOLDER / setting / TRIALS)[0]]


def models(rows: Sequence[Row]) -> list[str]:
    """Return a line for each model and way of learning: means over seeds, the best first."""
    speeds = " / ".join(rows[0].scores["nmse_by_speed"])
    lines = []
    for (model, how, sites), own in grouped(rows).items():
        nmse = interval(_decibels(own, "nmse"))
        by_speed = [
            interval([decibels(row.scores["nmse_by_speed"][speed]) for row in own]).mean
            for speed in own[0].scores["nmse_by_speed"]
        ]
        sent = sum(row.bytes for row in own) / len(own)
        drawn = how != "untrained" and model != AUTOREGRESSION
        cells = (
            *(model, _HOW[how].format(_sites(sites)), str(len(own)) if drawn else ""),
            *(f"{with_half(nmse)} dB", f"{interval(_decibels(own, 'nmse_mean')).mean:.1f} dB"),
            *(" / ".join(f"{value:.1f}" for value in by_speed), f"{_mean(own, 'sgcs'):.3f}"),
            *(f"{_mean(own, 'rate'):.2f}", f"{sent / 1e6:.1f}" if sent else ""),
        )
        lines.append((nmse.mean, markdown_line(*cells)))
    head = markdown_head(
        *("model", "samples", "seeds", "NMSE", "mean of ratios", f"{speeds} km/h", "SGCS"),
        *("rate, bit/s/Hz", "MB"),
    )
    return head + [line for _, line in sorted(lines)]


def targets(rows: Sequence[Row]) -> list[str]:
    """Return a line for each target."""
    lines = markdown_head("federated split", "seeds", "target", "found", "met")
    for gap in gaps(rows):
        found = interval(gap.values)
        met = "yes" if found.mean <= gap.target else "**no**"
        seeds, most = str(len(gap.values)), f"at most {gap.target:+g} dB"
        lines.append(markdown_line(gap.title, seeds, most, f"{with_half(found)} dB", met))
    return lines


def sent(setting: str) -> list[str]:
    """Return a line for each kind that the split runs over all sites sent, and one for all."""
    scenario = load_scenario(FOLDER / setting / SCENARIO)
    rows = read_rows(setting)
    most = max(row.sites for row in rows)
    split = [r for r in rows if (r.model, r.how, r.sites) == (SPLIT, "federated", most)]
    raw = raw_bytes(scenario, trained_samples(scenario))
    kinds = {
        kind: sum(row.bytes_by_kind[kind] for row in split) / len(split) / raw
        for kind, number in split[0].bytes_by_kind.items()
        if number
    }
    lines = markdown_head("direction and kind", "bytes over raw CSI")
    for kind, part in sorted(kinds.items(), key=lambda item: -item[1]):
        lines.append(markdown_line(kind, f"{part:.3f}"))
    return [*lines, markdown_line("all", f"{sum(kinds.values()):.3f}")]


def sharing_rows() -> list[sharing.Row]:
    """Return the committed rows of the study of sharing."""
    return [sharing.Row(**line) for line in read_lines(FOLDER / "sharing" / TRIALS)[0]]


def shared(rows: Sequence[sharing.Row]) -> list[str]:
    """Return a line for each model and number of samples, with what federation wins."""
    best = sharing.best_passes(rows)
    speeds = " / ".join(rows[0].test["home_by_speed"])
    lines = markdown_head(
        *("begins with", "samples a site", "seeds", "federated", "in one place", "alone"),
        *("alone, on all sites' channels", f"federation wins (at {speeds} km/h)"),
        *("on all sites' channels", "passes", "MB"),
    )
    for start, samples in dict.fromkeys((row.start, row.samples) for row in rows):
        groups = [(start, samples, way) for way in sharing.WAYS]
        own = [[r for r in rows if r.trial == sharing.Trial(*g, best[g], r.seed)] for g in groups]
        federated, _, alone = own
        means = [interval([decibels(row.test["home"]) for row in way]) for way in own]
        means += [interval([decibels(row.test["everywhere"]) for row in alone])]
        sent = sum(row.bytes for row in federated) / len(federated)
        cells = (start, str(samples), str(len(federated)), *(f"{with_half(m)} dB" for m in means))
        won = (_won(federated, alone, name) for name in ("home", "everywhere"))
        passes = " / ".join(str(best[group]) for group in groups)
        lines.append(markdown_line(*cells, *won, passes, f"{sent / 1e6:.1f}"))
    return lines


def _won(federated: Sequence[sharing.Row], alone: Sequence[sharing.Row], name: str) -> str:
    """Return by how much one is better than the other, paired by seed, over all and by speed."""
    others = {row.seed: row.test for row in alone}
    pairs = [(others[row.seed], row.test) for row in federated]
    whole = interval([decibels(other[name] / own[name]) for other, own in pairs])
    by_speed = f"{name}_by_speed"
    parts = [
        interval([decibels(other[by_speed][speed] / own[by_speed][speed]) for other, own in pairs])
        for speed in pairs[0][1][by_speed]
    ]
    return f"{with_half(whole)} dB ({' / '.join(f'{part.mean:.1f}' for part in parts)})"


def tables() -> dict[str, Callable[[], list[str]]]:
    """Return what writes each table of the page, by the name in its mark."""
    found: dict[str, Callable[[], list[str]]] = {"sent": partial(sent, SETTINGS[0])}
    found |= {"sharing": partial(shared, sharing_rows())}
    for setting in SETTINGS:
        rows = read_rows(setting)
        found |= {f"{setting}-models": partial(models, rows)}
        found |= {f"{setting}-targets": partial(targets, rows)}
    return found


def _sites(number: int) -> str:
    return "1 site" if number == 1 else f"{number} sites"


def _decibels(rows: Sequence[Row], name: str) -> list[float]:
    return [decibels(row.scores[name]) for row in rows]


def _mean(rows: Sequence[Row], name: str) -> float:
    return float(interval([row.scores[name] for row in rows]).mean)


if __name__ == "__main__":
    with one_sentence():
        keep_page(PAGE, tables(), sys.argv[1:])
