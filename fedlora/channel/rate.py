"""From SNR to rate, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedlora.checks import choice

TARGET_BLOCK_ERROR_RATE = 0.1
_DB_PER_OCTAVE = 10 * math.log10(2)


class RateRule(Protocol):
    """How fast a link of a given SNR and bandwidth carries bits without error."""

    def rate_bps(self, snr_db: float, bandwidth_hz: float) -> float:
        """Return the rate in bit/s."""

    def snr_db(self, rate_bps: float, bandwidth_hz: float) -> float:
        """Return the smallest SNR that gives the rate, in dB."""


@dataclass(frozen=True)
class Shannon:
    """Capacity of the Gaussian channel, ``B log2(1 + snr / gap)``.

    Attributes
    ----------
    gap_db
        By how much a real code needs more SNR than capacity does, in dB.
    """

    gap_db: float = 0.0

    def rate_bps(self, snr_db: float, bandwidth_hz: float) -> float:
        """Return the rate in bit/s."""
        return bandwidth_hz * float(np.logaddexp2(0.0, (snr_db - self.gap_db) / _DB_PER_OCTAVE))

    def snr_db(self, rate_bps: float, bandwidth_hz: float) -> float:
        """Return the SNR that gives the rate, in dB."""
        efficiency = rate_bps / bandwidth_hz
        # log2(2^x - 1) = x + log2(1 - 2^-x) overflows for no x and keeps its digits for small ones.
        octaves = efficiency + math.log2(-math.expm1(-efficiency * math.log(2)))
        return octaves * _DB_PER_OCTAVE + self.gap_db


@dataclass(frozen=True)
class CodingScheme:
    """One row of a modulation and coding table.

    Attributes
    ----------
    bits_per_symbol
        Bits of a constellation point.
    code_rate_1024
        Code rate times 1024, as the standard lists it.
    threshold_db
        SNR per symbol at which one block in ten is lost, in dB.
    """

    bits_per_symbol: int
    code_rate_1024: int
    threshold_db: float

    @property
    def efficiency(self) -> float:
        """Information bits per symbol."""
        return self.bits_per_symbol * self.code_rate_1024 / 1024


@dataclass(frozen=True)
class ModulationCoding:
    """The best row of a modulation and coding table whose block error rate is at most 10%.

    The lost tenth is sent again, so the rate is 0.9 of the row's efficiency. Below the first row
    its blocks are repeated and combined, so the rate falls in proportion to the SNR and the link is
    slow rather than cut.

    Attributes
    ----------
    table
        Rows of rising efficiency and threshold.
    gap_db
        By how much every threshold is raised, in dB.
    """

    table: tuple[CodingScheme, ...]
    gap_db: float = 0.0

    def rate_bps(self, snr_db: float, bandwidth_hz: float) -> float:
        """Return the rate in bit/s."""
        usable = snr_db - self.gap_db
        first = self.table[0]
        if usable < first.threshold_db:
            efficiency = first.efficiency * 10 ** ((usable - first.threshold_db) / 10)
        else:
            efficiency = max(row.efficiency for row in self.table if row.threshold_db <= usable)
        return (1 - TARGET_BLOCK_ERROR_RATE) * efficiency * bandwidth_hz

    def snr_db(self, rate_bps: float, bandwidth_hz: float) -> float:
        """Return the smallest SNR that gives the rate (or the table's highest rate), in dB."""
        efficiency = rate_bps / bandwidth_hz / (1 - TARGET_BLOCK_ERROR_RATE)
        first, last = self.table[0], self.table[-1]
        if efficiency < first.efficiency:
            below_db = 10 * math.log10(efficiency / first.efficiency)
            return first.threshold_db + below_db + self.gap_db
        reached = (row for row in self.table if row.efficiency >= efficiency * (1 - 1e-12))
        return next(reached, last).threshold_db + self.gap_db


# Modulation and code rate: CQI tables of 3GPP TS 38.214, 5.2.2.1-2 and -3. Threshold: SNR at which
# the 5G LDPC code loses one block in ten over white noise, by simulation (Sionna 2.2: blocks of
# 2,000 bits, 20 belief-propagation iterations, 1,600 blocks a row, good to about 0.1 dB). The code
# has no mother rate below 1/5: the three lowest rows repeat it, at the same energy for each bit.
_QPSK_LOW = CodingScheme(2, 78, -8.0)
_QPSK_193 = CodingScheme(2, 193, -4.0)
_QPSK_449 = CodingScheme(2, 449, 0.4)
_SHARED_16QAM_64QAM = (
    CodingScheme(4, 378, 4.2),
    CodingScheme(4, 490, 6.1),
    CodingScheme(4, 616, 8.0),
    CodingScheme(6, 466, 9.7),
    CodingScheme(6, 567, 11.7),
    CodingScheme(6, 666, 13.7),
    CodingScheme(6, 772, 15.5),
    CodingScheme(6, 873, 17.6),
)

NR_64QAM = (
    _QPSK_LOW,
    CodingScheme(2, 120, -6.1),
    _QPSK_193,
    CodingScheme(2, 308, -1.7),
    _QPSK_449,
    CodingScheme(2, 602, 2.3),
    *_SHARED_16QAM_64QAM,
    CodingScheme(6, 948, 19.5),
)

NR_256QAM = (
    _QPSK_LOW,
    _QPSK_193,
    _QPSK_449,
    *_SHARED_16QAM_64QAM,
    CodingScheme(8, 711, 19.1),
    CodingScheme(8, 797, 21.1),
    CodingScheme(8, 885, 23.2),
    CodingScheme(8, 948, 25.0),
)


def rate_rule(name: str, gap_db: float = 0.0) -> RateRule:
    """Return the rate rule ``shannon``, ``nr_64qam`` or ``nr_256qam``.

    Raises
    ------
    FedloraError
        When the name is another.
    """
    if name == "shannon":
        return Shannon(gap_db)
    choice("channel.rate", name, ("shannon", "nr_64qam", "nr_256qam"))
    return ModulationCoding(NR_64QAM if name == "nr_64qam" else NR_256QAM, gap_db)
