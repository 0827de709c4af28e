"""What a run writes while it goes on, and how to read it back when keys are missing.

``metrics.jsonl`` holds one ``RoundRecord`` a line. Readers never rely on a key: a run may have no
channel model, no privacy, no evaluation in some round, or come from another version.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from fedlora.checks import finite

DIRECTIONS: Mapping[str, tuple[str, ...]] = {
    "up": ("activation", "gradient", "head", "control"),
    "down": ("representation", "adapter", "head", "control"),
}
"""Kinds of payload by direction, seen from the client."""


class ClientRecord(TypedDict, total=False):
    """One client in one round.

    ``rows`` are training rows, ``loss`` and ``metric`` held-out values, ``ranks`` the rank of each
    projection in the order of the rank space, ``snr_db`` the downlink's signal-to-noise ratio and
    ``rate_bps`` its rate in bit/s as the client reported them, ``statistics`` those of its text
    that it told (fields of ``DataStatistics``; missing where it told none), ``bits_*`` payload
    without framing, ``adapter_bits`` what was sent of the adapter, ``delivered`` None when none was
    sent, ``air_seconds`` and ``energy_joules`` of the transmissions at both ends, ``epsilon`` what
    is spent so far.
    """

    rows: int
    loss: float | None
    metric: float | None
    mean_rank: float | None
    ranks: Sequence[int]
    snr_db: float | None
    rate_bps: float | None
    statistics: Mapping[str, float]
    bits_up: int
    bits_down: int
    adapter_bits: int
    delivered: bool | None
    air_seconds: float
    energy_joules: float
    epsilon: float | None


class RoundRecord(TypedDict, total=False):
    """One round of training.

    ``rho`` and ``sigma`` are the privacy that the sample that spent most has spent so far (see
    ``fedlora.privacy.accounting.rdp``) and the least noise of an upload; ``label_epsilon`` is what
    randomised labels have cost beside it. ``gradient_snr`` is the signal-to-noise ratio of each
    projection's gradient under privacy, where it was probed.
    ``step`` numbers the optimiser steps since the start of the run, those included that a round
    whose time was up has left out; ``steps`` (those that it took), ``seconds``, ``tokens``,
    ``bits``, ``wire_bytes``, ``raw_bits`` (what the cut would take as it is, see
    ``fedlora.geometry.Geometry.raw_bits``), ``air_seconds``, ``client_seconds``,
    ``energy_joules``, ``late_deliveries`` and ``lost`` are of this round alone. ``train_loss`` is
    the mean over the round's steps; ``loss`` and ``metric`` are held-out values, None in rounds
    without evaluation, ``metrics`` all of them by name. ``missed`` holds for each client that was
    late or lost the steps that went on without it. ``components`` counts ``all`` components of the
    adapter, those that were ``trained``, and those that were ``resting`` because too few clients
    trained them for a robust average.
    """

    round: int
    step: int
    steps: int
    train_loss: float | None
    loss: float | None
    metric: float | None
    metric_name: str
    metrics: Mapping[str, float | None]
    higher_is_better: bool
    seconds: float
    tokens: int
    bits: Mapping[str, Mapping[str, int]]
    wire_bytes: Mapping[str, int]
    raw_bits: int
    air_seconds: float
    client_seconds: float
    energy_joules: float
    mean_rank: float
    late_deliveries: int
    lost: Sequence[str]
    missed: Mapping[str, int]
    rho: float
    sigma: float
    label_epsilon: float
    gradient_snr: Sequence[float]
    components: Mapping[str, int]
    clients: Mapping[str, ClientRecord]


Rounds = Sequence[RoundRecord]


def series(rounds: Rounds, key: str) -> tuple[list[int], list[float]]:
    """Return the rounds that have a number under ``key``, and the numbers."""
    pairs = [
        (record.get("round", index), value)
        for index, record in enumerate(rounds, start=1)
        if (value := finite(record.get(key))) is not None
    ]
    return [r for r, _ in pairs], [v for _, v in pairs]


def last_evaluated(rounds: Rounds, client: str | None = None) -> int | None:
    """Return the last round with a held-out metric or loss, of all or of one client.

    A metric that is no finite number, such as the perplexity of a loss that has run away, is in no
    series; the round's loss then tells that an earlier metric is not the last one.
    """
    keys = ("metric", "loss")
    found = (
        (series(rounds, key) if client is None else client_series(rounds, client, key))[0]
        for key in keys
    )
    return max((number for numbers in found for number in numbers), default=None)


def client_ids(rounds: Rounds) -> list[str]:
    """Return every client that occurs, ``client-2`` before ``client-10``."""
    return sorted(
        {client for record in rounds for client in record.get("clients") or {}}, key=_natural
    )


def client_series(rounds: Rounds, client: str, key: str) -> tuple[list[int], list[float]]:
    """Return the rounds in which one client has a number under ``key``, and the numbers."""
    pairs = [
        (record.get("round", index), value)
        for index, record in enumerate(rounds, start=1)
        if (value := finite((record.get("clients") or {}).get(client, {}).get(key))) is not None
    ]
    return [r for r, _ in pairs], [v for _, v in pairs]


def total_bits(rounds: Rounds) -> dict[str, dict[str, int]]:
    """Sum the payload over rounds, by direction and kind; every known kind is there."""
    totals = {way: dict.fromkeys(kinds, 0) for way, kinds in DIRECTIONS.items()}
    for record in rounds:
        for way, kinds in (record.get("bits") or {}).items():
            for kind, bits in kinds.items():
                totals.setdefault(way, {})[kind] = totals.setdefault(way, {}).get(kind, 0) + bits
    return totals


def cut_bits(bits: Mapping[str, Mapping[str, float]]) -> float:
    """Return what crossed the cut in training, both ways: all but the adapters."""
    return sum(
        finite((bits.get(way) or {}).get(kind)) or 0.0
        for way, kinds in DIRECTIONS.items()
        for kind in kinds
        if kind != "adapter"
    )


@dataclass(frozen=True)
class ClientTotals:
    """One client over the whole run.

    Attributes
    ----------
    client
        Its identifier.
    rows, epsilon, statistics
        The last value that was reported; no statistics where none was.
    metric, loss
        At its last evaluation; None where there was none, or it was no finite number.
    snr_db, mean_rank
        Means over the rounds that reported one.
    bits_up, bits_down, adapter_bits
        Payload over all rounds, and the adapters' part of it.
    deliveries, deliveries_due
        Adapters that arrived in time, and that were sent.
    energy_joules
        Transmit energy at both ends over all rounds; None where no channel was modelled.
    rounds_lost
        Rounds in which the client was lost.
    """

    client: str
    rows: float | None
    metric: float | None
    loss: float | None
    epsilon: float | None
    snr_db: float | None
    mean_rank: float | None
    bits_up: float
    bits_down: float
    adapter_bits: float
    energy_joules: float | None
    deliveries: int
    deliveries_due: int
    rounds_lost: int
    statistics: Mapping[str, float]


def client_totals(rounds: Rounds) -> list[ClientTotals]:
    """Sum up every client's rounds, in natural order of the identifiers."""
    return [_totals(rounds, client) for client in client_ids(rounds)]


def _totals(rounds: Rounds, client: str) -> ClientTotals:
    def values(key: str) -> list[float]:
        return client_series(rounds, client, key)[1]

    def last(key: str) -> float | None:
        return values(key)[-1] if values(key) else None

    evaluated = last_evaluated(rounds, client)

    def at_the_last(key: str) -> float | None:
        found: dict[int, float] = dict(zip(*client_series(rounds, client, key), strict=True))
        return None if evaluated is None else found.get(evaluated)

    records = [(record.get("clients") or {}).get(client, {}) for record in rounds]
    delivered = [record.get("delivered") for record in records]
    statistics = [
        found for record in records if isinstance(found := record.get("statistics"), Mapping)
    ]
    return ClientTotals(
        client=client,
        rows=last("rows"),
        metric=at_the_last("metric"),
        loss=at_the_last("loss"),
        epsilon=last("epsilon"),
        snr_db=mean(values("snr_db")),
        mean_rank=mean(values("mean_rank")),
        bits_up=sum(values("bits_up")),
        bits_down=sum(values("bits_down")),
        adapter_bits=sum(values("adapter_bits")),
        energy_joules=sum(values("energy_joules")) if values("energy_joules") else None,
        deliveries=sum(item is True for item in delivered),
        deliveries_due=sum(item is not None for item in delivered),
        rounds_lost=sum(client in (record.get("lost") or ()) for record in rounds),
        statistics=statistics[-1] if statistics else {},
    )


def mean(values: Sequence[float]) -> float | None:
    """Return the arithmetic mean, or None of nothing."""
    return math.fsum(values) / len(values) if values else None


def _natural(text: str) -> list[tuple[int, str]]:
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)
    ]
