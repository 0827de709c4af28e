"""What may differ between the answers of two devices whose data differ in one record."""

from __future__ import annotations

import torch

from fedlora.config import Scenario
from fedlora.link import Frame, messages as m
from fedlora.privacy.mechanisms import mechanism_class, rounding_step

_OF_LABELS = {"gradient", "head_gradient", "head_weight", "loss"}


def difference(
    first: Frame, second: Frame, scenario: Scenario, *, same_labels: bool, text: bool
) -> str:
    """Return what differs without being covered; nothing where all is.

    Parameters
    ----------
    first, second
        The answers, of which at least one part differs.
    scenario
        The run's.
    same_labels
        Whether both devices drew the same randomised labels.
    text
        Whether the record's text differs, too.
    """
    noised = noises_gradients(scenario)
    drawn = not noised and not same_labels
    if (first.kind, first.seq, first.client) != (second.kind, second.seq, second.client):
        if drawn and m.LEAVE in (first.kind, second.kind):
            return ""  # a step failed for a label that was drawn
        return f"their kind: {first.kind} {first.fields} and {second.kind} {second.fields}"
    if first.fields.keys() != second.fields.keys() or first.tensors.keys() != second.tensors.keys():
        return "what they hold"
    for name, value in first.fields.items():
        covered = (name == "counts" and _noised(value)) or (drawn and name in _OF_LABELS)
        if value != second.fields[name] and not covered:
            return f"{name}: {value!r} and {second.fields[name]!r}"
    for name, tensor in first.tensors.items():
        other, part = second.tensors[name], name.partition(".")[0]
        if tensor.shape != other.shape or tensor.dtype != other.dtype:
            return f"the shape of {name}"
        if torch.equal(tensor, other) or (drawn and part in _OF_LABELS):
            continue
        wrong = f"{name}"
        if part == "gradient" and noised:
            wrong = _moved(tensor, other, scenario, first.kind)
        elif part == "activation" and text:
            wrong = _moved(tensor, other, scenario, m.ACTIVATION)
        if wrong:
            return wrong
    return ""


def noises_gradients(scenario: Scenario) -> bool:
    """Tell whether a run adds noise to gradients, and does not draw labels for them."""
    return mechanism_class(scenario.privacy.release).noises_gradients


def _noised(counts: object) -> bool:
    return isinstance(counts, dict) and set(counts) == {"samples", "correct", "loss"}


def _moved(first: torch.Tensor, second: torch.Tensor, scenario: Scenario, kind: str) -> str:
    """Return what is wrong with how one record moves a noised upload."""
    policy, link = scenario.privacy, scenario.link
    activation = kind == m.ACTIVATION
    codec = link.activation if activation else link.gradient
    clip_norm = policy.activation_clip_norm if activation else policy.clip_norm
    if codec not in ("fp32", "distinct") or policy.unit != "sample":
        return ""  # rounding beyond the mechanism's, or another unit than a record
    moved = (first.double() - second.double()).norm(dim=1)
    rows = int((moved > 0).sum())
    pooled = scenario.task.kind == "classification" and not scenario.model.client_back
    most = 2 if pooled and not activation else 2 * scenario.task.max_length
    if rows > most:
        return f"{rows} rows of an upload, though one record differs"
    sigma = policy.activation_sigma if activation else 1e3
    assert sigma is not None
    grid = rounding_step(sigma, clip_norm) * first.numel() ** 0.5
    copies = 2  # a batch may hold the end of one pass and the beginning of the next
    largest = float(moved.norm())
    if largest > copies * 2 * clip_norm * (1 + 1e-6) + grid:
        return f"an upload by {largest:.3g}, though the clipping norm is {clip_norm:g}"
    return ""
