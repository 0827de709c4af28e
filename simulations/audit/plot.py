"""The plots of an audit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from fedlora.report.figure import COLOURS, INK, MUTED, label, legend, panels, save

Points = Sequence[dict[str, Any]]


def places(folder: Path, stem: str = "audit") -> list[Path]:
    """Return the plots that ``draw_all`` may draw."""
    return [folder / f"{stem}-{name}.png" for name in ("labels", "tokens", "activations")]


def draw_all(result: dict[str, Any], folder: Path, stem: str = "audit") -> list[Path]:
    """Draw every plot that the audit has figures for.

    Parameters
    ----------
    result
        What ``audit_scenario`` returned.
    folder
        Where the files go, as ``STEM-labels.png``, ``STEM-tokens.png``, ``STEM-activations.png``.
    stem
        How their names begin.
    """
    drawn = []
    if result.get("mechanism"):
        drawn.append(_labels(result, folder / f"{stem}-labels.png"))
    if result.get("token_accuracy_over_depth"):
        drawn.append(_tokens(result, folder / f"{stem}-tokens.png"))
    return drawn


def _labels(result: dict[str, Any], path: Path) -> Path:
    """Label inference over sigma beside its bound, and the audit of the mechanism."""
    curve: Points = result.get("label_auc_over_sigma", ())
    figure, axes = panels(2 if curve else 1, height=3.6)
    if curve:
        ax = axes[0]
        sigmas = [p["sigma"] for p in curve]
        ax.set_xscale("log")
        ax.plot(sigmas, [p["bound"] for p in curve], color=INK, linestyle="--", label="bound")
        ax.errorbar(
            sigmas,
            [p["auc"] for p in curve],
            yerr=[[p["auc"] - p["low"] for p in curve], [p["high"] - p["auc"] for p in curve]],
            color=COLOURS[0],
            marker="o",
            markersize=4,
            linewidth=1,
            capsize=2,
            label="likelihood ratio",
        )
        ax.axhline(0.5, color=MUTED, linewidth=0.8, linestyle=":")
        ax.axvline(result["sigma"], color=COLOURS[1], linewidth=1, label="this run")
        ax.set_ylim(0.45, 1.02)
        ax.set_xticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
        ax.minorticks_off()
        label(ax, title="Label inference", x="sigma of one upload", y="AUC")
        legend(ax, columns=3)
    _proof(axes[-1], result["mechanism"])
    return save(figure, path)


def _proof(ax: Axes, found: Points) -> None:
    places = range(len(found))
    for shift, key, colour, name in (
        (-0.18, "epsilon_lower_bound", COLOURS[0], "proved by attack"),
        (0.18, "epsilon_one_upload", COLOURS[1], "accounted for"),
    ):
        heights = [f[key] for f in found]
        bars = ax.bar([p + shift for p in places], heights, 0.34, color=colour, label=name)
        ax.bar_label(bars, [f"{h:.2f}" for h in heights], fontsize=8, color=INK, padding=2)
    ax.set_xticks(list(places), [f"sigma {f['sigma']:.3g}" for f in found])
    ax.margins(y=0.15)
    label(ax, title="The mechanism itself, one upload", x="", y="epsilon")
    legend(ax, columns=2)


def _tokens(result: dict[str, Any], path: Path) -> Path:
    """Token accuracy over cut depth, and over noise on activations with what it costs."""
    noise: Points = result.get("activation_noise", ())
    depths: Points = result["token_accuracy_over_depth"]
    figure, axes = panels(2 if noise else 1, height=3.6)
    ax = axes[0]
    _accuracies(ax, [p["depth"] for p in depths], depths)
    ax.set_xticks([p["depth"] for p in depths])
    label(ax, title="Tokens, no noise", x="blocks before the cut", y="fraction of positions")
    legend(ax, columns=2)
    if noise:
        ax, sigmas = axes[1], [p["sigma"] for p in noise]
        ax.set_xscale("log")
        _accuracies(ax, sigmas, noise)
        metrics = [p["metric"] for p in noise]
        plain = result["without_noise"].get("metric")
        fraction = result["metric_name"] in ("accuracy", "macro_f1")
        if fraction and plain is not None and None not in metrics:
            ax.plot(sigmas, metrics, color=INK, marker="s", ms=4, lw=1, label="task accuracy")
            ax.axhline(plain, color=INK, lw=0.8, linestyle=":", label="without noise")
        ax.set_xticks(sigmas, [f"{s:g}" for s in sigmas])
        ax.minorticks_off()
        title = f"Privatised activations, cut depth {result['cut_depth']}"
        label(ax, title=title, x="noise over clipping norm", y="fraction")
        legend(ax, columns=2)
    return save(figure, path)


def _accuracies(ax: Axes, x: Sequence[float], points: Points) -> None:
    for index, (key, name) in enumerate(
        (("token_accuracy", "nearest neighbour"), ("inverter_accuracy", "learned inverter"))
    ):
        ax.plot(
            x,
            [p[key] for p in points],
            color=COLOURS[index],
            marker="o^"[index],
            markersize=4,
            linewidth=1,
            label=name,
        )
    ax.set_ylim(-0.03, 1.05)
