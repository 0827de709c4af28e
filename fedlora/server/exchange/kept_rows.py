"""The smashed data that the server has seen: clients name them, and send none twice."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fedlora.server.exchange.uploads import Row
from fedlora.storage.tensor_files import TensorFiles


@dataclass
class _Own:
    """What is kept of one client's; a row that a checkpoint names and memory lacks is None.

    Of a row that is on disk its shape is here.
    """

    session: object
    rows: dict[int, Row | tuple[int, ...] | None] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    nbytes: int = 0
    told: int = 0


class KeptRows:
    """Rows of all clients, in memory or on disk, each client's within a bound of its own.

    What does not fit is not kept, and nothing makes room: who goes through more samples than fit
    would otherwise find each just gone. A client finds its own rows alone; they are forgotten when
    it leaves.

    Parameters
    ----------
    limit_bytes
        The most that is kept of one client.
    files
        Keeps them on disk; None in memory.
    """

    def __init__(self, limit_bytes: int, files: TensorFiles | None = None) -> None:
        self.limit_bytes = limit_bytes
        self._files = files
        self._own: dict[str, _Own] = {}

    def attend(self, client: str, session: object) -> None:
        """Forget what was kept of another session of a client."""
        if client not in self._own or self._own[client].session is not session:
            self._forget(client)
            self._own[client] = _Own(session)

    def retain(self, clients: Collection[str]) -> None:
        """Forget all other clients."""
        for gone in self._own.keys() - set(clients):
            self._forget(gone)

    def find(self, client: str, identifier: int) -> Row | None:
        """Return a row, or None where it is not kept."""
        row = self._own[client].rows.get(identifier)
        if self._files is None or not isinstance(row, tuple):
            assert not isinstance(row, tuple)
            return row
        found = _row(self._files.read(client, _name(identifier)), row)
        if found is None:  # it is asked for once more, as if it had never been kept
            del self._own[client].rows[identifier]
            self._own[client].nbytes -= self._own[client].sizes.pop(identifier)
        return found

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
            if self._files is None:
                own.rows[identifier] = row.clone()
            elif self._files.write(client, _name(identifier), _tensors(row)):
                own.rows[identifier] = tuple(row.packed.shape)
            else:
                break
            own.sizes[identifier] = row.nbytes
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
            if self._files is not None:
                self._files.forget(client)
            self._own[client].rows.clear()
            self._own[client].sizes.clear()
            self._own[client].nbytes = 0

    def close(self) -> None:
        """Forget all of them, on disk too."""
        self._own.clear()
        if self._files is not None:
            self._files.close()

    def _forget(self, client: str) -> None:
        self.evict(client)
        self._own.pop(client, None)

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


def rows_on_disk(folder: str) -> TensorFiles | None:
    """Return where rows are kept; None for memory.

    Parameters
    ----------
    folder
        ``link.reuse_folder``.
    """
    if not folder:
        return None
    lost = "no more activations are kept, and clients send them again"
    return TensorFiles(Path(folder).expanduser(), lost)


def _name(identifier: int) -> str:
    return f"{identifier:016x}"


def _tensors(row: Row) -> dict[str, torch.Tensor]:
    targets = {} if row.targets is None else {"targets": row.targets}
    return {"packed": row.packed, **targets}


def _row(tensors: Mapping[str, torch.Tensor], like: tuple[int, ...]) -> Row | None:
    """Return a row of a shape; None where it is not that."""
    packed = tensors.get("packed")
    if packed is None or tuple(packed.shape) != like:
        return None
    return Row(packed, tensors.get("targets"))
