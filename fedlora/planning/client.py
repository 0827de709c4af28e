"""What one client sends and is sent, batch by batch, as far as shapes decide it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from fedlora.batch_order import BatchStream
from fedlora.config import End, Payload, Scenario
from fedlora.geometry import Geometry
from fedlora.link import levels_bytes
from fedlora.planning.payloads import PayloadBits
from fedlora.planning.rehearsal import Returning
from fedlora.preview import ClientSamples, SampleView
from fedlora.privacy.mechanisms import mechanism_of, numbers_of
from fedlora.ranks import DataStatistics

Bits = dict[str, int]
"""By kind of payload."""

# Bits of a length, of an identifier and whether it is new, of a number, and of a digest.
_LENGTH, _NAME, _NUMBER, _DIGEST = 32, 64 + 8, 32, 32


@dataclasses.dataclass(frozen=True)
class Terms:
    """What all clients of a run have in common.

    Attributes
    ----------
    scenario, geometry
        The run's.
    sizes
        Bits of payloads.
    classes
        Of the task; 0 for language modelling.
    head
        Numbers of a head that trains and is shared, else 0.
    front
        Numbers of a front that trains and is shared, else 0.
    """

    scenario: Scenario
    geometry: Geometry
    sizes: PayloadBits
    classes: int
    head: int
    front: int = 0

    def ends(self, *shares: str, end: End | None = "end_weight") -> Bits:
        """Return the bits of head and front as far as they are shared so.

        Parameters
        ----------
        *shares
            How.
        end
            What travels of them; None: weights in fp32, as a run begins.
        """
        parts = ((self.scenario.head.share, self.head), (self.scenario.front.share, self.front))
        own = [size for share, size in parts if share in shares]
        sizes = [_NUMBER * n if end is None else self.sizes.of_end(end, n) for n in own if n]
        return {"head": sum(sizes)}

    @property
    def statistics(self) -> int:
        """Bits of what a client tells of its text in a round."""
        if not self.scenario.ranks.statistics or self.scenario.privacy.enabled:
            return 0
        return _NUMBER * len(dataclasses.fields(DataStatistics))


class PlannedClient:
    """One client of a run that has not begun.

    Parameters
    ----------
    number
        Of the client.
    samples
        Its samples.
    terms
        The run's.

    Attributes
    ----------
    lengths
        Tokens of the rows of the round, in the order of training.
    returning
        Which rows of the representation that ``down`` told were sent before.
    kept_bytes, remembered_bytes
        Activations that the server keeps of it, and levels of representations.
    """

    def __init__(self, number: int, samples: ClientSamples, terms: Terms) -> None:
        self.number, self._terms = number, terms
        scenario = terms.scenario
        self._train, self._held = samples.train, samples.held_out
        self._order = BatchStream(self._train, scenario.train.batch_size, scenario.seed, number)
        self._named = scenario.link.reuse and not scenario.train.embedding
        self._noised = scenario.privacy.activation_sigma is not None
        self._limit = (scenario.link.reuse_mib << 20) // max(1, scenario.federation.clients)
        self._kept: set[int] = set()
        self.kept_bytes = self.remembered_bytes = 0
        self._levels = 0
        if self._named:
            width = scenario.link.r_cut or terms.geometry.representation_width
            self._levels = terms.sizes.remembered(width)
        self._remembers = scenario.link.residual_bytes(max(1, scenario.federation.clients))
        # by sample, the sum of the learning rates of all steps until it was last sent
        self._remembered: dict[int, float] = {}
        self._targets = terms.geometry.targets_only(scenario)
        self._batch: list[int] = []
        self.lengths: list[int] = []
        self.returning = Returning()

    def next_activation(self) -> Bits:
        """Move on to the next batch, and return what its activation takes."""
        self._batch = self._order.indices()
        samples = [self._train[i] for i in self._batch]
        self.lengths += [len(ids) for ids, _ in samples]
        bits = self._activation(samples, self._batch)
        if not self._remembered.keys().isdisjoint(self._batch):
            bits["control"] += _DIGEST * len(self._batch)
        return bits

    def down(self, moved: float) -> Bits:
        """Return what the step of the open batch sends down: a representation as if whole.

        Parameters
        ----------
        moved
            Sum of the learning rates of all steps before this one.
        """
        self._return(moved)
        self._remember(moved)
        scenario, geometry = self._terms.scenario, self._terms.geometry
        width = scenario.link.r_cut or geometry.representation_width
        bits = {"representation": self._size("representation", self._rows(), width)}
        if self._terms.head and scenario.head.share == "step" and not scenario.link.r_cut:
            bits["head"] = self._terms.sizes.of_end("end_weight", self._terms.head)
        return bits

    def embedding(self) -> Bits:
        """Return what dL/de of the open batch takes, where the embedding trains."""
        tokens = sum(len(self._train[i][0]) for i in self._batch)
        width = self._terms.geometry.activation_width
        return {"representation": self._size("gradient", tokens, width)}

    def up(self) -> Bits:
        """Return what the client answers to the step of the open batch, without the next one."""
        scenario, geometry = self._terms.scenario, self._terms.geometry
        mechanism, width = mechanism_of(scenario.privacy), geometry.representation_width
        noised = mechanism is not None and mechanism.noises_gradients
        if mechanism is not None and noised:
            width = numbers_of(mechanism, self._terms.classes, width)
        elif scenario.link.r_cut:
            width = scenario.link.r_cut
        rows, keep = self._rows(), scenario.link.keep
        bits: Bits = {}
        if keep < 1:
            bits["control"] = 8 * math.ceil(rows / 8)
        bits["gradient"] = self._size("gradient", round(keep * rows), width)
        shared = self._terms.head and scenario.head.share == "step" and not scenario.link.r_cut
        if shared and not noised:
            bits["head"] = self._terms.sizes.of_end("end_gradient", self._terms.head)
        return bits

    def evaluation(self) -> tuple[int, int]:
        """Return the bits up and down of an evaluation of all held-out rows."""
        scenario, geometry = self._terms.scenario, self._terms.geometry
        if scenario.privacy.enabled and not scenario.evaluate.report:
            return 0, 0
        width = scenario.link.r_cut or geometry.representation_width
        order = sorted(range(len(self._held)), key=lambda i: len(self._held[i][0]))
        up = down = 0
        for start in range(0, len(order), scenario.evaluate.batch_size):
            chosen = order[start : start + scenario.evaluate.batch_size]
            samples = [self._held[i] for i in chosen]
            numbers = [len(self._train) + i for i in chosen]
            up += sum(self._activation(samples, numbers).values())
            down += self._size("representation", self._rows_of(samples), width)
        return up, down

    def _activation(self, samples: Sequence[SampleView], numbers: Sequence[int]) -> Bits:
        """Return what rows take that are sent, or named where the server keeps them."""
        fresh = [
            (number, own)
            for number, own in zip(numbers, samples, strict=True)
            if not self._named or number not in self._kept
        ]
        tokens = sum(len(ids) for _, (ids, _) in fresh)
        width = self._terms.geometry.activation_width
        control = _LENGTH * len(fresh) + _NAME * len(numbers) * self._named
        if self._targets and fresh:
            control += 8 * math.ceil(tokens / 8)
        if self._named:
            self._keep(fresh)
        # a token's row at the token embedding is that token's wherever it stands, unless noised
        alike = self._terms.geometry.cut.start == 0 and not self._noised
        distinct = len({token for _, (ids, _) in fresh for token in ids}) if alike else tokens
        bits = self._terms.sizes.of_tokens("activation", tokens, distinct, width)
        return {"activation": bits, "control": control}

    def _keep(self, fresh: Sequence[tuple[int, SampleView]]) -> None:
        """Keep new rows as ``fedlora.server.exchange.kept_rows`` does, until one does not fit."""
        of_token = 4 * self._terms.geometry.activation_width + self._targets
        for number, (ids, _) in fresh:
            size = 0 if number in self._kept else of_token * len(ids)
            if self.kept_bytes + size > self._limit:
                return
            self._kept.add(number)
            self.kept_bytes += size

    def _return(self, moved: float) -> None:
        """Note which rows of the open batch return, and since when."""
        own = {n: self._rows_of([self._train[n]]) for n in self._batch if n in self._remembered}
        rows = sum(own.values())
        self.returning = Returning()
        if rows:
            since = sum(size * (moved - self._remembered[n]) for n, size in own.items())
            self.returning = Returning(rows / self._rows(), since / rows)

    def _remember(self, moved: float) -> None:
        """Remember levels as ``fedlora.link.levels`` does, of each sample that fits."""
        if not self._levels:
            return
        for number in self._batch:
            rows = self._rows_of([self._train[number]])
            size = 0 if number in self._remembered else levels_bytes(rows, self._levels)
            if self.remembered_bytes + size <= self._remembers:
                self._remembered[number] = moved
                self.remembered_bytes += size

    def _rows(self) -> int:
        return self._rows_of([self._train[i] for i in self._batch])

    def _rows_of(self, samples: Sequence[SampleView]) -> int:
        """Return how many rows of a representation belong to samples."""
        if self._terms.geometry.server_pools:
            return len(samples)
        return sum(learnt if self._targets else len(ids) for ids, learnt in samples)

    def _size(self, payload: Payload, rows: int, width: int) -> int:
        return self._terms.sizes(payload, rows, width)
