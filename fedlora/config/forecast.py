"""The scenario's section on forecasts: how long they look back, how far they look ahead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedlora.config.channel import SNR_LIMIT_DB
from fedlora.config.ranges import check_ranges, within
from fedlora.errors import require


@dataclass(frozen=True)
class ForecastConfig:
    """What ``task.kind = "forecast"`` predicts, and from what.

    Attributes
    ----------
    history, horizon
        Time steps that are known, and steps after them that are predicted.
    features
        Numbers at each time step; of complex series real and imaginary parts.
    patch
        Time steps that make one place of the sequence that the model sees; divides ``history``.
        With ``delay``: delays that do; divides ``features / 2``.
    stride
        Time steps from one sample of a record to the next; 0: history + horizon.
    front
        What makes vectors of the places: one ``linear`` map, or for ``channel`` responses over
        subcarriers two convolutional branches, over frequency and over delay. With ``delay`` places
        are delays with all their history, whose weights are common to all, and the head weighs
        what ``base`` predicts of each.
    normalise
        By which statistics of its own history a sample is normalised, which stay on the client:
        each ``feature`` by its own, all features of a ``sample`` by common ones, by its ``power``
        alone, which moves no zero (as channels need it), or ``none``.
    width
        Numbers of a vector that the front makes and the head reads; 0: the model's width. A fixed
        orthonormal map takes them to that width, so that narrow ends have fewer weights to share.
    channels, blocks
        Of each branch of the front ``channel``: channels of a convolution, and blocks of two.
    base, base_order
        What the head corrects, which has no weights: nothing, the ``last`` known step, or of
        complex features with ``pad`` each delay's recurrence of its own past, of so many steps,
        with ``covariance`` one that has to fit the neighbouring delays and the past reversed, too.
    history_snr_db
        White noise that is added to the history of each sample, as a measurement has it: at the
        signal-to-noise ratio given, or between two, each sample at its own. What is to be predicted
        stays as it is. Empty: none.
    loss
        ``mse``: mean squared error of normalised numbers; ``nmse``: squared error over the energy
        of what is predicted.
    """

    history: int = within(16, 1, 1 << 20)
    horizon: int = within(4, 1, 1 << 20)
    features: int = within(1, 1, 1 << 20)
    patch: int = within(4, 1, 1 << 20)
    stride: int = within(0, 1, 1 << 20, zero="history + horizon")
    front: Literal["linear", "channel", "delay"] = "linear"
    normalise: Literal["feature", "sample", "power", "none"] = "feature"
    width: int = within(0, 1, 1 << 16, zero="the model's")
    channels: int = within(12, 1, 1024)
    blocks: int = within(2, 0, 64)
    base: Literal["none", "last", "pad", "covariance"] = "none"
    base_order: int = within(2, 1, 64)
    history_snr_db: tuple[float, ...] = within((), -SNR_LIMIT_DB, SNR_LIMIT_DB)
    loss: Literal["mse", "nmse"] = "mse"

    def __post_init__(self) -> None:
        check_ranges(self, "task.forecast.")
        require(
            self.front == "delay" or self.history % self.patch == 0,
            f"task.forecast.patch is {self.patch}, which does not divide task.forecast.history "
            f"{self.history}; set one that does",
        )
        require(
            self.front == "linear" or self.features % 2 == 0,
            f"task.forecast.front is {self.front}, which takes real and imaginary parts, and "
            f"task.forecast.features is {self.features}; set an even number, or front to linear",
        )
        if self.front == "delay":
            delays = self.features // 2
            require(
                delays % self.patch == 0,
                f"task.forecast.patch is {self.patch}, which does not divide the {delays} delays "
                f"of task.forecast.features {self.features}; set one that does",
            )
            require(
                self.base != "none",
                f"task.forecast.front is delay, whose head weighs recurrences, and "
                f"task.forecast.base is {self.base}; set base to covariance, pad or last, or front "
                "to channel",
            )
        recurs = self.base in ("pad", "covariance")
        require(
            not recurs or self.features % 2 == 0,
            f"task.forecast.base is {self.base}, which takes real and imaginary parts, and "
            f"task.forecast.features is {self.features}; set an even number, or base to last or "
            "none",
        )
        require(
            not recurs or 2 * self.base_order <= self.history,
            f"task.forecast.base_order is {self.base_order}, and a history of {self.history} steps "
            f"determines at most {self.history // 2}; lower it",
        )
        noise = self.history_snr_db
        require(
            len(noise) <= 2 and list(noise) == sorted(noise),
            f"task.forecast.history_snr_db is {list(noise)}; write one ratio, or the least and the "
            "largest",
        )

    @property
    def window(self) -> int:
        """Time steps of a sample."""
        return self.history + self.horizon

    @property
    def places(self) -> int:
        """Places of the sequence that the model sees."""
        numbers = self.features // 2 if self.front == "delay" else self.history
        return numbers // self.patch
