"""How a policy's training went, as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedlora.report.figure import COLOURS, label, panels, save

_MARKERS = {"awgn": "o", "rayleigh": "^"}


def draw_curves(path: Path, curve: Sequence[Mapping[str, Any]]) -> None:
    """Draw reward and diffusion loss over the episodes.

    Parameters
    ----------
    path
        PNG file.
    curve
        One entry for each episode: channel, snr_db, reward and diffusion_loss.
    """
    figure, (left, right) = panels(2)
    snrs = sorted({entry["snr_db"] for entry in curve})
    for colour, snr in zip(COLOURS * len(snrs), snrs, strict=False):
        for channel, marker in _MARKERS.items():
            own = [e for e in curve if e["snr_db"] == snr and e["channel"] == channel]
            left.plot(
                [e["episode"] for e in own],
                [e["reward"] for e in own],
                color=colour,
                marker=marker,
                markersize=4,
                linewidth=0.8,
                label=f"{snr:g} dB" if channel == "awgn" else None,
            )
    left.legend(fontsize=7, frameon=False)
    label(left, title="Reward by SNR (triangles: fading)", x="episode", y="reward in nats")
    known = [e for e in curve if e["diffusion_loss"] is not None]
    right.plot([e["episode"] for e in known], [e["diffusion_loss"] for e in known], marker=".")
    label(right, title="Diffusion", x="episode", y="reward-weighted loss")
    save(figure, path)
