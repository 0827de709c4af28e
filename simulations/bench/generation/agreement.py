"""Greedy tokens that few bits at the cut leave as they are, given the same text before them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedlora.generation.engine import NewTokens
from fedlora.generation.pages import RowPages
from fedlora.link import Codec, create_codec, pack, unpack
from simulations.bench.context import Context, Figure, Settings, Tick
from simulations.bench.generation.bed import Bed
from simulations.bench.generation.drafts import BEGUN, people_or_chance

TARGET = 0.995
RECOMMENDED = "rotated_10"
"""What ``docs/generation.md`` says to take."""
_CODECS: Mapping[str, Mapping[str, Any]] = {
    "int8": {"name": "int8"},
    "rotated_8": {"name": "rotated", "bits": 8},
    "rotated_8_group_16": {"name": "rotated", "bits": 8, "group": 16},
    "rotated_9_group_16": {"name": "rotated", "bits": 9, "group": 16},
    RECOMMENDED: {"name": "rotated", "bits": 10},
    "bf16": {"name": "bf16"},
    "entropy_6": {"name": "entropy", "bits": 6},
}


def agreement(context: Context, model: str, tick: Tick) -> list[Figure]:
    """Measure codecs of representations before and after the final norm, and of both ways.

    A text of the model's own is what it writes after a person's first tokens, greedily and in fp32.
    Each place is chosen once more with few bits, given the fp32 text before it. A row's payload is
    one token, as when a text is written.

    Parameters
    ----------
    model
        Whose texts and tokens are used.
    """
    settings = context.settings
    figures: list[Figure] = []
    texts: dict[str, _Texts] = {}
    for server_norm in (False, True):
        bed = Bed(context.model(model), server_norm=server_norm)
        if not texts:
            texts = _texts(bed, settings)
        place = "_after_norm" if server_norm else ""
        for whose, found in texts.items():
            figures += _agreement(bed, found, place, whose)
            tick()
    return figures


def ticks(settings: Settings) -> int:
    """Return how often progress is reported."""
    del settings
    return 4


@dataclass(frozen=True)
class _Texts:
    """Token ids of texts, and the first place in each from which on choices are counted."""

    ids: list[list[int]]
    first: int


@torch.inference_mode()
def _agreement(bed: Bed, texts: _Texts, place: str, whose: str) -> list[Figure]:
    ends = bed.text_ends()
    embedded = [ends.embed(ids, 0) for ids in texts.ids]
    exact = _states(bed, embedded, texts.first)
    chosen = [ends.logits(z, 0, len(z)).argmax(-1) for z in exact]
    width = exact[0].shape[1]
    ways = {name: (exact, _codec(**options)) for name, options in _CODECS.items()}
    if place:
        int8 = _codec(name="int8")
        coded = [_carried(e, int8)[0] for e in embedded]
        ways["int8_both_ways"] = _states(bed, coded, texts.first), int8
    figures = []
    for name, (states, codec) in ways.items():
        same = bits = tokens = 0
        for z, greedy in zip(states, chosen, strict=True):
            read, used = _carried(z, codec)
            same += int((ends.logits(read, 0, len(z)).argmax(-1) == greedy).sum())
            bits, tokens = bits + used, tokens + len(z)
        label = f"{name}{place}.{whose}"
        aimed = name.startswith("int8") or (place and name == RECOMMENDED)
        goal = TARGET if whose == "own" and aimed else None
        figures.append(Figure(f"{label}.agreement", same / tokens, "ratio", goal))
        figures.append(Figure(f"{label}.bits_a_token", bits / tokens, "bit"))
    figures.append(Figure(f"fp32{place}.{whose}.bits_a_token", 32.0 * width, "bit"))
    return figures


def _codec(**options: Any) -> Codec:
    return create_codec(**{"group": 128, "seed": 0, **options})


def _carried(x: torch.Tensor, codec: Codec) -> tuple[torch.Tensor, int]:
    """Return rows as they arrive, each sent by itself, and the bits of all."""
    found, bits = [], 0
    for row in x:
        parts = pack("z", row[None], codec)
        bits += sum(8 * part.nbytes for part in parts.values())
        found.append(unpack(parts, "z", codec, (1, x.shape[1])))
    return torch.cat(found), bits


def _states(bed: Bed, embedded: Sequence[torch.Tensor], first: int) -> list[torch.Tensor]:
    """Return what comes down for each text, from a place on."""
    forward, ranks = bed.engine.forward, bed.full_ranks
    return [forward([NewTokens(RowPages(), e, ranks)])[0][first:] for e in embedded]


def _texts(bed: Bed, settings: Settings) -> dict[str, _Texts]:
    """Return people's texts and the model's own."""
    people = people_or_chance(bed, settings.agreement_texts, tiny=settings.tiny)
    begun = [ids[:BEGUN] for ids in people]
    own = _written(bed, begun, settings.agreement_tokens)
    return {"own": _Texts(own, BEGUN - 1), "people": _Texts(people, 0)}


@torch.inference_mode()
def _written(bed: Bed, begun: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """Go on with texts greedily, all in one batch."""
    ends, pages = bed.text_ends(), [RowPages() for _ in begun]
    texts = [list(ids) for ids in begun]
    new = [list(ids) for ids in begun]
    for _ in range(tokens):
        rows = [
            NewTokens(kept, ends.embed(ids, 0), bed.full_ranks)
            for kept, ids in zip(pages, new, strict=True)
        ]
        last = torch.stack([z[-1] for z in bed.engine.forward(rows)])
        chosen = ends.logits(last, 0, len(last)).argmax(-1).tolist()
        new = [[token] for token in chosen]
        for text, token in zip(texts, chosen, strict=True):
            text.append(token)
    return texts
