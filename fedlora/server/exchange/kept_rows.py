"""The smashed data that the server has seen: clients name them, and send none twice."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fedlora.server.exchange.uploads import Row


@dataclass
class _Own:
    """What is kept of one client's; a row that a checkpoint names and memory lacks is None."""

    session: object
    rows: dict[int, Row | None] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    nbytes: int = 0
    told: int = 0


class KeptRows:
    """Rows of all clients, in memory, each client's within a bound of its own.

    What does not fit is not kept, and nothing makes room: who goes through more samples than fit
    would otherwise find each just gone. A client finds its own rows alone; they are forgotten when
    it leaves.

    Parameters
    ----------
    limit_bytes
        The most that is kept of one client.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._own: dict[str, _Own] = {}

    def attend(self, client: str, session: object) -> None:
        """Forget what was kept of another session of a client."""
        if client not in self._own or self._own[client].session is not session:
            self._own[client] = _Own(session)

    def retain(self, clients: Collection[str]) -> None:
        """Forget all other clients."""
        for gone in self._own.keys() - set(clients):
            del self._own[gone]

    def find(self, client: str, identifier: int) -> Row | None:
        """Return a row, or None where it is not kept."""
        return self._own[client].rows.get(identifier)

    def restores(self, client: str, identifier: int) -> bool:
        """Tell whether a row is gone only because the server has begun again."""
        rows = self._own[client].rows
        return identifier in rows and rows[identifier] is None

    def keep(self, client: str, rows: Collection[tuple[int, Row]]) -> None:
        """Keep a client's new rows, from the first to the last that fits.

        Parameters
        ----------
        client
            Whose they are.
        rows
            Identifier and row of each.
        """
        own = self._own[client]
        own.told = 0
        for identifier, row in rows:
            size = own.nbytes + row.nbytes - own.sizes.get(identifier, 0)
            if size > self.limit_bytes:
                break
            own.rows[identifier], own.sizes[identifier] = row.clone(), row.nbytes
            own.nbytes = size
            own.told += 1

    def told(self, client: str, session: object) -> int:
        """Return how many rows of a client's last activation are kept, which it is told once."""
        own = self._own.get(client)
        if own is None or own.session is not session:
            return 0
        kept, own.told = own.told, 0
        return kept

    def evict(self, client: str) -> None:
        """Lose all rows of a client, which it is then asked for again."""
        if client in self._own:
            self._own[client].rows.clear()
            self._own[client].sizes.clear()
            self._own[client].nbytes = 0

    def state_dict(self) -> dict[str, Any]:
        """Return which rows are kept, for a checkpoint: their names and sizes, not the rows."""
        return {
            client: {
                "ids": torch.tensor(list(own.sizes), dtype=torch.int64),
                "bytes": torch.tensor(list(own.sizes.values()), dtype=torch.int64),
                "told": own.told,
            }
            for client, own in self._own.items()
        }

    def load(self, client: str, session: object, state: Mapping[str, Any]) -> None:
        """Take a client's rows to be kept that a checkpoint names; each is asked for when used."""
        ids = state["ids"].tolist()
        sizes = dict(zip(ids, state["bytes"].tolist(), strict=True))
        self._own[client] = _Own(
            session, dict.fromkeys(ids), sizes, sum(sizes.values()), state["told"]
        )
