"""The plots of the case study: NMSE over rounds, noise, speed and bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from fedlora.report import decibels
from fedlora.report.figure import COLOURS, label, legend, log_scale, panels, save
from simulations.csi.trial import GRUS, SPLIT, Row
from simulations.studies.compare.statistics import interval

Key = tuple[str, str, int]


def draw_all(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Write the plots that rows suffice for into a folder, and return them."""
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.model, row.how, row.sites), []).append(row)
    most = max((row.sites for row in rows), default=0)
    drawn = [_rounds(folder, groups, most), _conditions(folder, groups, most)]
    return [path for path in (*drawn, _bytes(folder, groups, most)) if path]


def _name(key: Key) -> str:
    model, how, sites = key
    if model == SPLIT:
        number = f"{sites} sites" if sites > 1 else "1 site"
        return {"federated": f"split, {number}"}.get(how, f"split, {how}")
    return model if how == "untrained" else f"{model}, {how}"


def _rounds(folder: Path, groups: Mapping[Key, list[Row]], most: int) -> Path | None:
    curves = {k: own for k, own in groups.items() if own[0].curve and k[0] == SPLIT}
    curves |= {
        k: own
        for k, own in groups.items()
        if own[0].curve and k[0] in ("llm4cp", "gru", "rnn") and k[1] == "own"
    }
    if not curves:
        return None
    figure, (left, right) = panels(2, height=4.0)
    order = sorted(curves, key=lambda key: (key[0] != SPLIT, key[1] != "federated", key[2]))
    for place, key in enumerate(order):
        ax = left if key[0] == SPLIT else right
        _curve(ax, curves[key], _name(key), COLOURS[place % len(COLOURS)])
    reference = (SPLIT, "federated", most)
    if reference in curves:
        _curve(right, curves[reference], _name(reference), COLOURS[order.index(reference)])
    for ax, title in ((left, "The split model"), (right, "Beside what sites reach alone")):
        label(ax, title=title, x="passes over the samples, %", y="NMSE in dB")
        legend(ax, columns=3)
    return save(figure, folder / "rounds.png")


def _curve(ax: Axes, rows: Sequence[Row], name: str, colour: str) -> None:
    known = [[p for p in row.curve if p["nmse"] is not None] for row in rows]
    last = rows[0].curve[-1]["round"]
    x = [100 * point["round"] / last for point in known[0]]
    values = np.array([[decibels(p["nmse"]) for p in points] for points in known])
    _band(ax, x, values, name, colour)


def _band(ax: Axes, x: Sequence[float], values: Any, name: str, colour: str) -> None:
    """Draw the mean of rows of values with its 95% interval."""
    spans = [interval(column) for column in values.T.tolist()]
    means = [span.mean for span in spans]
    ax.plot(x, means, "o-", ms=3, lw=1.4, color=colour, label=name)
    if all(span.known for span in spans):
        low, high = ([getattr(span, end) for span in spans] for end in ("low", "high"))
        ax.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)


def _conditions(folder: Path, groups: Mapping[Key, list[Row]], most: int) -> Path | None:
    grus = [key for name in GRUS if (key := (name, "federated", most)) in groups]
    wanted = [
        (SPLIT, "federated", most),
        (SPLIT, "own", most),
        *sorted(grus, key=lambda key: fmean(row.scores["nmse"] for row in groups[key]))[:1],
        ("transformer", "union", most),
        ("llm4cp", "union", most),
        ("covariance, order 5", "untrained", most),
        ("PAD, order 2", "untrained", most),
        ("autoregression", "union", most),
        ("last value", "untrained", most),
    ]
    there = [key for key in wanted if key in groups]
    if not there:
        return None
    figure, (left, right) = panels(2, height=4.2)
    for colour, key in zip(COLOURS, there, strict=False):
        own = groups[key]
        levels = [float(snr) for snr in own[0].nmse_by_snr]
        noisy = np.array([[decibels(v) for v in row.nmse_by_snr.values()] for row in own])
        _band(left, levels, noisy, _name(key), colour)
        if own[0].scores["nmse_by_speed"]:
            speeds = [float(speed) for speed in own[0].scores["nmse_by_speed"]]
            fast = [[decibels(v) for v in row.scores["nmse_by_speed"].values()] for row in own]
            _band(right, speeds, np.array(fast), _name(key), colour)
    label(left, title="Over noise in the history", x="signal-to-noise ratio in dB", y="NMSE in dB")
    label(right, title="Over speed", x="km/h", y="")
    legend(left, columns=2)
    legend(right, columns=2)
    return save(figure, folder / "conditions.png")


def _bytes(folder: Path, groups: Mapping[Key, list[Row]], most: int) -> Path | None:
    sent = [
        key
        for key, own in groups.items()
        if key[1] == "federated" and key[2] == most and any(p.get("bytes") for p in own[0].curve)
    ]
    if not sent:
        return None
    figure, (ax,) = panels(1, height=3.6)
    for colour, key in zip(COLOURS, sent, strict=False):
        points = [[p for p in row.curve if p["nmse"] is not None] for row in groups[key]]
        values = np.array([[decibels(p["nmse"]) for p in own] for own in points])
        _band(ax, [p["bytes"] / 1e6 for p in points[0]], values, _name(key), colour)
    log_scale(ax, x=True)
    label(ax, title="Over bytes on the air", x="MB of all sites, up and down", y="NMSE in dB")
    legend(ax, columns=3)
    return save(figure, folder / "bytes.png")
