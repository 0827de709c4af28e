"""The picture of a recording, and the table of what was read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedlora.channel.traces import Packets, Recording, Track, read_recording
from fedlora.channel.traces.replay import PacketRate, choose
from fedlora.channel.traces.track import Link
from fedlora.errors import FedloraError
from fedlora.report.figure import COLOURS, GRID, label, legend, panels, save
from fedlora.storage import check_new_file

_SNR, _RATE = ("down_snr_db", "snr_db"), ("down_rate_bps", "rate_bps")
_DRAWN = 4  # clients in the picture
_ROWS = 12  # clients in the table
_BINS = 300  # of packets in the picture


def plot_recording(
    file: str, format: str, values: str, step_s: float, out: Path | None, *, overwrite: bool
) -> None:
    """Write a picture of a recording's downlink, and print what was read.

    Parameters
    ----------
    file
        As ``channel.options.path`` names it.
    format, values, step_s
        See ``TraceChannel``.
    out
        A PNG file, or None for one here that is called as the recording.
    overwrite
        Whether an earlier picture is replaced.

    Raises
    ------
    FedloraError
        When the recording cannot be read or has no such values, or the picture is there.
    """
    if out is not None and out.suffix != ".png":
        raise FedloraError(f"--out is {str(out)!r}; name a .png file")
    recording = read_recording(file, format, step_s=step_s, key="FILE")
    out = Path(f"{recording.path.name}.png") if out is None else out
    check_new_file(out, "--out", overwrite=overwrite)
    names = {client: _name(recording, link, values) for client, link in recording.links.items()}
    console = Console()
    console.print(_table(recording, names))
    left = len(recording.links) - _ROWS
    if left > 0:
        console.print(Text(f"and {left} more clients"))
    save_picture(recording, names, out)
    console.print(Text(f"wrote {out}"), soft_wrap=True)


def _name(recording: Recording, link: Link, values: str) -> str:
    wanted = {"snr": _SNR, "rate": _RATE, "": _SNR + _RATE}[values]
    name = choose(link, wanted)
    if not name:
        raise FedloraError(
            f"trace {recording.path} has no {values}; plot its other values, or leave --values out"
        )
    return name


def _table(recording: Recording, names: dict[int | None, str]) -> Table:
    title = f"{recording.path.name}: {recording.format}, in {recording.unit}"
    table = Table(title=Text(title))
    clients = list(recording.links)[:_ROWS]
    table.add_column("client")
    for client in clients:
        table.add_column("all" if client is None else str(client), justify="right")
    told = [told_of(recording.links[client], names[client]) for client in clients]
    for fact in told[0]:
        table.add_row(fact, *(one[fact] for one in told))
    return table


def told_of(link: Link, name: str) -> dict[str, str]:
    """Return what is to know of a link before it is replayed."""
    if isinstance(link, Packets):
        rate = PacketRate(link)
        at_s, longest_s = rate.outage_s()
        mean_bps = rate.bits(rate.period_s, 2 * rate.period_s) / rate.period_s
        return {
            "packets": f"{len(link.time_ms)}",
            "seconds until it begins anew": f"{link.period_s:.10g}",
            "longest time without one": f"{longest_s:g} s, from {at_s:g} s on",
            "values": "rate",
            "mean": f"{mean_bps / 1e6:.4g} Mbit/s",
        }
    column, lasting_s = link.values[name], link.duration_s
    known = ~np.isnan(column)
    rate_told = name.endswith("bps")
    still = (link.idle | (column == 0)) if rate_told else np.zeros(len(column), dtype=bool)
    scale, unit = (1e-6, "Mbit/s") if rate_told else (1.0, "dB")
    facts = {
        "rows": f"{len(column)}",
        "seconds until it begins anew": f"{link.period_s:.10g}",
        "rows that share a second": f"{link.together}",
        "rows marked as missing": _count(~known, link.lines),
        "gaps": _count(link.gap_s > 0, link.lines)
        + (f", {link.gap_s.sum():g} s together" if link.gap_s.any() else ""),
        "values": "rate" if rate_told else "SNR",
        "idle, or nothing through": _count(still, link.lines) if rate_told else "",
    }
    if not known.any():
        return {**facts, "mean": "", "least, most": ""}
    part = lasting_s[known] / lasting_s[known].sum()
    return {
        **facts,
        "mean": f"{scale * float((column[known] * part).sum()):.4g} {unit}",
        "least, most": f"{scale * column[known].min():.4g}, {scale * column[known].max():.4g}",
    }


def _count(rows: np.ndarray, lines: np.ndarray) -> str:
    count = int(rows.sum())
    return f"{count}, first in line {lines[np.argmax(rows)]}" if count else "0"


def save_picture(recording: Recording, names: dict[int | None, str], path: Path) -> None:
    """Write the picture of the first clients, what is missing or idle as grey bands."""
    figure, (ax,) = panels(height=3.4)
    clients = list(recording.links)[:_DRAWN]
    rate = names[clients[0]].endswith("bps")
    for number, client in enumerate(clients):
        name = "downlink" if client is None else f"client {client}"
        _draw(ax, recording.links[client], names[client], COLOURS[number], name)
    if rate:
        ax.set_ylim(bottom=0)
    label(
        ax,
        title=f"{recording.path.name}, read as {recording.format}",
        x="seconds",
        y="rate in Mbit/s" if rate else "SNR in dB",
    )
    legend(ax, columns=_DRAWN + 1)
    save(figure, path)


def _draw(ax: Axes, link: Link, name: str, colour: str, told: str) -> None:
    if isinstance(link, Packets):
        rate, edges = PacketRate(link), np.linspace(0, link.period_s, _BINS + 1)
        binned = [rate.bits(a, b) / (b - a) / 1e6 for a, b in pairwise(edges)]
        ax.stairs(binned, edges, color=colour, linewidth=1.2, label=told, baseline=None)
        return
    assert isinstance(link, Track)
    edges = np.append(link.start_s, link.period_s)
    shown = link.values[name] * (1e-6 if name.endswith("bps") else 1.0)
    ax.stairs(shown, edges, color=colour, linewidth=1.2, label=told, baseline=None)
    unknown = np.isnan(shown) | (link.gap_s > 0)
    if name.endswith("bps"):
        unknown |= link.idle | (shown == 0)
    _shade(ax, edges, unknown)


def _shade(ax: Axes, edges: np.ndarray, rows: Sequence[bool] | np.ndarray) -> None:
    """Lay one band under each run of rows."""
    turns = np.flatnonzero(np.diff(np.concatenate([[False], rows, [False]])))
    named = "missing or idle" not in ax.get_legend_handles_labels()[1]
    for begin, end in zip(turns[::2], turns[1::2], strict=True):
        told = "missing or idle" if named else None
        ax.axvspan(edges[begin], edges[end], color=GRID, linewidth=0, label=told)
        named = False
