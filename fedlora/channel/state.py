"""What is known of a client's channel."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedlora.checks import bandwidth, number
from fedlora.errors import FedloraError, ProtocolError

SNR_LIMIT_DB = 1e3
DERIVED_SNR_LIMIT_DB = 1e6  # a fast wire on a scenario's narrow band would take as much
RATE_MIN_BPS, RATE_MAX_BPS = 1e-30, 1e15


@dataclass(frozen=True)
class ChannelState:
    """The channel of one client: true, reported or measured.

    The bounds leave room for any fade, and keep what is reckoned from a state finite.

    Attributes
    ----------
    up_snr_db, down_snr_db
        SNR over the client's bandwidth, in dB, within 1000 dB of 0 (1e6 dB where ``derived``);
        ``None`` where only a rate was measured. For a frequency-selective channel it is the SNR of
        the flat channel of the same capacity.
    bandwidth_hz
        Bandwidth of the client's share in each direction, from 1 Hz to 10 THz.
    up_rate_bps, down_rate_bps
        Error-free rate, from 1e-30 (a link in a deep fade is slow, and never cut) to 1e15 bit/s.
    age_s
        Time since the channel was like this, in seconds.
    derived
        Whether the rates were measured, so that an SNR is only the one that would give the rate.
    """

    up_snr_db: float | None
    down_snr_db: float | None
    bandwidth_hz: float
    up_rate_bps: float
    down_rate_bps: float
    age_s: float = 0.0
    derived: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.derived, bool):
            raise FedloraError(f"derived is {self.derived!r}; set true or false")
        limit_db = DERIVED_SNR_LIMIT_DB if self.derived else SNR_LIMIT_DB
        for name in ("up_snr_db", "down_snr_db"):
            if getattr(self, name) is not None:
                number(name, getattr(self, name), -limit_db, limit_db)
        bandwidth("bandwidth_hz", self.bandwidth_hz)
        for name in ("up_rate_bps", "down_rate_bps"):
            number(name, getattr(self, name), RATE_MIN_BPS, RATE_MAX_BPS)
        number("age_s", self.age_s, low=0.0)

    def rate_bps(self, direction: str) -> float:
        """Return the rate of one direction, ``up`` or ``down``, in bit/s."""
        return self.up_rate_bps if direction == "up" else self.down_rate_bps

    def to_dict(self) -> dict[str, Any]:
        """Return the state as a table that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, table: Any) -> ChannelState:
        """Read what ``to_dict`` wrote and a wire carried.

        Raises
        ------
        ProtocolError
            When it is no table, a key is missing or unknown, or a value is of the wrong type, not
            finite or out of range.
        """
        if not isinstance(table, Mapping):
            raise ProtocolError(f"a channel state is {table!r:.80}; expected a table")
        known = {item.name for item in dataclasses.fields(cls)}
        wrong = sorted(known.symmetric_difference(map(str, table)))
        if wrong:
            problem = "lacks" if wrong[0] in known else "has the unknown"
            raise ProtocolError(
                f"a channel state {problem} key {wrong[0]!r:.80}; expected {sorted(known)}"
            )
        try:
            return cls(**table)
        except FedloraError as error:
            raise ProtocolError(f"a channel state is not valid: {error}") from None
