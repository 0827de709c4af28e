"""A run's account of the air before it starts: the same rounds, batches, channels and ledger.

What is walked is what follows from the scenario: who is drawn, the order of batches, what the
server keeps, the channel, the scheduler. What follows from values is taken as likely: how well a
payload's levels can be written, and the choice of a rank strategy that looks at losses. Nothing is
lost on the way.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedlora.channel.ledger import AIR_KINDS
from fedlora.check import rank_space
from fedlora.config import ENDS, PAYLOADS, Scenario
from fedlora.errors import FedloraError
from fedlora.geometry import Geometry
from fedlora.lora.targets import choose_targets, in_model_order, linear_modules
from fedlora.participation import draw_clients
from fedlora.planning.client import Bits, PlannedClient, Terms
from fedlora.planning.payloads import PayloadBits
from fedlora.planning.rehearsal import Account, Rehearsal, Returning, Took
from fedlora.preview import RowView, end_sizes
from fedlora.ranks import ClientReport
from fedlora.server.air import Air
from fedlora.server.ranking import Ranking
from fedlora.split import Checkpoint
from fedlora.tasks import task_class

_MOST_BATCHES = 200_000  # that are walked; some seconds
_NONE = Returning()


@dataclass(frozen=True)
class Forecast:
    """What a run will take.

    Attributes
    ----------
    totals
        As ``AirLedger.totals`` gives them.
    clients
        By client: ``bits`` by direction and kind, ``air_seconds`` and ``energy_joules``.
    evaluation
        Bits by direction, which a device would not send.
    raw_bits
        Of the raw cut; see ``Geometry.raw_bits``.
    samples
        Rows that are trained on, each time.
    kept_bytes, remembered_bytes
        Activations that the server keeps at the end, and levels of representations.
    notes
        What may come otherwise, and why.
    """

    totals: Mapping[str, Any]
    clients: Mapping[str, Mapping[str, Any]]
    evaluation: Mapping[str, int]
    raw_bits: int
    samples: int
    kept_bytes: int
    remembered_bytes: int
    notes: tuple[str, ...]


def forecast(
    scenario: Scenario,
    checkpoint: Checkpoint,
    rows: RowView,
    rehearsal: Rehearsal | None = None,
    rounds: int = 0,
) -> Forecast:
    """Walk through a run that could start.

    Parameters
    ----------
    scenario, checkpoint
        The run.
    rows
        Its records, as ``view_rows`` reads them.
    rehearsal, rounds
        Trains so many rounds first, to tell what payloads take; None where none is held.

    Raises
    ------
    FedloraError
        When its channel is measured, so that nothing of it is known, or so few rounds are to be
        rehearsed that they do not tell what is left of representations.
    """
    if scenario.channel.model == "measured":
        raise FedloraError(
            "channel.model is measured, which is known in a deployment alone; plan with a "
            "simulated channel, such as --set channel.model=awgn"
        )
    walk = _Walk(scenario, checkpoint, rows)
    found = walk.run()
    if rehearsal is None:
        return found
    walk.account.check(rounds)
    width = scenario.link.r_cut or walk.terms.geometry.representation_width
    took = Took(rehearsal.run(scenario, rounds), walk.account, walk.terms.sizes, width)
    return _Walk(scenario, checkpoint, rows, took).run()


class _Walk:
    """Goes through the rounds of a run and books what they take."""

    def __init__(
        self,
        scenario: Scenario,
        checkpoint: Checkpoint,
        rows: RowView,
        took: Took | None = None,
    ) -> None:
        geometry = Geometry.of(scenario, checkpoint)
        targets = choose_targets(linear_modules(checkpoint, geometry.cut), scenario.lora.targets)
        if scenario.ranks.strategy != "uniform":  # for which the order decides nothing
            targets = in_model_order(targets, checkpoint)
        shared = geometry.trains_head and scenario.head.share != "personal"
        classes = len(rows.labels)
        head, front = end_sizes(scenario, checkpoint, geometry, classes)
        if task_class(scenario.task.kind).tokens and scenario.front.share != "personal":
            front = geometry.embedding_width * checkpoint.size("vocab_size")
        front *= scenario.front.share != "personal"
        sizes = PayloadBits(scenario.link, checkpoint.size("vocab_size"))
        terms = Terms(scenario, geometry, sizes, classes, head * shared, front)
        self.scenario, self.terms, self.air = scenario, terms, Air(scenario)
        self.ranking = Ranking(scenario, rank_space(scenario, checkpoint, targets))
        self.clients = {
            str(number): PlannedClient(number, samples, terms)
            for number, samples in enumerate(rows.samples)
        }
        self.evaluation, self.raw_bits, self.samples = {"up": 0, "down": 0}, 0, 0
        self.account, self.took = Account(), took
        self._open = 1
        self._moved: list[float] = []

    def run(self) -> Forecast:
        """Walk through all rounds, or as many as are walked of a long run."""
        train = self.scenario.train
        self.air.begin_round(1)
        for client in self.clients:
            self._book(client, "up", self.terms.ends("round", "step", end=None))
        a_round = train.steps * train.accumulate * len(self.clients)
        walked = min(train.rounds, max(2, _MOST_BATCHES // a_round))
        # by the optimiser's step, the sum of the learning rates of all before it
        rates = map(train.learning_rate, range(walked * train.steps))
        self._moved = [0.0, *itertools.accumulate(rates)]
        before = 0, 0
        for round_ in range(1, walked + 1):
            before = self.raw_bits, self.samples
            self._round(round_)
        again = train.rounds - walked
        raw, samples = self.raw_bits - before[0], self.samples - before[1]
        return Forecast(
            totals=self._totals(walked, again),
            clients=self._by_client(walked, again),
            evaluation=self.evaluation,
            raw_bits=self.raw_bits + again * raw,
            samples=self.samples + again * samples,
            kept_bytes=sum(client.kept_bytes for client in self.clients.values()),
            remembered_bytes=sum(client.remembered_bytes for client in self.clients.values()),
            notes=tuple(self._notes(walked)),
        )

    def _round(self, round_: int) -> None:
        scenario, air = self.scenario, self.air
        self._open = round_
        wanted = scenario.federation.clients_per_round
        drawn = draw_clients(list(self.clients), wanted, scenario.seed, round_)
        reports = {
            client: air.note_report(
                round_, client, ClientReport(channel=air.channel.report(int(client), round_ - 1))
            )
            for client in drawn
        }
        chosen, bandwidth_hz = air.schedule(round_, reports, _stay)
        air.begin_round(round_, bandwidth_hz)
        for client in reports:
            self._book(client, "up", {"control": self.terms.statistics})
        decisions = self.ranking.allocate(round_, air.with_budgets(chosen, _stay))
        present = [client for client in drawn if client in decisions]
        self._steps(present)
        self._end(present)
        if air.delivers(round_):
            for client, decision in decisions.items():
                if bits := self.ranking.space.bits(decision.deliver):
                    air.deliver(client, bits)
        if not (round_ % scenario.evaluate.every and round_ != scenario.train.rounds):
            for own in self.clients.values():
                up, down = own.evaluation()
                self.evaluation["up"] += up
                self.evaluation["down"] += (
                    down if self.took is None else round(down * self.took.whole)
                )
        air.end_round(round_, decisions)

    def _steps(self, present: list[str]) -> None:
        train = self.scenario.train
        front: Bits = {}
        back: Bits = {}
        if self.scenario.front.share == "step":  # it goes down with each request for a batch
            front = {"head": self.terms.sizes.of_end("end_weight", self.terms.front)}
            back = {"head": self.terms.sizes.of_end("end_gradient", self.terms.front)}
        exchanges, first = train.steps * train.accumulate, (self._open - 1) * train.steps
        for client in present:
            own = self.clients[client]
            own.lengths = []
            self._book(client, "down", front)
            self._book(client, "up", own.next_activation())
            for exchange in range(exchanges):
                more = exchange < exchanges - 1
                down = own.down(self._moved[first + exchange // train.accumulate])
                self._book(client, "down", down, own.returning)
                up = own.up()
                if train.embedding:
                    self._book(client, "up", up)
                    self._book(client, "down", own.embedding())
                    self._book(client, "up", back)
                    self._book(client, "down", front if more else {})
                    up = {}
                self._book(client, "up", _both(up, own.next_activation()) if more else up)
            self.raw_bits += self.terms.geometry.raw_bits(own.lengths)
            self.samples += len(own.lengths)

    def _end(self, present: list[str]) -> None:
        """Book the heads and fronts that are taken and given at the end of a round."""
        for client in present:
            self._book(client, "up", self.terms.ends("round"))
        for client in self.clients:
            self._book(client, "down", self.terms.ends("round", "step"))

    def _book(self, client: str, way: str, bits: Bits, returning: Returning = _NONE) -> None:
        for kind in AIR_KINDS[way]:  # in the order in which a run books a frame
            if amount := bits.get(kind, 0):
                own = returning if kind == "representation" else _NONE
                self.account.note(self._open, client, way, kind, amount, own)
                if self.took is not None:
                    amount = self.took.of(self._open, client, way, kind, amount, own)
                self.air.ledger.book(int(client), way, kind, amount, 0)

    def _totals(self, walked: int, again: int) -> dict[str, Any]:
        ledger = self.air.ledger
        totals, last = ledger.totals(), ledger.totals(walked - 1)
        for kinds, more in zip(totals["bits"].values(), last["bits"].values(), strict=True):
            for kind in kinds:
                kinds[kind] += again * more[kind]
        for name in ("air_seconds", "client_seconds", "energy_joules", "late_deliveries"):
            totals[name] += again * last[name]
        del totals["wire_bytes"]
        return totals

    def _by_client(self, walked: int, again: int) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for client in self.clients:
            bits = {way: dict.fromkeys(kinds, 0) for way, kinds in AIR_KINDS.items()}
            own: dict[str, Any] = {"bits": bits, "air_seconds": 0.0, "energy_joules": 0.0}
            for round_ in range(1, walked + 1):
                row = self.air.row(round_, client)
                if row is None:
                    continue
                times = 1 + again * (round_ == walked)
                for way, kinds in row.bits.items():
                    for kind, amount in kinds.items():
                        bits[way][kind] += times * amount
                own["air_seconds"] += times * row.air_seconds
                own["energy_joules"] += times * self.air.ledger.energy_joules(row)
            found[client] = own
        return found

    def _notes(self, walked: int) -> list[str]:
        scenario, notes = self.scenario, []
        if walked < scenario.train.rounds:
            notes.append(f"rounds from {walked + 1} on are taken to be like round {walked}")
        if scenario.ranks.strategy != "uniform" and self.air.enabled:
            told = f"ranks.strategy {scenario.ranks.strategy} may choose otherwise once it sees "
            notes.append(told + "losses, which changes what adapters take")
        if scenario.evaluate.baseline:
            notes.append("the frozen-backbone baseline (evaluate.baseline) is not counted")
        if scenario.evaluate.generate:
            notes.append("texts written at evaluations (evaluate.generate) are not counted")
        if scenario.evaluate.patience:
            notes.append("evaluate.patience may end the run before its last round")
        if self.took is not None:
            notes.append(
                f"payloads take what they took in {self.took.rounds} rounds of a rehearsal, and "
                "later ones as the last of these"
            )
            return notes
        if scenario.model.client_front and scenario.link.activation in ("distinct", "rotated"):
            notes.append(
                "activations that have passed a client's blocks (model.client_front) are counted "
                "as if no two rows were equal, which is the most"
            )
        named = {scenario.link.codec(own)["name"] for own in (*PAYLOADS, *ENDS)}
        told = f"--rehearse {self.account.rounds_to_rehearse} trains so many rounds to tell"
        if "rotated" in named:
            notes.append(f"what rotated takes depends on what it writes, by some percent; {told}")
        if scenario.link.gradient == "entropy":
            notes.append(
                "what entropy takes of gradients falls as more tokens are learnt, by a tenth or "
                f"more; {told}"
            )
        if self.account.enough:
            notes.append(
                "representations are counted whole, which is the most: what is left of a sample's "
                "last one (link.residual_mib) takes less, by how much depends on how training "
                f"goes; {told}"
            )
        return notes


def _stay(client: str, reason: str) -> None:
    raise FedloraError(f"client {client} would be left out at once: {reason}")


def _both(first: Bits, second: Bits) -> Bits:
    """Return what one frame takes that carries two things."""
    return {kind: first.get(kind, 0) + second.get(kind, 0) for kind in first.keys() | second.keys()}
