"""The server's account of the air: true channels, adapter delivery, and the ledger."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, get_args

import torch

from fedlora.blame import blaming
from fedlora.channel import AirLedger, AirRow, ChannelState, build_channel
from fedlora.channel.ledger import AIR_KINDS, OUTSIDE_KINDS
from fedlora.channel.schedule.base import ClientLoad, build_scheduler, division_of
from fedlora.checks import BANDWIDTH_MAX_HZ, BANDWIDTH_MIN_HZ
from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.ranks import ClientReport, DataStatistics
from fedlora.report import ClientRecord, RoundRecord
from fedlora.storage.tree import pack_state

Purpose = Literal["train", "evaluation", "baseline", "resume"]
Drop = Callable[[str, str], None]
"""Leaves a client out of the run, and says why."""

_KIND = {
    "activation": "activation",
    "gradient": "gradient",
    "head_gradient": "head",
    "head_weight": "head",
    "front_gradient": "head",
    "front_weight": "head",
    "representation": "representation",
    "embedding": "representation",
}

_ANYBODY = -1  # stands for a client that has not taken part yet


class Air:
    """Books what travels and delivers adapters.

    Weights and gradients of head and shared front count as ``head``; what comes down for each token
    (representation and, where the embedding trains, dL/de) as ``representation``; lengths,
    identifiers and statistics of the text as ``control``. Evaluation, the frozen-backbone baseline
    and what a server that begins again asks for once more are booked outside the air budget.

    Parameters
    ----------
    scenario
        Its channel section and seed are used.

    Attributes
    ----------
    enabled
        Whether adapters are delivered over the air, so that a client has what arrived.
    purpose
        What the exchanges of the moment are for.
    radio
        Whether there is a radio to reckon with. In a deployment whose scenario says nothing of a
        channel there is none: only bits are booked, and reports name no channel.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.config = scenario.channel
        self.channel = build_channel(scenario.channel, scenario.seed)
        self.ledger = AirLedger(self.channel)
        self.enabled = self.config.deliver_every > 0
        self.purpose: Purpose = "train"
        self.radio = True
        self._scheduler_name = f"channel.schedule.scheduler {self.config.schedule.scheduler}"
        self._scheduler = build_scheduler(
            scenario.channel.schedule, rounds=scenario.train.rounds, seed=scenario.seed
        )
        # A client that has not taken part yet is taken to be loaded like the last one that has.
        self._load = ClientLoad(1e6, 1e6)
        self._loads: dict[int, ClientLoad] = {}
        self._bits = {purpose: [0, 0] for purpose in get_args(Purpose)}

    @contextlib.contextmanager
    def apart(self, purpose: Purpose) -> Iterator[None]:
        """Book what travels meanwhile for another purpose."""
        before, self.purpose = self.purpose, purpose
        try:
            yield
        finally:
            self.purpose = before

    def begin_round(self, round_: int, bandwidth_hz: Mapping[str, float] | None = None) -> None:
        """Open round ``round_``, counted from 1, with the bandwidth that clients were given."""
        shares = {int(client): hz for client, hz in (bandwidth_hz or {}).items()}
        self.ledger.start_round(round_ - 1, shares)

    def note_report(self, round_: int, client: str, report: ClientReport) -> ClientReport:
        """Take the link that a client measured, where the channel is what clients measure.

        Returns
        -------
        ClientReport
            The report; of a measured link only the rates are the client's word, bandwidth and SNR
            are the scenario's.

        Raises
        ------
        FedloraError
            When the client reports no rate, although the scenario rests on it, or not what its
            channel model lets it know.
        """
        if not self.radio:  # a device of an earlier release reports the default's
            return dataclasses.replace(report, channel=None)
        state = report.channel
        if state is None:
            if not self.channel.measured:
                return report
            raise FedloraError(
                "it reports no measured link, and channel.model is measured; let it measure, or "
                "set channel.model to a simulated channel"
            )
        self.channel.observe(int(client), state)
        known = self.channel.report(int(client), round_ - 1)
        if self.channel.measured:
            known = dataclasses.replace(known, age_s=state.age_s)
            return dataclasses.replace(report, channel=known)
        if _told(state) != _told(known):
            raise FedloraError(
                f"it reports an SNR of {state.up_snr_db} dB up and {state.down_snr_db} dB down, "
                f"derived {state.derived}, which channel.model {self.config.model} does not give; "
                "let it run the server's release of fedlora"
            )
        return report

    def schedule(
        self, round_: int, reports: Mapping[str, ClientReport], drop: Drop
    ) -> tuple[dict[str, ClientReport], dict[str, float]]:
        """Let the scheduler choose who takes part and divide the bandwidth.

        Parameters
        ----------
        round_
            Number of the round, from 1.
        reports
            As ``note_report`` returned them.
        drop
            Called for a client whose report allows no reckoning at its share.

        Returns
        -------
        tuple
            Reports of the chosen clients, at the bandwidth that they were given, and that
            bandwidth in Hz. A client without a channel report takes part as it is.

        Raises
        ------
        FedloraError
            When the scheduler chooses nobody or divides nonsense, or the links have no SNR, from
            which their rate at another bandwidth would follow.
        """
        states = {int(c): r.channel for c, r in reports.items() if r.channel is not None}
        division = self._divide(round_, states)
        chosen: dict[str, ClientReport] = {}
        for client, report in reports.items():
            state, hz = report.channel, division.get(int(client))
            if state is None:
                chosen[client] = report
            elif hz is not None:
                try:
                    given = self.channel.at_bandwidth(state, hz)
                except FedloraError as error:
                    if state.up_snr_db is None or state.down_snr_db is None:
                        raise  # so it is with every client: the scenario cannot be run
                    drop(client, f"its report of the channel leads nowhere: {error}")
                else:
                    chosen[client] = dataclasses.replace(report, channel=given)
        return chosen, {str(client): hz for client, hz in division.items()}

    def _divide(self, round_: int, states: Mapping[int, ChannelState]) -> dict[int, float]:
        """Ask the scheduler, where there is anybody to choose; check what it says."""
        if not states:
            return {}
        loads = {client: self._loads.get(client, self._load) for client in states}
        total_hz, name = self.config.schedule.total_bandwidth_hz, self._scheduler_name
        given = division_of(self._scheduler, round_ - 1, states, loads, total_hz, name)
        return {c: min(max(hz, BANDWIDTH_MIN_HZ), BANDWIDTH_MAX_HZ) for c, hz in given.items()}

    def end_round(self, round_: int, clients: Iterable[str]) -> None:
        """Tell the scheduler how long the round took, and remember what it asked of each client."""
        seconds = self.ledger.totals(round_ - 1)["air_seconds"]
        with blaming(self._scheduler_name, type(self._scheduler)):
            self._scheduler.observe(round_ - 1, seconds)
        for client in clients:
            row = self.row(round_, client)
            if row is not None:
                self._load = ClientLoad(*(sum(row.bits[way].values()) for way in ("up", "down")))
                self._loads[int(client)] = self._load

    def book(
        self,
        client: str,
        direction: str,
        tensors: Mapping[str, torch.Tensor],
        wire_bytes: int,
    ) -> None:
        """Book the tensors of one frame, which took ``wire_bytes`` on the wire."""
        bits: dict[str, int] = {}
        for name, tensor in tensors.items():
            kind = _KIND.get(name.partition(".")[0], "control")
            kind = kind if self.purpose == "train" else self.purpose
            bits[kind] = bits.get(kind, 0) + 8 * tensor.nbytes
        # In an order of its own, as a link that fades carries what goes first at another rate.
        for kind in (*AIR_KINDS[direction], *OUTSIDE_KINDS):
            if kind not in bits:
                continue
            self._book(client, direction, kind, bits[kind], wire_bytes)
            wire_bytes = 0  # a frame's framing is counted once

    def book_statistics(self, client: str, statistics: DataStatistics) -> None:
        """Book what a client told of its text, as control data of the open round."""
        self._book(client, "up", "control", statistics.bits, statistics.bits // 8)

    def _book(self, client: str, direction: str, kind: str, bits: int, wire_bytes: int) -> None:
        self.ledger.book(int(client), direction, kind, bits, wire_bytes)
        self._bits[self.purpose][direction == "down"] += bits

    def with_budgets(
        self, reports: Mapping[str, ClientReport], drop: Drop
    ) -> dict[str, ClientReport]:
        """Add to each report the bits that its downlink carries within the deadline.

        Also in rounds without delivery, so that a strategy's ranks do not jump between them. A
        client whose report allows none is dropped.
        """
        if not self.enabled:
            return dict(reports)
        budgeted: dict[str, ClientReport] = {}
        for client, report in reports.items():
            if report.channel is None:
                budgeted[client] = report
                continue
            bits = report.channel.down_rate_bps * self.config.deadline_s
            try:
                budgeted[client] = dataclasses.replace(report, budget_bits=bits)
            except FedloraError as error:
                drop(client, f"its report of the channel leads nowhere: {error}")
        return budgeted

    def delivers(self, round_: int) -> bool:
        """Tell whether adapters are due at the end of a round."""
        return self.enabled and round_ % self.config.deliver_every == 0

    def deliver(self, client: str, bits: int) -> bool:
        """Send a client its adapter; False when it came later than the deadline allows."""
        sent = self.ledger.deliver(int(client), bits, bits // 8)
        self._bits[self.purpose][1] += sent.bits_sent
        return sent.delivered

    def row(self, round_: int, client: str) -> AirRow | None:
        """Return what a client sent and received in a round."""
        return self.ledger.row(round_ - 1, int(client))

    def bits_so_far(self) -> tuple[int, int]:
        """Return the bits up and down of the present purpose since the run began."""
        up, down = self._bits[self.purpose]
        return up, down

    def state_dict(self) -> dict[str, Any]:
        """Return what has been booked, for a checkpoint between rounds."""
        bits = {purpose: list(amounts) for purpose, amounts in self._bits.items()}
        return {
            "ledger": self.ledger.state_dict(),
            "bits": bits,
            "scheduler": self._scheduler_state(),
            "loads": {
                str(client): dataclasses.asdict(load)
                for client, load in [*self._loads.items(), (_ANYBODY, self._load)]
            },
        }

    def _scheduler_state(self) -> dict[str, Any]:
        with blaming(self._scheduler_name, type(self._scheduler)):
            state = self._scheduler.state_dict()
        try:
            pack_state(state)
        except FedloraError as error:
            told = f"{self._scheduler_name} has a state_dict() that no checkpoint holds: {error}"
            raise FedloraError(told) from None
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave, in place of what was booked since the start."""
        self.ledger.load_state_dict(state["ledger"])
        self._bits |= {purpose: list(amounts) for purpose, amounts in state["bits"].items()}
        with blaming(self._scheduler_name, type(self._scheduler)):
            self._scheduler.load_state_dict(state["scheduler"])
        self._loads = {int(client): ClientLoad(**load) for client, load in state["loads"].items()}
        self._load = self._loads.pop(_ANYBODY)

    def client_record(self, round_: int, client: str) -> ClientRecord:
        """Return a client's part of a round record."""
        row = self.row(round_, client)
        if row is None:
            return ClientRecord()
        record = ClientRecord(
            bits_up=sum(row.bits["up"].values()),
            bits_down=sum(row.bits["down"].values()),
            adapter_bits=row.bits["down"]["adapter"],
            delivered=row.delivered,
        )
        if self.radio:
            record["air_seconds"] = row.air_seconds
            record["energy_joules"] = self.ledger.energy_joules(row)
        return record

    def round_record(self, round_: int) -> RoundRecord:
        """Return the ledger's part of a round record."""
        totals = self.ledger.totals(round_ - 1)
        record = RoundRecord(bits=totals["bits"], wire_bytes=totals["wire_bytes"])
        if self.radio:
            record["air_seconds"] = totals["air_seconds"]
            record["client_seconds"] = totals["client_seconds"]
            record["energy_joules"] = totals["energy_joules"]
            record["late_deliveries"] = totals["late_deliveries"]
        return record


def _told(state: ChannelState) -> tuple[bool, bool, bool]:
    """Return what a state knows: an SNR up, one down, and whether its rates were measured."""
    return state.up_snr_db is not None, state.down_snr_db is not None, state.derived
