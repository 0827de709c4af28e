"""Everything that may leave a device, message by message: the door holds each part against this.

``docs/privacy.md`` shows the table; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from fedlora.link import NUMBERS, REASON, messages as m

How = Literal["public", "released", "allowed"]
"""How a part may leave: it is a function of what the server knows, paid for, or the owner's key
allows it."""


@dataclass(frozen=True)
class Part:
    """One field or tensor of a message.

    Attributes
    ----------
    depends
        What it depends on.
    ways
        How it may leave; where ``allowed`` is among them, by one of ``keys``.
    keys
        Keys of the node configuration that allow it.
    cost
        What its ledger entry is, where it is released.
    """

    depends: str
    ways: tuple[How, ...]
    keys: tuple[str, ...] = ()
    cost: str = ""


_MODEL = Part("model files", ("public",))
_ROWS = Part("number of records, never what is in them", ("public",))
_SPENT = Part("what the ledger has booked, never records", ("public",))
_LENGTHS = Part("tokens of each text, places of each sequence", ("public",))
_NAMES = Part("which record is which again, under numbers drawn at random", ("public",))
_HELD = Part("what the server sent of each record, and whether it is still there", ("public",))
_TARGETS = Part(
    "which tokens of a text are learnt: where prompts and turns end",
    ("allowed",),
    ("data", "scenario-data"),
)
_SESSION = Part("the server's own names of session and adapter", ("public",))
_WRITTEN = Part("tokens of prompt and text, and how many drafts were wrong", ("public",))
_EMBEDDED = Part(
    "prompt, text and drafts, as the token embedding or the client's blocks have them",
    ("allowed",),
    ("generate-allowed",),
)
_ACTIVATION = Part(
    "text or values, as the client's front or its blocks have them, or which tokens they are",
    ("allowed", "released"),
    ("text", "scenario-data"),
    "one Gaussian release a record and run at privacy.activation_sigma, repeated afterwards",
)
_GRADIENT = Part(
    "label, and what the server sent",
    ("released", "allowed"),
    ("data", "scenario-data"),
    "full, row_space: a Gaussian release a record and upload; logits: one a record and run; "
    "labels: the label's epsilon, once for all runs; a plug-in that privacy-mechanisms allows: "
    "what it charges",
)
_KEPT = Part(
    "which tokens' gradients are sent, by chance and by how wrong the model is of them",
    ("allowed",),
    ("data", "scenario-data"),
)
_HEAD_WEIGHT = Part(
    "the server's own weights, or labels where the head trains here",
    ("public", "released", "allowed"),
    ("data", "scenario-data"),
    "labels: no more than was paid for the randomised labels",
)
_FRONT = Part(
    "text or values, and what the server sent, where fronts are shared",
    ("public", "allowed"),
    ("data", "scenario-data"),
)
_OF_LABELS = Part(
    "labels, and what the server sent",
    ("released", "allowed"),
    ("data", "scenario-data"),
    "labels: no more than was paid for the randomised labels",
)
_SPENT_FIELDS: Final = dict.fromkeys(("rho", "label_epsilon", "sigma", "sigma_now"), _SPENT)

TABLE: Final[Mapping[str, Mapping[str, Part]]] = {
    m.HELLO: {
        **dict.fromkeys(
            ("protocol", "config_digest", "weights_digest", "tokenizer_digest", "dtype"), _MODEL
        ),
        "token": Part("the server's own invitation", ("public",)),
        "rows": _ROWS,
        "held_out_rows": _ROWS,
        "rho_planned": _SPENT,
        "label_epsilon": _SPENT,
    },
    m.READY: {
        "channel": Part("the link, as probes measured it", ("public",)),
        "round": Part("whether a state of that round is on the device's disk", ("public",)),
        "head_weight": _HEAD_WEIGHT,
        **dict.fromkeys(("front_weight", "front_gradient"), _FRONT),
    },
    m.REPORT: {
        "channel": Part("the channel's model, or the link as probes measured it", ("public",)),
        "statistics": Part(
            "text: four figures over all training records",
            ("allowed",),
            ("privacy-statistics",),
        ),
        "device": Part("nothing; no release tells it", ("public",)),
        "budget_bits": Part("nothing; no release tells it", ("public",)),
    },
    m.ACTIVATION: {
        "activation": _ACTIVATION,
        "lengths": _LENGTHS,
        "targets": _TARGETS,
        **dict.fromkeys(("ids", "fresh"), _NAMES),
        "held": _HELD,
        "written": Part("whether the rows are texts that are being written", ("public",)),
    },
    m.GRADIENT: {
        "weight": Part(
            "number of records in the batch; without noise on gradients of target tokens",
            ("public", "released", "allowed"),
            ("data", "scenario-data"),
            "labels: no more than was paid for the randomised labels",
        ),
        "loss": _OF_LABELS,
        **_SPENT_FIELDS,
        "gradient": _GRADIENT,
        "kept": _KEPT,
        "head_gradient": _OF_LABELS,
        "activation": _ACTIVATION,
        "lengths": _LENGTHS,
        "targets": _TARGETS,
        **dict.fromkeys(("ids", "fresh"), _NAMES),
        "held": _HELD,
    },
    m.ROUND_REPORT: {
        "samples": _ROWS,
        "loss": _OF_LABELS,
        "head_weight": _HEAD_WEIGHT,
        "front_weight": _FRONT,
    },
    m.METRICS: {
        "counts": Part(
            "labels of held-out records, and what the server sent",
            ("released", "allowed"),
            ("privacy-report", "data", "scenario-data"),
            "a Gaussian release of all held-out records an evaluation",
        ),
        "texts": Part(
            "held-out records, and what the server sent: how like them what is written on is",
            ("allowed",),
            ("data", "scenario-data"),
        ),
        "scores": Part(
            "labels of held-out records, and how sure the model is of them, as histograms",
            ("allowed",),
            ("privacy-scores",),
        ),
    },
    m.RESULT: {"samples": _ROWS, **_SPENT_FIELDS},
    m.GEN_HELLO: {
        **dict.fromkeys(
            ("key", "proof"), Part("this device's node key, which names its client", ("public",))
        ),
        "host": Part("the server's name, as the owner dialled it", ("public",)),
        **dict.fromkeys(
            ("cut", "activation_codec", "representation_codec"),
            Part("the run's scenario: where the model is cut, and its codecs", ("public",)),
        ),
    },
    m.GEN_OPEN: {
        **dict.fromkeys(
            ("protocol", "config_digest", "weights_digest", "tokenizer_digest", "dtype"), _MODEL
        ),
        "adapter": _SESSION,
    },
    m.GEN_EXTEND: {
        "session": _SESSION,
        **dict.fromkeys(("position", "tokens", "last"), _WRITTEN),
        "activation": _EMBEDDED,
    },
    m.GEN_EARLY: {
        "session": _SESSION,
        **dict.fromkeys(("position", "tokens", "last"), _WRITTEN),
        "block": Part("after which block tokens may leave, as the owner said", ("public",)),
        "activation": _EMBEDDED,
    },
    m.GEN_REST: {
        "session": _SESSION,
        "last": Part("where the device's head was not sure of the next token", ("public",)),
    },
    m.GEN_CLOSE: {"session": _SESSION},
    m.LEAVE: {
        REASON: Part("a kind of a closed list", ("public",)),
        **dict.fromkeys(NUMBERS, Part("place of a record in its file, or how many", ("public",))),
    },
    "flower hello": {
        "client": Part("the node configuration's partition-id", ("public",)),
        "clients": Part("the node configuration's num-partitions", ("public",)),
    },
}
"""By message, then by field or by the name of a tensor up to its first full stop.

A reply through Flower that is refused holds the parts of ``leave``, its reason as ``error``.
"""

_COUNTED: Final = {
    "activation": "activations",
    "lengths": "lengths",
    "targets": "lengths",
    "ids": "identifiers",
    "fresh": "identifiers",
    "held": "identifiers",
    "gradient": "gradients",
    "kept": "gradients",
    "head_gradient": "head",
    "head_weight": "head",
    "front_gradient": "head",
    "front_weight": "head",
    "counts": "metrics",
    "scores": "metrics",
    "texts": "metrics",
    "loss": "metrics",
    "weight": "metrics",
    "statistics": "statistics",
}


def counted_as(name: str) -> str:
    """Return as what a field or tensor is counted where the owner is told what has left.

    ``other`` is what depends on no record's content.
    """
    return _COUNTED.get(name.partition(".")[0], "other")


def rows() -> list[tuple[str, str, str, str]]:
    """Return the table as ``docs/privacy.md`` shows it: message, part, what it depends on, how."""
    found = []
    for message, parts in TABLE.items():
        same: dict[Part, list[str]] = {}
        for name, part in parts.items():
            same.setdefault(part, []).append(name)
        for part, names in same.items():
            ways = []
            if "public" in part.ways:
                ways.append("free")
            if "allowed" in part.ways:
                limit = " without `privacy-epsilon`" if "data" in part.keys else ""
                ways.append(f"key {' or '.join(f'`{key}`' for key in part.keys)}{limit}")
            if "released" in part.ways:
                ways.append(f"paid: {part.cost}")
            told = ", ".join(f"`{name}`" for name in names)
            found.append((f"`{message}`", told, part.depends, "; or ".join(ways)))
    return found
