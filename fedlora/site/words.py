"""What stands in a device's log and what ``fedlora site`` says of it: the same words for both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fedlora.checks import finite
from fedlora.errors import printable
from fedlora.link import KINDS, Reason

LEFT: Final = (
    *("activations", "identifiers", "lengths", "gradients", "head", "metrics", "statistics"),
    "other",
)
"""Kinds of what leaves, in the order in which they are told."""

FINISHED: Final = "finished"


def wants_text(wants: Mapping[str, Any]) -> str:
    """Return what a run wants of a device, from an ``asked`` event's ``wants``."""
    if not wants:
        return "what it wants cannot be read"
    task = f"{wants.get('task', '?')}"
    if wants.get("classes"):
        task += f" of {wants['classes']} classes"
    noised = wants.get("activation_sigma")
    parts = [
        task,
        " of ".join(f"{wants.get(key)} {name}" for key, name in _LOTS.items()),
        f"gradients {_noise(wants)}",
        f"activations {'as they are' if noised is None else f'with noise of sigma {noised:g}'}",
        f"head {wants.get('head')}",
    ]
    parts += [text for name, text in _MORE.items() if wants.get(name)]
    return printable(", ".join(parts), 600)


_LOTS: Final = {"rounds": "rounds", "steps": "steps", "batch_size": "samples"}
_MORE: Final = {
    "report": "counts over held-out records",
    "scores": "histograms of held-out scores",
    "texts": "scores of what is written after held-out prompts",
    "statistics": "statistics of the text",
    "embedding": "to train the front (token embedding)",
    "front": "the trained front itself, which is shared",
}


def _noise(wants: Mapping[str, Any]) -> str:
    if wants.get("epsilon") is None and wants.get("sigma") is None:
        return "as they are"
    noise = [f"{key} {wants[key]:g}" for key in ("epsilon", "sigma") if wants.get(key) is not None]
    return f"under {wants.get('release')} at {' and '.join(noise)}"


def left_text(left: Mapping[str, int]) -> str:
    """Return bytes by kind, all of them exact."""
    told = [f"{kind} {left[kind]:,}" for kind in LEFT if left.get(kind)]
    return ", ".join(told) or "none"


def rows_text(rows: Mapping[str, Any]) -> str:
    """Return what became of a device's records."""
    return (
        f"{rows.get('train', 0):,} records train, {rows.get('held_out', 0):,} are held out, "
        f"{rows.get('left_out', 0):,} are left out"
    )


def budget_text(ledger: Mapping[str, Any] | None, limit: Mapping[str, Any] | None) -> str:
    """Return what has been spent and is left, of the record that has spent most."""
    if not ledger:
        return "no noise, so nothing is charged"
    spent = finite(ledger.get("epsilon"))
    text = f"epsilon {'beyond any bound' if spent is None else f'{spent:.4g}'} spent"
    if not limit:
        return f"{text}, no limit"
    left = 0.0 if spent is None else max(0.0, limit["epsilon"] - spent)
    return f"{text} of {limit['epsilon']:g}, {left:.4g} left"


def reason_text(event: Mapping[str, Any]) -> str:
    """Return how a run ended, or why it was refused, as far as the audit file knows."""
    how = event.get("how", event.get("kind"))
    if how == FINISHED:
        return FINISHED
    reason = Reason.read({**event, "reason": how})
    if reason is None:
        return printable(how)
    numbers = "".join(f", {name} {number}" for name, number in reason.numbers.items())
    return f"{KINDS[reason.kind]}{numbers}"
