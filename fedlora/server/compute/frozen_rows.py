"""What frozen blocks make of each row, computed once: for steps in which nobody has a rank.

The baseline trains a head alone, so that what goes down to a client is a function of the row that
it sent, in all of the baseline's epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from fedlora.server.compute.kept_states import KeptStates, row_digest
from fedlora.server.compute.prefix import Rows

_DEPTH = 0  # of all entries: they have passed the same blocks


@dataclass(frozen=True)
class Lacking:
    """A client's rows that are not kept.

    Attributes
    ----------
    place
        Of the client in the batch.
    packed
        Its tokens, (tokens, width).
    lengths
        Of these rows.
    """

    place: int
    packed: torch.Tensor
    lengths: Sequence[int]


class FrozenRows:
    """Answers for rows that were computed before, and has the others computed in one batch.

    Parameters
    ----------
    kept
        Where what goes down is kept, each client's within a bound of its own.
    pooled
        Whether that is one vector a row; else one a token.
    """

    def __init__(self, kept: KeptStates, *, pooled: bool) -> None:
        self._kept, self._pooled = kept, pooled

    def forward(
        self,
        rows: Sequence[Rows],
        compute: Callable[[Sequence[Lacking]], list[torch.Tensor]],
    ) -> list[torch.Tensor]:
        """Return what goes down to each client.

        Parameters
        ----------
        rows
            The clients' uploads, all of them of rank 0 everywhere.
        compute
            Runs rows that are not kept through the blocks, and returns what goes down of each
            client's; not called where all are kept.
        """
        parts = [torch.split(own.activation, list(own.lengths)) for own in rows]
        keys = [[row_digest(row) for row in own] for own in parts]
        down = [self._find(own.client, named) for own, named in zip(rows, keys, strict=True)]
        lacking = [
            Lacking(
                place,
                torch.cat([parts[place][at] for at in missing]),
                [len(parts[place][at]) for at in missing],
            )
            for place, known in enumerate(down)
            if (missing := _missing(known))
        ]
        for own, computed in zip(lacking, compute(lacking) if lacking else (), strict=True):
            place = own.place
            sizes = [1] * len(own.lengths) if self._pooled else list(own.lengths)
            for at, row in zip(_missing(down[place]), torch.split(computed, sizes), strict=True):
                down[place][at] = row.clone()  # a view would hold the whole batch
                if rows[place].keepable:
                    self._kept.keep(rows[place].client, keys[place][at], _DEPTH, down[place][at])
        return [torch.cat(list(known.values())) for known in down]

    def retain(self, clients: Collection[str]) -> None:
        """Forget what is kept of all other clients."""
        self._kept.retain(clients)

    def _find(self, client: str, keys: Sequence[str]) -> dict[int, torch.Tensor]:
        """Return what is kept of a client's rows, by place, with an empty tensor where nothing."""
        kept = [self._kept.find(client, key) for key in keys]
        return {at: _NONE if own is None else own.states for at, own in enumerate(kept)}


_NONE = torch.empty(0)


def _missing(known: dict[int, torch.Tensor]) -> list[int]:
    return [at for at, states in known.items() if states is _NONE]
