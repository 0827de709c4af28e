"""Rows after the blocks that nobody trains, kept so that they are computed once."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fedlora.config import ComputeConfig
from fedlora.errors import FedloraError
from fedlora.storage.tensor_files import TensorFiles

log = logging.getLogger("fedlora.server")


@dataclass(frozen=True)
class Known:
    """A row's states.

    Attributes
    ----------
    depth
        How many blocks they have passed.
    states
        Shape (tokens, width).
    """

    depth: int
    states: torch.Tensor


@dataclass
class _Entry:
    depth: int
    shape: torch.Size
    nbytes: int
    states: torch.Tensor | None


@dataclass
class _Own:
    entries: dict[str, _Entry] = field(default_factory=dict)
    nbytes: int = 0
    deepest: int = 0


class KeptStates:
    """States of all clients' rows, in memory or on disk, each client's within a bound of its own.

    What does not fit is not kept, and nothing makes room: who goes through more rows than fit would
    otherwise find each just gone.

    Parameters
    ----------
    limit_bytes
        The most that is kept of one client.
    files
        Keeps them on disk; None in memory.
    """

    def __init__(self, limit_bytes: int, files: TensorFiles | None = None) -> None:
        self._limit_bytes, self._files = limit_bytes, files
        self._own: dict[str, _Own] = {}

    @property
    def nbytes(self) -> int:
        """Bytes that are kept in all."""
        return sum(own.nbytes for own in self._own.values())

    def find(self, client: str, key: str) -> Known | None:
        """Return what is kept of a row; one that is damaged on disk is forgotten."""
        entry = self._own[client].entries.get(key) if client in self._own else None
        if entry is None:
            return None
        states = entry.states
        if states is None and self._files is not None:
            states = self._files.read(client, key).get("states")
        if states is None or states.shape != entry.shape:
            self._drop(client, key)
            return None
        return Known(entry.depth, states)

    def keep(self, client: str, key: str, depth: int, states: torch.Tensor) -> None:
        """Keep a row's states, in place of those after fewer blocks, where they fit."""
        if not client:  # of rows that may not be kept
            return
        own = self._own.setdefault(client, _Own())
        before = own.entries[key].nbytes if key in own.entries else 0
        if own.nbytes - before + states.nbytes > self._limit_bytes:
            return
        on_disk = self._files is not None and self._files.write(client, key, {"states": states})
        if self._files is not None and not on_disk:
            return
        own.entries[key] = _Entry(depth, states.shape, states.nbytes, None if on_disk else states)
        own.nbytes += states.nbytes - before
        own.deepest = max(own.deepest, depth)

    def forget_deeper(self, client: str, depth: int) -> None:
        """Forget a client's states after more blocks than ``depth``, where it trains now."""
        own = self._own.get(client)
        if own is None or own.deepest <= depth:
            return
        for key in [key for key, entry in own.entries.items() if entry.depth > depth]:
            self._drop(client, key)
        own.deepest = depth

    def retain(self, clients: Collection[str]) -> None:
        """Forget all other clients."""
        for gone in self._own.keys() - set(clients):
            del self._own[gone]
            if self._files is not None:
                self._files.forget(gone)

    def close(self) -> None:
        """Forget all of them, on disk too."""
        self._own.clear()
        if self._files is not None:
            self._files.close()

    def _drop(self, client: str, key: str) -> None:
        self._own[client].nbytes -= self._own[client].entries.pop(key).nbytes
        if self._files is not None:
            self._files.delete(client, key)


def states_kept(compute: ComputeConfig, clients: int) -> KeptStates:
    """Return where states are kept; nowhere, with a warning, where the folder cannot be used.

    Parameters
    ----------
    compute
        ``reuse_blocks_mib`` and ``reuse_blocks_folder``.
    clients
        Among whom the bytes are shared.
    """
    limit_bytes = (compute.reuse_blocks_mib << 20) // max(1, clients)
    if not compute.reuse_blocks_folder:
        return KeptStates(limit_bytes)
    try:
        folder = Path(compute.reuse_blocks_folder).expanduser()
        lost = "no more hidden states are kept, and they are computed again"
        return KeptStates(limit_bytes, TensorFiles(folder, lost))
    except FedloraError as error:
        log.warning(
            "compute.reuse_blocks_folder: %s; training goes on, and computes all blocks each time",
            error,
        )
        return KeptStates(0)


def row_digest(row: torch.Tensor) -> str:
    """Return what names a row as it was received."""
    found = hashlib.blake2b(digest_size=16)
    found.update(f"{row.dtype}{tuple(row.shape)}".encode())
    found.update(row.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
