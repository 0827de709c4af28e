"""The air ledger: every payload by client, round, direction and kind, and the time it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedlora.channel.channel import Channel
from fedlora.channel.delivery import Delivery, Walk, deliver
from fedlora.errors import FedloraError

AIR_KINDS = {
    "up": ("activation", "gradient", "head", "control"),
    "down": ("representation", "adapter", "head", "control"),
}
"""Kinds of payload that take air time, by direction."""

OUTSIDE_KINDS = ("evaluation", "baseline", "resume")
"""Exchanges that a run without them would not make: counted apart, without air time."""


@dataclass
class AirRow:
    """What one client sent and received in one round.

    Attributes
    ----------
    round, client
        Indices.
    bandwidth_hz, up_snr_db, down_snr_db
        The true channel when the round started; the SNR is ``None`` for a measured link.
    bits, seconds
        Payload in bits and air time in seconds, by direction and kind.
    wire_bytes
        Bytes of the frames that ``bits`` counts, framing included, by direction.
    delivered
        Whether the round's adapter arrived in time; ``None`` if none was due.
    """

    round: int
    client: int
    bandwidth_hz: float
    up_snr_db: float | None
    down_snr_db: float | None
    bits: dict[str, dict[str, int]] = field(default_factory=lambda: _by_kind(0))
    seconds: dict[str, dict[str, float]] = field(default_factory=lambda: _by_kind(0.0))
    wire_bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(AIR_KINDS, 0))
    delivered: bool | None = None

    def direction_seconds(self, direction: str) -> float:
        """Return the air time of one direction, in seconds."""
        return sum(self.seconds[direction].values())

    @property
    def air_seconds(self) -> float:
        """Air time of the client in the round: its payloads follow one another."""
        return self.direction_seconds("up") + self.direction_seconds("down")


class AirLedger:
    """Books payloads and turns them into seconds and joules by each client's true channel.

    Clients send in parallel, each on its own share of the bandwidth. Within a round a client's
    payloads follow one another, so that each meets the fading of its time. Seconds are modelled air
    time, also in a deployment, where the channel is what the clients measured; what travels before
    a client's first measurement takes none.

    Parameters
    ----------
    channel
        The channel of the run.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._round = -1
        self._bandwidth_hz: dict[int, float] = {}
        self._walks: dict[tuple[int, str], Walk] = {}
        self._rows: dict[int, dict[int, AirRow]] = {}
        self._outside = {kind: dict.fromkeys(AIR_KINDS, 0) for kind in OUTSIDE_KINDS}

    def start_round(self, round: int, bandwidth_hz: Mapping[int, float] | None = None) -> None:
        """Open a round.

        Parameters
        ----------
        round
            Index of the round, from 0.
        bandwidth_hz
            What the scheduler gave each client; a client that is not named keeps its own.
        """
        self._round = round
        self._walks = {}
        self._bandwidth_hz = dict(bandwidth_hz or {})

    def book(self, client: int, direction: str, kind: str, bits: int, wire_bytes: int) -> float:
        """Book a payload of the open round and return its air time in seconds.

        Parameters
        ----------
        client
            Index of the client.
        direction
            ``up`` or ``down``.
        kind
            One of ``AIR_KINDS[direction]``, or of ``OUTSIDE_KINDS``, which take no air time and
            need no open round.
        bits
            Payload without framing, in bits.
        wire_bytes
            What went over the wire for it, in bytes.

        Raises
        ------
        FedloraError
            When direction and kind do not go together, an amount is negative, or no round is open.
        """
        _check(direction, kind, bits, wire_bytes)
        if kind in OUTSIDE_KINDS:
            self._outside[kind][direction] += bits
            return 0.0
        return self._send(client, direction, kind, bits, wire_bytes).seconds

    def deliver(self, client: int, bits: int, wire_bytes: int) -> Delivery:
        """Send a client its adapter at the end of the open round, within the latency budget.

        What is late is cut off at the deadline, not delivered, and booked as far as it was sent.

        Parameters
        ----------
        client
            Index of the client.
        bits
            The adapter at the client's ranks, in bits.
        wire_bytes
            What the whole adapter takes on the wire, in bytes.
        """
        _check("down", "adapter", bits, wire_bytes)
        deadline_s = self._channel.config.deadline_s
        sent = self._send(client, "down", "adapter", bits, wire_bytes, deadline_s=deadline_s)
        self._row(client).delivered = sent.delivered
        return sent

    def row(self, round: int, client: int) -> AirRow | None:
        """Return what a client sent and received in a round, or ``None`` if it took no part."""
        return self._rows.get(round, {}).get(client)

    def rows(self) -> list[dict[str, Any]]:
        """Return a table for each round and client that took part, in order, for plots."""
        return [dataclasses.asdict(row) for round in sorted(self._rows) for row in self._of(round)]

    def totals(self, round: int | None = None) -> dict[str, Any]:
        """Return the totals of the run, or of one round.

        Returns
        -------
        totals
            ``bits`` by direction and kind, ``wire_bytes`` by direction, ``air_seconds`` (in each
            round that of the busiest client, summed over rounds), ``client_seconds`` (plain sum),
            ``energy_joules`` (transmit power times air time, both ends) and ``late_deliveries``.
        """
        rounds = sorted(self._rows) if round is None else [round]
        by_round = [self._of(number) for number in rounds]
        rows = [row for group in by_round for row in group]
        return {
            "bits": {
                direction: {kind: sum(row.bits[direction][kind] for row in rows) for kind in kinds}
                for direction, kinds in AIR_KINDS.items()
            },
            "wire_bytes": {
                direction: sum(row.wire_bytes[direction] for row in rows) for direction in AIR_KINDS
            },
            "air_seconds": sum(
                max((row.air_seconds for row in group), default=0.0) for group in by_round
            ),
            "client_seconds": sum(row.air_seconds for row in rows),
            "energy_joules": sum(self.energy_joules(row) for row in rows),
            "late_deliveries": sum(row.delivered is False for row in rows),
        }

    def energy_joules(self, row: AirRow) -> float:
        """Return the transmit energy of a client's round at both ends, in joules."""
        config = self._channel.config
        return config.up_power_w * row.direction_seconds(
            "up"
        ) + config.down_power_w * row.direction_seconds("down")

    def outside_bits(self) -> dict[str, dict[str, int]]:
        """Return the bits of exchanges outside the air budget, by kind and direction."""
        return {kind: dict(by_direction) for kind, by_direction in self._outside.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the ledger as a table that JSON can hold, for a checkpoint between rounds."""
        return {"rows": self.rows(), "outside": self.outside_bits()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state_dict`` returned; the next round has to be opened."""
        self._rows = {}
        for row in state["rows"]:
            own = {key: _with_all_kinds(row[key]) for key in ("bits", "seconds")}
            self._rows.setdefault(row["round"], {})[row["client"]] = AirRow(**{**row, **own})
        empty = {kind: dict.fromkeys(AIR_KINDS, 0) for kind in OUTSIDE_KINDS}
        self._outside = empty | {kind: dict(bits) for kind, bits in state["outside"].items()}
        self.start_round(-1)

    def _send(
        self,
        client: int,
        direction: str,
        kind: str,
        bits: int,
        wire_bytes: int,
        **deadline: float,
    ) -> Delivery:
        row = self._row(client)
        if self._channel.knows(client):
            sent = deliver(
                self._channel,
                bits,
                client,
                self._round,
                start_s=row.air_seconds,
                direction=direction,
                bandwidth_hz=self._bandwidth_hz.get(client),
                walk=self._walks.setdefault((client, direction), Walk()),
                **deadline,
            )
        else:
            sent = Delivery(True, 0.0, bits)
        row.bits[direction][kind] += sent.bits_sent
        row.seconds[direction][kind] += sent.seconds
        share = sent.bits_sent / bits if bits else 1.0
        row.wire_bytes[direction] += round(wire_bytes * share)
        return sent

    def _row(self, client: int) -> AirRow:
        if self._round < 0:
            raise FedloraError("no round is open in the air ledger; call start_round first")
        rows = self._rows.setdefault(self._round, {})
        if client not in rows:
            hz = self._bandwidth_hz.get(client)
            row = AirRow(
                self._round, client, self._channel.model.bandwidth_hz(client, 0), None, None
            )
            if self._channel.knows(client):
                state = self._channel.truth(client, self._round, bandwidth_hz=hz)
                row.bandwidth_hz = state.bandwidth_hz
                row.up_snr_db, row.down_snr_db = state.up_snr_db, state.down_snr_db
            rows[client] = row
        return rows[client]

    def _of(self, round: int) -> list[AirRow]:
        """Return the rows of a round in the order of the clients."""
        return [row for _, row in sorted(self._rows.get(round, {}).items())]


def _with_all_kinds(table: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return a table of which an earlier release has left kinds out."""
    return {way: {**dict.fromkeys(kinds, 0), **table[way]} for way, kinds in AIR_KINDS.items()}


def _by_kind(value: Any) -> dict[str, dict[str, Any]]:
    return {direction: dict.fromkeys(kinds, value) for direction, kinds in AIR_KINDS.items()}


def _check(direction: str, kind: str, bits: int, wire_bytes: int) -> None:
    if kind not in (*AIR_KINDS.get(direction, ()), *OUTSIDE_KINDS) or direction not in AIR_KINDS:
        raise FedloraError(
            f"cannot book a payload of kind {kind!r} in direction {direction!r}; "
            f"known: {AIR_KINDS}, and {', '.join(OUTSIDE_KINDS)} in both"
        )
    if bits < 0 or wire_bytes < 0:
        raise FedloraError(f"cannot book {bits} bits in {wire_bytes} bytes; count 0 or more")
