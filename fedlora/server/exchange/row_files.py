"""Smashed data that the server keeps on disk for as long as a run lasts (``link.reuse_folder``)."""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import BinaryIO

import safetensors.torch
from safetensors import SafetensorError

from fedlora.server.exchange.uploads import Row
from fedlora.storage.files import explained, is_locked, lock_file, open_private

log = logging.getLogger("fedlora.server")

_PREFIX, _LOCK = "fedlora-rows-", ".lock"


class RowFiles:
    """A file for each row, in a folder of the run's own that is deleted with it.

    Nobody but this user may read them. A folder that a killed run left is deleted by the next one.

    Parameters
    ----------
    folder
        Where the run's own folder is made.

    Raises
    ------
    FedloraError
        When nothing can be written there.
    """

    def __init__(self, folder: Path) -> None:
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _sweep(folder)
            self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))  # mode 0700
            lock = lock_file(self._folder / _LOCK)
        assert lock is not None
        self._close = weakref.finalize(self, _remove, self._folder, lock)
        self._full = False

    def write(self, client: str, identifier: int, row: Row) -> bool:
        """Write a row; return False where the disk takes no more, which is told once."""
        if self._full:
            return False
        tensors = {"packed": row.packed.contiguous()}
        if row.targets is not None:
            tensors["targets"] = row.targets
        path = self._path(client, identifier)
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            with open_private(path) as file:
                file.write(safetensors.torch.save(tensors))
        except OSError as error:
            path.unlink(missing_ok=True)
            self._full = True
            log.warning(
                "cannot write %s: %s; no more activations are kept, and clients send them again",
                self._folder,
                error.strerror,
            )
            return False
        return True

    def read(self, client: str, identifier: int, like: tuple[int, ...]) -> Row | None:
        """Return a row; None where its file is gone or damaged.

        Parameters
        ----------
        client, identifier
            As it was written.
        like
            The shape that it had.
        """
        try:
            tensors = safetensors.torch.load(self._path(client, identifier).read_bytes())
            row = Row(tensors["packed"], tensors.get("targets"))
        except (OSError, SafetensorError, KeyError):
            return None
        return row if tuple(row.packed.shape) == like else None

    def forget(self, client: str) -> None:
        """Delete a client's rows."""
        shutil.rmtree(self._path(client, 0).parent, ignore_errors=True)

    def close(self) -> None:
        """Delete all of them; twice does no harm."""
        self._close()

    def _path(self, client: str, identifier: int) -> Path:
        # a client's name is the server's own number for it, never what it says
        return self._folder / str(int(client)) / f"{identifier:016x}.safetensors"


def _remove(folder: Path, lock: BinaryIO) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    lock.close()


def _sweep(folder: Path) -> None:
    """Delete what runs have left that are no more."""
    for own in folder.glob(f"{_PREFIX}*"):
        if (own / _LOCK).is_file() and not is_locked(own / _LOCK):
            shutil.rmtree(own, ignore_errors=True)


def rows_on_disk(folder: str) -> RowFiles | None:
    """Return where rows are kept; None for memory.

    Parameters
    ----------
    folder
        ``link.reuse_folder``.
    """
    if not folder:
        return None
    return RowFiles(Path(folder).expanduser())
