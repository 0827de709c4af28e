"""Figures as people read them: SI units, three to four digits, grouped thousands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

ABSENT = "–"
_NAMES = {
    "auc": "AUC",
    "bleu": "BLEU",
    "macro_f1": "macro F1",
    "nmse": "NMSE",
    "nmse_mean": "NMSE, mean of ratios",
    "rmse": "RMSE",
    "rouge_l": "ROUGE-L",
}
_RATIOS_OF_POWERS = ("nmse", "nmse_mean")
_CROSS_ENTROPIES = ("accuracy", "perplexity")  # metrics of the tasks whose loss is one


def bits_text(bits: float | None) -> str:
    """Write a number of bits with an SI prefix, such as ``12.3 Mbit``."""
    if bits is None:
        return ABSENT
    scale, unit = bits_scale(bits)
    return _three_digits(bits, scale, unit)


def bits_scale(largest: float) -> tuple[float, str]:
    """Return the number of bits in the unit that suits the largest of some values, and its name."""
    return _scale(largest, "bit", 1000, ("", "k", "M", "G", "T", "P"))


def energy_text(joules: float | None) -> str:
    """Write an energy with an SI prefix, such as ``12.3 kJ``."""
    if joules is None:
        return ABSENT
    scale, unit = energy_scale(joules)
    return f"{joules:.2f} J" if scale == 1 else _three_digits(joules, scale, unit)


def energy_scale(largest: float) -> tuple[float, str]:
    """Return the number of joules in the unit that suits the largest of some, and its name."""
    return _scale(largest, "J", 1000, ("", "k", "M", "G"))


def bytes_text(size: float | None) -> str:
    """Write a number of bytes with a binary prefix, such as ``412 MiB``."""
    if size is None:
        return ABSENT
    scale, unit = _scale(size, "B", 1024, ("", "Ki", "Mi", "Gi", "Ti"))
    return _three_digits(size, scale, unit)


def count_text(count: float | None) -> str:
    """Write a whole number with grouped thousands, such as ``102,400``."""
    return ABSENT if count is None else f"{count:,.0f}"


def number_text(value: float | None) -> str:
    """Write a metric, loss or mean: three decimals below 10, four digits from there on."""
    if value is None:
        return ABSENT
    if abs(value) < 10:
        return f"{value:.3f}"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:,.1f}"


def decibels(ratio: float) -> float:
    """Return a ratio of powers in dB."""
    return 10 * math.log10(ratio) if ratio > 0 else -math.inf


def seconds_text(seconds: float | None) -> str:
    """Write a duration: ``0.35 s``, ``24.8 s``, ``3 min 05 s`` or ``2 h 07 min``."""
    if seconds is None:
        return ABSENT
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min"


@dataclass(frozen=True)
class MetricText:
    """How values of one metric are told to people: its name, and NMSE in dB.

    Files, curves and Python keep the plain number under its key.

    Attributes
    ----------
    key
        What files call it, such as ``nmse``.
    """

    key: str

    @property
    def name(self) -> str:
        """What people call it, such as ``NMSE``."""
        return _NAMES.get(self.key, self.key.replace("_", " "))

    @property
    def title(self) -> str:
        """The name as a sentence begins with it."""
        return self.name[:1].upper() + self.name[1:]

    @property
    def unit(self) -> str:
        """``dB``, or nothing."""
        return "dB" if self.key in _RATIOS_OF_POWERS else ""

    @property
    def axis(self) -> str:
        """Name and unit for an axis or a column, such as ``NMSE in dB``."""
        return f"{self.name} in {self.unit}" if self.unit else self.name

    @property
    def loss(self) -> str:
        """What the loss of a task with this metric is: in nats, if it is a cross-entropy."""
        return "loss in nats" if self.key in _CROSS_ENTROPIES else "loss"

    def value(self, plain: float) -> float:
        """Return the number in the unit that it is told in; no error at all is -inf dB."""
        return decibels(plain) if self.unit else plain

    def figure(self, plain: float | None) -> str:
        """Write a value without its unit, for a column that has it in its heading."""
        if plain is None:
            return ABSENT
        return f"{self.value(plain):.2f}" if self.unit else number_text(plain)

    def text(self, plain: float | None) -> str:
        """Write a value with its unit."""
        return f"{self.figure(plain)} {self.unit}".strip() if plain is not None else ABSENT

    def change(self, before: float, after: float) -> float:
        """Return by how much a value changed in the unit that it is told in."""
        return 0.0 if before == after else self.value(after) - self.value(before)

    def difference(self, before: float, after: float) -> str:
        """Write by how much a value changed, without a sign."""
        change = abs(self.change(before, after))
        return f"{change:.2f} {self.unit}" if self.unit else number_text(change)

    def signed(self, before: float, after: float) -> str:
        """Write by how much a value changed, with its sign and three decimals, or two of dB."""
        change = self.change(before, after)
        return f"{change:+.2f} {self.unit}" if self.unit else f"{change:+.3f}"


def _scale(largest: float, unit: str, base: int, prefixes: Sequence[str]) -> tuple[float, str]:
    power = 0
    while abs(largest) >= 0.9995 * base ** (power + 1) and power < len(prefixes) - 1:
        power += 1
    return float(base**power), f"{prefixes[power]}{unit}"


def _three_digits(value: float, scale: float, unit: str) -> str:
    value /= scale
    digits = 0 if scale == 1 or abs(value) >= 99.95 else 2 if abs(value) < 9.995 else 1
    return f"{value:,.{digits}f} {unit}"
