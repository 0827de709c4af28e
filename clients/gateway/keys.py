"""The bearer key: drawn at the start, or read from a file that nobody else can read."""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path

from fedlora.errors import FedloraError

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_KEY = re.compile(r"[!-~]{16,512}")


def drawn_key() -> str:
    """Return a fresh key."""
    return f"fedlora-{secrets.token_urlsafe(24)}"


def read_key(path: Path) -> str:
    """Return the key in a file.

    Raises
    ------
    FedloraError
        When others can read the file, or it holds no key.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(1024)
    except OSError as error:
        raise FedloraError(
            f"--key-file {path}: {error.strerror}; name a file with the key, or leave it out"
        ) from None
    if mode & _OTHERS:
        raise FedloraError(f"--key-file {path} has mode {mode:04o}; chmod 600 it")
    key = content.decode("latin-1").strip()
    if not _KEY.fullmatch(key):
        raise FedloraError(
            f"--key-file {path} holds {len(key)} characters that are no key; write 16 to 512 "
            "visible ASCII characters, without blanks"
        )
    return key
