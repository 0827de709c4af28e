"""Tensors that a server keeps on its disk for as long as a run lasts (``link.reuse_folder``)."""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError

from fedlora.storage.files import explained, is_locked, lock_file, open_private

log = logging.getLogger("fedlora.server")

_PREFIX, _LOCK = "fedlora-rows-", ".lock"
_DIGEST_BYTES = 16


class TensorFiles:
    """A file for each entry, in a folder of the run's own that is deleted with it.

    Nobody but this user may read them. A folder that a killed run left is deleted by the next one.

    Parameters
    ----------
    folder
        Where the run's own folder is made.
    lost
        What follows from a full disk, in words for the log.

    Raises
    ------
    FedloraError
        When nothing can be written there.
    """

    def __init__(self, folder: Path, lost: str) -> None:
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _sweep(folder)
            self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))  # mode 0700
            # held before it has the name by which a folder is known for one that was left
            lock = lock_file(self._folder / f"{_LOCK}.new")
            assert lock is not None
            (self._folder / f"{_LOCK}.new").replace(self._folder / _LOCK)
        self._close = weakref.finalize(self, _remove, self._folder, lock)
        self._lost = lost
        self._full = False

    def write(self, client: str, name: str, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Write an entry; return False where the disk takes no more, which is told once."""
        if self._full:
            return False
        content = safetensors.torch.save({key: t.contiguous() for key, t in tensors.items()})
        path = self._path(client, name)
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            with open_private(path) as file:
                file.write(_digest(content) + content)
        except OSError as error:
            path.unlink(missing_ok=True)
            self._full = True
            log.warning("cannot write %s: %s; %s", self._folder, error.strerror, self._lost)
            return False
        return True

    def read(self, client: str, name: str) -> dict[str, torch.Tensor]:
        """Return an entry's tensors; none where its file is gone or damaged."""
        try:
            content = self._path(client, name).read_bytes()
            digest, content = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
            return safetensors.torch.load(content) if digest == _digest(content) else {}
        except (OSError, SafetensorError):
            return {}

    def delete(self, client: str, name: str) -> None:
        """Delete an entry, if it is there."""
        self._path(client, name).unlink(missing_ok=True)

    def forget(self, client: str) -> None:
        """Delete a client's entries."""
        shutil.rmtree(self._path(client, "").parent, ignore_errors=True)

    def close(self) -> None:
        """Delete all of them; twice does no harm."""
        self._close()

    def _path(self, client: str, name: str) -> Path:
        # a client's name is the server's own number for it, never what it says
        return self._folder / str(int(client)) / f"{name}.safetensors"


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()


def _remove(folder: Path, lock: BinaryIO) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    lock.close()


def _sweep(folder: Path) -> None:
    """Delete what runs have left that are no more."""
    for own in folder.glob(f"{_PREFIX}*"):
        if (own / _LOCK).is_file() and not is_locked(own / _LOCK):
            shutil.rmtree(own, ignore_errors=True)
