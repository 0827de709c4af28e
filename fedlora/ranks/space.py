"""What a rank strategy chooses from: the adapted projections, their limits and their cost."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fedlora.errors import FedloraError


class RankVector(tuple[int, ...]):
    """One rank for each projection of a space, in the space's order.

    ``RankSpace.vector`` and ``RankSpace.uniform`` make checked ones.
    """

    __slots__ = ()

    @property
    def mean(self) -> float:
        """Mean rank over the projections."""
        return sum(self) / len(self)


@dataclass(frozen=True)
class Projection:
    """A linear map of the backbone that carries a LoRA adapter.

    Attributes
    ----------
    name
        Its name inside its block, such as ``self_attn.q_proj``.
    layer
        Number of its block in the undivided model, from 0.
    d_in, d_out
        Sizes of its input and output.
    """

    name: str
    layer: int
    d_in: int
    d_out: int

    def __post_init__(self) -> None:
        if self.d_in < 1 or self.d_out < 1:
            raise FedloraError(
                f"projection {self} is {self.d_in} x {self.d_out}; both must be 1 or more"
            )

    def __str__(self) -> str:
        return f"{self.name} of layer {self.layer}"


@dataclass(frozen=True)
class RankSpace:
    """All rank vectors that a strategy may choose, and what they cost to deliver.

    Attributes
    ----------
    projections
        The adapted projections in order.
    r_max
        Largest rank of any projection.
    r_min
        Smallest rank; 0 leaves a projection without adapter.
    bits_per_parameter
        Bits that one adapter parameter takes on the air.
    """

    projections: tuple[Projection, ...]
    r_max: int
    r_min: int = 0
    bits_per_parameter: int = 32

    def __post_init__(self) -> None:
        if not self.projections:
            raise FedloraError("the rank space has no projections; check lora.targets")
        if self.r_max < 1 or not 0 <= self.r_min <= self.r_max:
            raise FedloraError(
                f"ranks from r_min {self.r_min} to r_max {self.r_max} are not possible; set r_max "
                "to 1 or more and r_min to 0 up to r_max"
            )
        if self.bits_per_parameter < 1:
            raise FedloraError(
                f"bits_per_parameter is {self.bits_per_parameter}; set 1 or more, such as 32"
            )

    @classmethod
    def of(
        cls,
        modules: Iterable[tuple[str, int, int]],
        layers: str,
        *,
        r_max: int,
        bits_per_parameter: int,
    ) -> RankSpace:
        """Return the space of a model's adapted modules.

        Parameters
        ----------
        modules
            Name in the undivided model, d_in and d_out of each, in the order of the model.
        layers
            Name of the model's list of blocks.
        r_max, bits_per_parameter
            See ``RankSpace``.
        """
        inside = re.compile(rf"(?:^|\.){re.escape(layers)}\.(\d+)\.(.+)$")
        projections = []
        for name, d_in, d_out in modules:
            found = inside.search(name)
            assert found is not None
            projections.append(Projection(found[2], int(found[1]), d_in, d_out))
        return cls(tuple(projections), r_max=r_max, bits_per_parameter=bits_per_parameter)

    def __len__(self) -> int:
        return len(self.projections)

    @cached_property
    def unit_parameters(self) -> tuple[int, ...]:
        """Adapter parameters that one more rank costs, d_in + d_out, for each projection."""
        return tuple(p.d_in + p.d_out for p in self.projections)

    def uniform(self, r: int) -> RankVector:
        """Return the vector that gives every projection rank ``r``.

        Raises
        ------
        FedloraError
            When ``r`` is not a whole number from r_min to r_max.
        """
        return RankVector((self._rank(r),) * len(self))

    def vector(self, ranks: Iterable[Any]) -> RankVector:
        """Check ranks against this space.

        Parameters
        ----------
        ranks
            One whole number for each projection; a list, a NumPy array or a tensor.

        Raises
        ------
        FedloraError
            When the number of ranks is wrong, or a rank is no whole number from r_min to r_max; the
            message names the projection.
        """
        try:
            values = tuple(ranks)
        except TypeError:
            raise FedloraError(
                f"the ranks are {ranks!r}; expected a list with one rank for each of the "
                f"{len(self)} projections, such as space.uniform(1)"
            ) from None
        if len(values) != len(self):
            raise FedloraError(
                f"{len(values)} ranks were given; expected {len(self)}, one for each projection"
            )
        return RankVector(
            self._rank(value, projection)
            for value, projection in zip(values, self.projections, strict=True)
        )

    def parameters(self, ranks: Iterable[int]) -> int:
        """Return the adapter's size, sum of r (d_in + d_out), in parameters."""
        return sum(r * unit for r, unit in zip(ranks, self.unit_parameters, strict=True))

    def airllm_parameters(self, ranks: Iterable[int]) -> int:
        """Return the adapter's size as AirLLM counts it, sum of r (d_in + d_out + 1).

        The additional parameter is the singular value of AdaLoRA's form (arXiv 2507.11515, code).
        """
        ranks = tuple(ranks)
        return self.parameters(ranks) + sum(ranks)

    def bits(self, ranks: Iterable[int], bits_per_parameter: int | None = None) -> int:
        """Return the adapter's size in bits, at this space's precision unless one is given."""
        return self.parameters(ranks) * (bits_per_parameter or self.bits_per_parameter)

    def _rank(self, value: Any, projection: Projection | None = None) -> int:
        rank: int | None
        try:
            rank = operator.index(value)
        except TypeError:
            rank = None
        # A strategy checks thousands of ranks a round: the place is worded for an error only.
        if rank is not None and self.r_min <= rank <= self.r_max:
            return rank
        place = f" for {projection}" if projection else ""
        if rank is None:
            raise FedloraError(
                f"rank {value!r:.80}{place} is not a whole number; expected an int from "
                f"{self.r_min} to {self.r_max}"
            )
        if rank > self.r_max:
            raise FedloraError(
                f"rank {rank!r:.80}{place} exceeds r_max {self.r_max}; lower it or set lora.r_max"
            )
        raise FedloraError(f"rank {rank!r:.80}{place} is below r_min {self.r_min}; raise it")


@dataclass(frozen=True, init=False)
class RankDecision:
    """What a strategy decides for one client and one round.

    Parameters
    ----------
    train
        Ranks that the client's rows train with.
    deliver
        Ranks of the adapter that is sent to the client; the same as ``train`` if left out. Ranks
        above ``train`` are allowed: other clients may have trained those components.
    """

    train: RankVector
    deliver: RankVector

    def __init__(self, train: Iterable[int], deliver: Iterable[int] | None = None) -> None:
        object.__setattr__(self, "train", RankVector(train))
        object.__setattr__(self, "deliver", self.train if deliver is None else RankVector(deliver))

    def checked(self, space: RankSpace) -> RankDecision:
        """Return this decision with both vectors checked against a space.

        Raises
        ------
        FedloraError
            When a vector does not fit the space.
        """
        return RankDecision(space.vector(self.train), space.vector(self.deliver))
