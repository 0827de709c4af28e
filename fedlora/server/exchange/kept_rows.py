"""The smashed data that the server has seen: clients name them, and send none twice."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from fedlora.server.exchange.uploads import Row


@dataclass
class _Own:
    """What is kept of one client's."""

    session: object
    rows: dict[int, Row] = field(default_factory=dict)
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
            before = own.rows.get(identifier)
            size = own.nbytes + row.nbytes - (before.nbytes if before is not None else 0)
            if size > self.limit_bytes:
                break
            own.rows[identifier], own.nbytes = row.clone(), size
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
            self._own[client].nbytes = 0
