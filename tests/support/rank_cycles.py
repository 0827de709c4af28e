"""Rank strategies for the tests, whose choices are plain to see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedlora.ranks import ClientReport, RankDecision, RankSpace, RankStrategy


class RankCycles(RankStrategy):
    """Client k has ``cycles[k]``, repeated over the projections."""

    def __init__(self, cycles: Sequence[Sequence[int]]) -> None:
        self.cycles = cycles

    def ranks(self, client: int, projections: int) -> list[int]:
        cycle = self.cycles[client]
        return [cycle[index % len(cycle)] for index in range(projections)]

    def allocate(
        self, round: int, clients: Mapping[str, ClientReport], space: RankSpace
    ) -> dict[str, RankDecision]:
        return {c: RankDecision(self.ranks(int(c), len(space))) for c in clients}


class UpperHalf(RankStrategy):
    """Client k has rank 3 in the upper half of the blocks, client 1 in the one below it too."""

    def allocate(
        self, round: int, clients: Mapping[str, ClientReport], space: RankSpace
    ) -> dict[str, RankDecision]:
        layers = [projection.layer for projection in space.projections]
        half = (max(layers) + 1) // 2
        return {
            c: RankDecision([3 if layer >= half - (c == "1") else 0 for layer in layers])
            for c in clients
        }


class RankTable(RankStrategy):
    """In round n client k has rank ``table[n - 1][k]`` everywhere."""

    def __init__(self, table: Sequence[Sequence[int]]) -> None:
        self.table = table

    def allocate(
        self, round: int, clients: Mapping[str, ClientReport], space: RankSpace
    ) -> dict[str, RankDecision]:
        return {c: RankDecision(space.uniform(self.table[round - 1][int(c)])) for c in clients}
