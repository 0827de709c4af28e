"""How a metric is told to people: what it is called, and in which unit.

Files, curves and Python keep the plain number under its key; tables, pages, plots and the terminal
show NMSE in dB, as the literature on channels does.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedlora.report.units import ABSENT, decibels, number_text

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


@dataclass(frozen=True)
class MetricText:
    """How values of one metric are told.

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
