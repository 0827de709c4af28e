"""The plot of an audit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedlora.report.figure import COLOURS, INK, MUTED, panels, save


def draw(result: dict[str, Any], path: Path) -> Path:
    """Draw the label attack over sigma beside its bound, and the audit of the mechanism.

    Parameters
    ----------
    result
        What ``audit_scenario`` returned.
    path
        The png to write.
    """
    figure, (labels, proof) = panels(2, height=3.4)
    curve = result.get("label_auc_over_sigma", [])
    sigmas = [point["sigma"] for point in curve]
    labels.set_title("label inference")
    labels.set_xlabel("sigma of one upload")
    labels.set_ylabel("AUC of the best attack")
    labels.axhline(0.5, color=MUTED, linewidth=0.8, linestyle=":")
    if curve:
        labels.set_xscale("log")
        labels.plot(sigmas, [p["bound"] for p in curve], color=INK, linestyle="--", label="bound")
        labels.errorbar(
            sigmas,
            [p["auc"] for p in curve],
            yerr=[
                [p["auc"] - p["low"] for p in curve],
                [p["high"] - p["auc"] for p in curve],
            ],
            color=COLOURS[0],
            marker="o",
            markersize=4,
            label="measured",
        )
        labels.axvline(result["sigma"], color=COLOURS[1], linewidth=1.0, label="this run")
        labels.legend(frameon=False, fontsize=8)
    proof.set_title("the mechanism itself, one upload")
    proof.set_ylabel("epsilon")
    found = result.get("mechanism", [])
    places = range(len(found))
    proof.bar(
        [p - 0.18 for p in places],
        [f["epsilon_lower_bound"] for f in found],
        0.34,
        color=COLOURS[0],
        label="proved by attack",
    )
    proof.bar(
        [p + 0.18 for p in places],
        [f["epsilon_one_upload"] for f in found],
        0.34,
        color=COLOURS[1],
        label="accounted for",
    )
    proof.set_xticks(list(places), [f"sigma {f['sigma']:.3g}" for f in found])
    if found:
        proof.legend(frameon=False, fontsize=8)
    return save(figure, path)
