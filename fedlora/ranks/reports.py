"""What a strategy is told: each client's report before a round, and its outcome after."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from fedlora.channel import ChannelState
from fedlora.checks import number
from fedlora.errors import FedloraError, ProtocolError

T = TypeVar("T")

DIRECTIONS = ("up", "down")

_SURPRISAL_MAX = 64.0  # bits; a vocabulary of 2**58 tokens would have as much
_TOKENS_MAX = float(1 << 20)
_STATISTIC_BITS = 32


@dataclass(frozen=True)
class DataStatistics:
    """What a client tells of its text; each may be ``None``, and the client must have agreed.

    ``clients/text_statistics.py`` has how they are computed, and why these. Tokens are counted
    without special ones.

    Attributes
    ----------
    token_surprisal
        Mean of -log2 of the token's frequency in public text, in bits, from 0 to 64. The reference
        is the corpus that the tokenizer was made from, as the order of its vocabulary tells it.
    type_token_ratio
        Distinct tokens over tokens within windows of 64 tokens, from 0 to 1.
    pieces_per_word
        Tokens for each whitespace-separated word, up to 2**20.
    mean_length
        Mean tokens of a sample, up to 2**20.
    """

    token_surprisal: float | None = None
    type_token_ratio: float | None = None
    pieces_per_word: float | None = None
    mean_length: float | None = None

    def __post_init__(self) -> None:
        _check(self, "token_surprisal", high=_SURPRISAL_MAX)
        _check(self, "type_token_ratio", high=1.0)
        _check(self, "pieces_per_word", "mean_length", high=_TOKENS_MAX)

    @property
    def bits(self) -> int:
        """What they take on the air: 32 bits for each that is told."""
        return _STATISTIC_BITS * len(self.told())

    def told(self) -> dict[str, float]:
        """Return those that are told, by name."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}


@dataclass(frozen=True)
class DeviceInfo:
    """What a client tells of its device; each may be ``None``.

    Attributes
    ----------
    flops_per_second
        Sustained compute, in FLOP/s.
    memory_bytes
        Memory that is free for the adapter and the model, in bytes.
    battery
        Charge from 0 (empty) to 1 (full or on mains).
    """

    flops_per_second: float | None = None
    memory_bytes: float | None = None
    battery: float | None = None

    def __post_init__(self) -> None:
        _check(self, "flops_per_second", "memory_bytes")
        _check(self, "battery", high=1.0)


@dataclass(frozen=True)
class ClientReport:
    """What is known of a client when its ranks for a round are chosen.

    Attributes
    ----------
    channel
        Channel as the client reported it (with its error and age); ``None`` if it did not.
    statistics
        Statistics of its text; ``None`` unless ``ranks.statistics`` asks for them and its owner
        allows it.
    device
        Its device; ``None`` if unknown.
    budget_bits
        Bits that the reported downlink carries within the delivery's deadline; ``None`` (no limit)
        where no rate is known or adapters are never delivered.
    """

    channel: ChannelState | None = None
    statistics: DataStatistics | None = None
    device: DeviceInfo | None = None
    budget_bits: float | None = None

    def __post_init__(self) -> None:
        _check(self, "budget_bits")

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a table that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, table: Any) -> ClientReport:
        """Read what ``to_dict`` wrote and a wire carried.

        Raises
        ------
        ProtocolError
            When it is no table, a key is unknown, or a value is of the wrong type, not finite or
            out of range.
        """
        values = _known(cls, table, "a client report")
        if values.get("channel") is not None:
            values["channel"] = ChannelState.from_dict(values["channel"])
        for key, kind in (("statistics", DataStatistics), ("device", DeviceInfo)):
            if values.get(key) is not None:
                values[key] = _build(kind, values[key], f"{key} of a client report")
        return _build(cls, values, "a client report")


@dataclass(frozen=True)
class ClientOutcome:
    """What became of a client's round; all that is not known is ``None``.

    Attributes
    ----------
    loss_before, loss_after
        Held-out loss of the client before and after the round, each with the adapter that it had.
        ``None`` where it was not measured, or is private.
    delivered
        Whether the adapter arrived in time; False: it was late and the client keeps its previous
        one; ``None``: none was due. The client then keeps what it has, too, where adapters come
        over the air; where they never do, as reports without ``budget_bits`` tell, it works with
        the present adapter at the ranks decided.
    bits, seconds
        By direction (``up``, ``down``) and kind of payload (``activation``, ``gradient``,
        ``representation``, ``adapter``, ``control``): bits on the air, and air time in seconds.
    epsilon
        Privacy spent by the client so far.
    sensitivity
        For each projection the mean of abs(w * dL/dw) over the entries w of its A and B (AdaLoRA,
        arXiv 2303.10512, eq. 8), averaged over the round's steps; the same for all clients where
        the engine takes it from the averaged gradient.
    gradient_snr
        For each projection the signal-to-noise ratio of its gradient under privacy, as a ratio of
        energies over the round; the same for all clients. ``None`` without noise, or where
        ``privacy.probe_every`` is 0.
    """

    loss_before: float | None = None
    loss_after: float | None = None
    delivered: bool | None = None
    bits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    epsilon: float | None = None
    sensitivity: tuple[float, ...] | None = None
    gradient_snr: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _check(self, "loss_before", "loss_after", low=-math.inf)
        _check(self, "epsilon")
        if not isinstance(self.delivered, (bool, type(None))):
            raise FedloraError(f"delivered is {self.delivered!r}; set true, false or None")
        for name in ("bits", "seconds"):
            _check_ledger(name, getattr(self, name))
        for name, singular in (("sensitivity", "a sensitivity"), ("gradient_snr", "an SNR")):
            values = getattr(self, name)
            if values is None:
                continue
            if not isinstance(values, (list, tuple)):
                raise FedloraError(f"{name} is {values!r:.80}; set a list of numbers")
            numbers = tuple(number(singular, value, low=0.0) for value in values)
            object.__setattr__(self, name, numbers)

    @property
    def loss_drop(self) -> float | None:
        """Fall of the held-out loss over the round, or ``None`` where it is not known."""
        if self.loss_before is None or self.loss_after is None:
            return None
        return self.loss_before - self.loss_after

    @property
    def adapter_bits(self) -> float:
        """Bits of the adapter that was sent to the client in this round."""
        return self.bits.get("down", {}).get("adapter", 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as a table that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, table: Any) -> ClientOutcome:
        """Read what ``to_dict`` wrote.

        Raises
        ------
        ProtocolError
            When it is no table, a key is unknown, or a value is of the wrong type, not finite or
            out of range.
        """
        name = "a client outcome"
        return _build(cls, _known(cls, table, name), name)


def _known(cls: type, table: Any, name: str) -> dict[str, Any]:
    if not isinstance(table, Mapping):
        raise ProtocolError(f"{name} is {table!r:.80}; expected a table")
    known = [item.name for item in fields(cls)]
    unknown = sorted(set(map(str, table)) - set(known))
    if unknown:
        raise ProtocolError(f"{name} has an unknown key {unknown[0]!r:.80}; known: {known}")
    return dict(table)


def _build(cls: type[T], table: Any, name: str) -> T:
    try:
        return cls(**_known(cls, table, name))
    except FedloraError as error:
        raise ProtocolError(f"{name} is not valid: {error}") from None


def _check(record: Any, *names: str, low: float = 0.0, high: float = math.inf) -> None:
    for name in names:
        if getattr(record, name) is not None:
            number(name, getattr(record, name), low, high)


def _check_ledger(name: str, ledger: Any) -> None:
    if not isinstance(ledger, Mapping) or not set(ledger) <= set(DIRECTIONS):
        raise FedloraError(f"{name} is {ledger!r:.80}; expected a table with the keys up and down")
    for direction, kinds in ledger.items():
        if not isinstance(kinds, Mapping):
            raise FedloraError(f"{name}.{direction} is {kinds!r:.80}; expected a table by kind")
        for kind, value in kinds.items():
            number(f"{name}.{direction}.{kind}", value, low=0.0)
