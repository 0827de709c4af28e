"""Where Flower's and Ray's own files go: a folder whose path leaves Ray's sockets room.

Batch systems set a TMPDIR of 50 to 100 characters; a socket's path may have about a hundred.
"""

from __future__ import annotations

import os
import sys
import tempfile

from fedlora.errors import FedloraError

_SOCKET_PATH = 107 if sys.platform == "linux" else 103  # bytes, of sockaddr_un
_BELOW = len("/ray/session_2026-11-29_13-41-07_893123_4194304/sockets/plasma_store")
_PREFIX, _DRAWN = "fedlora-", 8  # of the folder of a run, and the characters that tempfile adds
_SHORT = ("/tmp", "/var/tmp", "/dev/shm")
_RAY_TMPDIR = "RAY_TMPDIR"

MOST_FOR_RAY = _SOCKET_PATH - _BELOW
"""Bytes that the path may have below which Ray puts its session."""


def run_folder() -> tempfile.TemporaryDirectory[str]:
    """Make the folder of one run for Flower and Ray, below TMPDIR where its path is short enough.

    Raises
    ------
    FedloraError
        When there is no folder for them.
    """
    parent = parent_folder()
    return tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent, ignore_cleanup_errors=True)


def parent_folder() -> str:
    """Return the folder in which that of a run is made; see ``run_folder``."""
    wanted = temporary_folder()
    if os.environ.get(_RAY_TMPDIR):
        _check_own(os.environ[_RAY_TMPDIR])
        return wanted
    places = [place for place in (wanted, *_SHORT) if _leaves_room(place) and _takes_files(place)]
    if not places:
        raise FedloraError(
            f"the temporary folder {wanted} leaves the sockets of Ray no room, and none of "
            f"{', '.join(_SHORT)} takes files; set {_RAY_TMPDIR} to a folder whose path has at "
            f"most {MOST_FOR_RAY} characters"
        )
    return places[0]


def temporary_folder() -> str:
    """Return the folder for temporary files: TMPDIR, or another where that takes none.

    Raises
    ------
    FedloraError
        When there is none.
    """
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        raise FedloraError(
            f"no folder takes temporary files (TMPDIR is {os.environ.get('TMPDIR', '')!r}); set "
            "TMPDIR to one that is there and writable"
        ) from None


def _leaves_room(place: str) -> bool:
    """Tell whether Ray's sockets have room below the folder of a run that is made in a place."""
    return len(os.fsencode(place)) + len(f"/{_PREFIX}") + _DRAWN <= MOST_FOR_RAY


def for_ray(home: str) -> dict[str, str]:
    """Return what tells Ray where to put its session: what the user says, or a run's folder."""
    return {_RAY_TMPDIR: os.path.abspath(os.environ.get(_RAY_TMPDIR) or home)}


def _check_own(place: str) -> None:
    """Refuse a RAY_TMPDIR of the user's that Ray cannot use."""
    size = len(os.fsencode(os.path.abspath(place)))
    if size > MOST_FOR_RAY:
        raise FedloraError(
            f"{_RAY_TMPDIR} is {place!r}, {size} characters, which leave the sockets of Ray no "
            f"room; set a folder whose path has at most {MOST_FOR_RAY}, or unset it"
        )
    if not _takes_files(place):
        raise FedloraError(
            f"{_RAY_TMPDIR} is {place!r}, which is no folder that takes files; set another, or "
            "unset it"
        )


def _takes_files(place: str) -> bool:
    return os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK)
