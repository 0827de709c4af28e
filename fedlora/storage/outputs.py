"""What a command writes replaces nothing that is there, unless the user says so."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedlora.errors import FedloraError
from fedlora.storage.files import explained


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder that a command writes.

    Attributes
    ----------
    noun
        What it is called, such as ``run``.
    marks
        Names of which each tells that a folder is of this kind.
    own
        Patterns of all names that such a folder gets; nothing else in it is ever removed.
    overwrite
        How the user says that one is to be replaced.
    """

    noun: str
    marks: tuple[str, ...]
    own: tuple[str, ...]
    overwrite: str = "--overwrite"

    def check_free(
        self, path: Path, *, overwrite: bool, instead: str = "", option: str = ""
    ) -> None:
        """Refuse a folder with anything in it; to overwrite, it has to be of this kind.

        Parameters
        ----------
        path
            The folder, which need not exist.
        overwrite
            Whether one of this kind is to be replaced.
        instead
            What else can be done with one of this kind, such as to go on with it.
        option
            Named by the refusal, such as ``--out``.

        Raises
        ------
        FedloraError
            When it is taken, or no folder.
        """
        named = f"{option} {path}".strip()
        if os.path.lexists(path) and not path.is_dir():
            raise FedloraError(f"{named} is a file; name a folder")
        if not path.is_dir() or not any(path.iterdir()):
            return
        if not self.is_in(path):
            raise FedloraError(
                f"{named} is not empty and holds no earlier {self.noun}; choose another folder"
            )
        if not overwrite:
            raise FedloraError(
                f"{named} holds an earlier {self.noun}; {instead}replace it with "
                f"{self.overwrite}, or choose another folder"
            )

    def is_in(self, path: Path) -> bool:
        """Tell whether a folder is of this kind."""
        return any(any(path.glob(mark)) for mark in self.marks)

    def clear(self, path: Path) -> None:
        """Remove what is this kind's own from a folder; other files in it stay.

        Raises
        ------
        FedloraError
            When something cannot be removed.
        """
        with explained(path):
            for found in [place for pattern in self.own for place in path.glob(pattern)]:
                _remove(found)


def check_new_file(
    path: Path | None, option: str, *, overwrite: bool, beside: Iterable[Path] = ()
) -> None:
    """Refuse a file that is there or that could not be written, before anything is computed.

    Parameters
    ----------
    path
        The file; its folder is made if need be. None, where nothing is asked for, is fine.
    option
        By which it was given, such as ``--json``.
    overwrite
        Whether one that is there is to be replaced.
    beside
        Files that are written with it.

    Raises
    ------
    FedloraError
        When one of them is there, or it is a folder or cannot be written.
    """
    if path is None:
        return
    if path.is_dir():
        raise FedloraError(f"{option} is {path}, which is a folder; name a file")
    for place in (path, *beside):
        if os.path.lexists(place) and not place.is_file():
            raise FedloraError(f"{option} {place} is no regular file; name another")
        if place.exists() and not overwrite:
            raise FedloraError(
                f"{option} {place} exists; replace it with --overwrite, or name another file"
            )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        existed = path.exists()
        path.open("a").close()
        if not existed:
            path.unlink()
    except OSError as error:
        raise FedloraError(
            f"cannot write {option} {path}: {error.strerror}; name another"
        ) from None


def dated_folder(stem: Path) -> Path:
    """Return ``STEM-DATE-TIME``, with a number behind it where that is taken."""
    first = stem.with_name(f"{stem.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    place, number = first, 1
    while os.path.lexists(place):
        number += 1
        place = first.with_name(f"{first.name}-{number}")
    return place


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
