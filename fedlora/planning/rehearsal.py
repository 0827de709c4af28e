"""What payloads took in the first rounds of a run, and what the later ones will take by that.

How well a codec writes payloads depends on what is in them, which no shape tells. So the first
rounds are trained, and what a plan had foreseen of them is held against what they took. Of later
rounds each kind takes as much more or less as in the last round that was rehearsed. What is left of
a sample's last representation (``link.residual_mib``) falls with the learning rate, so that it is
reckoned apart:

===========  ========================================================================
``moved``    sum of the learning rates of the steps since a sample was last sent
``change``   root mean square of what changed in its representation, over that of all of it; taken
             to be ``pace`` times ``moved``, as Adam moves a weight by up to a rate in each step
``left``     bits of what is left over those of the whole, by ``change``: found by having the codec
             write Gaussian numbers, and Gaussian numbers beside them that differ by so much
``pace``     its square falls to what the noise of batches keeps up: by a share of what it fell in
             the round before, which the last three rounds tell in which rows return; where there
             are two, it is taken to be 0.28, as in language models that were measured
===========  ========================================================================
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.planning.payloads import PayloadBits

Booked = Mapping[tuple[int, str], Mapping[str, Mapping[str, int]]]
"""By round, from 1, and client: bits by direction and kind."""
_REPRESENTATION = ("down", "representation")
_MOST = 0.5  # of a round's rows that have to come back to tell how much is left of them
_FALLS, _MOST_FALLS = 0.28, 0.8  # of a round's fall to that of the round before it
_CHANGES = np.geomspace(1e-3, 4.0, 48)


class Rehearsal(ABC):
    """Trains the first rounds of a scenario."""

    @abstractmethod
    def run(self, scenario: Scenario, rounds: int) -> Booked:
        """Return what so many rounds took, as their ledger has it."""


@dataclass(frozen=True)
class Returning:
    """Rows of a representation that were sent before.

    Attributes
    ----------
    share
        Of all of its rows.
    moved
        See the module; the mean over these rows.
    """

    share: float = 0.0
    moved: float = 0.0


@dataclass
class _Amount:
    bits: float = 0.0
    returning: float = 0.0  # bits of rows that return, as if whole
    moved: float = 0.0  # times these bits


class Account:
    """What a plan foresees by shapes, by round, client and kind."""

    def __init__(self) -> None:
        self._own: dict[tuple[int, str, str, str], _Amount] = defaultdict(_Amount)

    def note(
        self, round_: int, client: str, way: str, kind: str, bits: int, returning: Returning
    ) -> None:
        """Note a payload."""
        own = self._own[round_, client, way, kind]
        own.bits += bits
        own.returning += bits * returning.share
        own.moved += bits * returning.share * returning.moved

    def of(self, round_: int, client: str, way: str, kind: str) -> _Amount:
        """Return what is foreseen of a kind."""
        return self._own.get((round_, client, way, kind), _Amount())

    def shares(self) -> Mapping[int, float]:
        """Return by round what part of its representations belongs to rows that return."""
        rounds: dict[int, _Amount] = defaultdict(_Amount)
        for (round_, _, *kind), own in self._own.items():
            if tuple(kind) == _REPRESENTATION:
                rounds[round_].bits += own.bits
                rounds[round_].returning += own.returning
        return {round_: own.returning / own.bits for round_, own in rounds.items() if own.bits}

    @property
    def enough(self) -> float:
        """What part of a round has to return to tell how much is left of it; 0 where none does."""
        return min(_MOST, _MOST * max(self.shares().values(), default=0.0))

    @property
    def rounds_to_rehearse(self) -> int:
        """Two rounds, as ends may begin at zero, and the second one in which enough returns."""
        need = self.enough
        found = [r for r, own in sorted(self.shares().items()) if own >= need > 0]
        return min(max([2, *found[:2]]), max(self.shares(), default=0))

    def check(self, rounds: int) -> None:
        """Refuse a rehearsal of so many rounds that does not tell what is left.

        Raises
        ------
        FedloraError
            When it is too short.
        """
        need = self.rounds_to_rehearse
        if rounds < need:
            raise FedloraError(
                f"--rehearse is {rounds}, and the first round is like no other, while what is left "
                f"of representations is told by two in which samples come back; rehearse {need}"
            )


class Took:
    """What payloads take by what they took in a rehearsal.

    Parameters
    ----------
    booked
        What the rounds that were rehearsed took.
    planned
        What is foreseen of all rounds.
    sizes
        Bits of payloads.
    width
        Numbers of a row of a representation.

    Attributes
    ----------
    rounds
        That were rehearsed.
    whole
        Bits of a representation of which no row returns over those that are foreseen.
    """

    def __init__(self, booked: Booked, planned: Account, sizes: PayloadBits, width: int) -> None:
        self.rounds = max(round_ for round_, _ in booked)
        self._booked, self._planned, self._enough = booked, planned, planned.enough
        self.whole, self._paces = 1.0, list[tuple[int, float]]()
        self._kinds: dict[tuple[str, str], float] = {}
        lefts = [sizes.left(width, float(c)) for c in _CHANGES] if planned.enough else [1.0]
        self._lefts = np.maximum.accumulate(np.resize(lefts, len(_CHANGES)))
        self._learn()

    def of(
        self, round_: int, client: str, way: str, kind: str, bits: int, returning: Returning
    ) -> int:
        """Return what a payload takes of which so many bits are foreseen."""
        foreseen = self._planned.of(round_, client, way, kind).bits
        if foreseen and (round_, client) in self._booked:
            return round(bits * self._took(round_, client, way, kind) / foreseen)
        if (way, kind) != _REPRESENTATION:
            return round(bits * self._kinds.get((way, kind), 1.0))
        left = 1.0
        if returning.share and self._paces:
            left = self._left(self._pace(round_) * returning.moved)
        return round(bits * self.whole * (1 - returning.share * (1 - left)))

    def _took(self, round_: int, client: str, way: str, kind: str) -> int:
        return self._booked.get((round_, client), {}).get(way, {}).get(kind, 0)

    def _learn(self) -> None:
        """Find what kinds take in the last round, and the pace in that where most rows return."""
        clients = sorted({client for _, client in self._booked})
        for round_ in range(1, self.rounds + 1):
            sums: dict[tuple[str, str], tuple[float, float]] = {}
            for client in clients:
                for way, kinds in self._booked.get((round_, client), {}).items():
                    for kind, bits in kinds.items():
                        took, foreseen = sums.get((way, kind), (0.0, 0.0))
                        own = self._planned.of(round_, client, way, kind)
                        sums[way, kind] = took + bits, foreseen + own.bits
            self._kinds |= {k: took / foreseen for k, (took, foreseen) in sums.items() if foreseen}
            self._learn_left(round_, clients)

    def _learn_left(self, round_: int, clients: Sequence[str]) -> None:
        """Find what representations take of clients that send none again, and of the others."""
        own = {c: self._planned.of(round_, c, *_REPRESENTATION) for c in clients}
        new, again = ([c for c in own if bool(own[c].returning) == way] for way in (False, True))
        took, bits = self._sum(round_, new), sum(own[c].bits for c in new)
        if bits:
            self.whole = took / bits
        took, bits = self._sum(round_, again), sum(own[c].bits for c in again)
        returning = sum(own[c].returning for c in again)
        moved = sum(own[c].moved for c in again)
        if moved and returning >= self._enough * bits:
            left = (took / self.whole - (bits - returning)) / returning
            change = float(np.interp(left, self._lefts, _CHANGES))
            self._paces.append((round_, change * returning / moved))

    def _pace(self, round_: int) -> float:
        """Return by how much a change exceeds the sum of the learning rates in a later round."""
        last, *squares = self._paces[-1][0], *(pace**2 for _, pace in self._paces[-3:])
        steps = np.diff(squares)
        if not len(steps) or steps[-1] >= 0:
            return math.sqrt(squares[-1])
        ratio = _FALLS
        if len(steps) > 1 and steps[0] < 0:
            ratio = min(steps[1] / steps[0], _MOST_FALLS)
        fallen = ratio * (1 - ratio ** (round_ - last)) / (1 - ratio)
        return math.sqrt(max(squares[-1] + steps[-1] * fallen, 0.0))

    def _sum(self, round_: int, clients: Sequence[str]) -> int:
        return sum(self._took(round_, client, *_REPRESENTATION) for client in clients)

    def _left(self, change: float) -> float:
        return float(np.interp(change, _CHANGES, self._lefts))
