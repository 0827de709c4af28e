"""Which plots a run has, in the order of the report, with captions that say how to read them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fedlora.report import air_plots, plots
from fedlora.report.figure import save
from fedlora.report.run_folder import RunFolder

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plot:
    """A plot of the report.

    Attributes
    ----------
    name
        File name in ``plots/`` without its ending.
    title, caption
        Shown with it; the caption says how to read it.
    """

    name: str
    title: str
    caption: str


GALLERY = (
    Plot(
        "learning",
        "Learning",
        "Left: the metric on rows that nobody trained on, over the rows of all clients; the band "
        "holds the middle 80% of the clients, the dashed line is what the same head reaches on "
        "the frozen backbone. What lies beyond that line is owed to the adapters. Right: a "
        "held-out loss that rises while the training loss falls means overfitting.",
    ),
    Plot(
        "clients",
        "Clients",
        "Each row is a client: the hollow dot is its metric at the first evaluation, the filled "
        "one at the last. A short bar on the worse side of the dashed mean is a client that the "
        "federation serves badly.",
    ),
    Plot(
        "holdings",
        "Who holds what",
        "The area of a bubble is the number of training rows of that label at that client. Columns "
        "that look alike mean identically distributed data; gaps are labels that a client never "
        "sees in training.",
    ),
    Plot(
        "traffic",
        "Traffic",
        "Payload of each round summed over clients, by kind, on one scale for both directions. "
        "Activations and gradients go up; representations and adapters come down. Framing is not "
        "included.",
    ),
    Plot(
        "quality-over-bits",
        "Quality over bits",
        "The metric and the loss on held-out rows over all that has crossed the cut up to that "
        "round, both ways, adapters apart: of two runs that end alike, the one that ends further "
        "left is the cheaper one.",
    ),
    Plot(
        "channel",
        "Channel and ranks",
        "Left: the downlink as the clients reported it. Right: the mean rank that each client was "
        "given. A strategy that follows the channel gives the same order in both.",
    ),
    Plot(
        "deliveries",
        "Deliveries",
        "The adapters that were sent to each client at the end of each round. An adapter that "
        "misses its deadline is late, and the client keeps the one it had. The figure is the mean "
        "rank that the strategy chose; 0 sends nothing.",
    ),
    Plot(
        "ranks",
        "Rank by projection",
        "Mean rank over all rounds and clients: where in the network the strategy spends its "
        "budget. One colour everywhere is an even spread.",
    ),
    Plot(
        "air",
        "Air time",
        "Left: modelled seconds on the air in each round, that is, of the slowest of the clients "
        "that send in parallel; a client in a deep fade holds up its round. Right: transmit power "
        "times air time, of all clients and of the server.",
    ),
)

AUDIT_GALLERY = (
    Plot(
        "audit-labels",
        "What attacks learn of a label",
        "Left: the area under the ROC curve of the best attack on one upload, with 95% confidence "
        "intervals, over its noise; 0.5 is a coin, and no attack passes the dashed bound but by "
        "chance. Right: the epsilon that attacks on the mechanism prove, which must stay below "
        "what the accountant books.",
    ),
    Plot(
        "audit-tokens",
        "What attacks learn of the text",
        "Fraction of positions whose token is recovered from the activations. Left: without noise, "
        "over the number of blocks that the client keeps. Right: over noise on the activations "
        "(privacy.activation_sigma), with the task's accuracy that is left after the same steps.",
    ),
)
"""Plots of ``fedlora audit``, which it draws itself."""


def write_plots(folder: RunFolder, formats: Sequence[str] = ()) -> list[Path]:
    """Draw every plot that the run has data for into ``plots/``, as PNG and further ``formats``.

    A plot that cannot be drawn or written is left out, with a warning: a run and its report are
    worth more than one of their pictures.

    Returns
    -------
    list of Path
        The files written.
    """
    rounds, summary = folder.read_metrics(), folder.read_summary() or {}
    before, projections = summary.get("metric_before"), _projections(summary)
    draw: dict[str, Callable[[], Figure | None]] = {
        "learning": lambda: plots.learning(rounds, metric_before=before),
        "clients": lambda: plots.client_metric(rounds),
        "holdings": lambda: plots.holdings(summary.get("label_counts") or {}),
        "traffic": lambda: plots.traffic(rounds),
        "quality-over-bits": lambda: plots.quality_over_bits(rounds),
        "channel": lambda: air_plots.channel(rounds),
        "deliveries": lambda: air_plots.deliveries(rounds),
        "ranks": lambda: air_plots.ranks(rounds, projections),
        "air": lambda: air_plots.air_time(rounds),
    }
    written = [_write(folder, name, drawn, formats) for name, drawn in draw.items()]
    return [path for path in written if path is not None]


def _projections(summary: Mapping[str, Any]) -> list[tuple[int, str]]:
    return [(int(layer), str(name)) for layer, name in summary.get("projections") or ()]


def _write(
    folder: RunFolder, name: str, draw: Callable[[], Figure | None], formats: Sequence[str]
) -> Path | None:
    try:
        figure = draw()
        return None if figure is None else save(figure, folder.plots / f"{name}.png", formats)
    except Exception as error:  # labels and names come from data, and fonts from the machine
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        _log.warning("the plot %s is left out (%s)", name, reason)
        return None
