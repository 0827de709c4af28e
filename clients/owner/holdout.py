"""Which of the owner's records are held out: drawn once by a secret of the device.

A server that chose them, or could have them drawn anew, would choose whose counts it sees, and see
a record first as a held-out one and then as a training one. So each record's lot is drawn when it
is first seen, from its place and 32 bytes that never leave the device, and written down, for one
process after the other: of two that a server invites at once the second reads what the first drew.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from fedlora.errors import FedloraError
from fedlora.storage import lock_file, read_object, replace_file

FORMAT = "fedlora-holdout/1"
_MOST_WAIT_S = 20.0  # for another process that draws


def draw(path: Path, contents: Iterable[bytes], share: float) -> list[bool]:
    """Return for each record whether it is held out.

    Parameters
    ----------
    path
        File of the lots; it is created when there is none.
    contents
        What makes each record itself, in order; see ``clients.owner.origins.content``.
    share
        Probability of records that have no lot yet.

    Raises
    ------
    FedloraError
        When the file is damaged, cannot be written, or is held by another process for long.
    """
    with _held(path):
        return _drawn(path, contents, share)


def _held(path: Path) -> BinaryIO:
    """Hold the lots until what is returned is closed."""
    lock, until = path.with_name(path.name + ".lock"), time.monotonic() + _MOST_WAIT_S
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.touch(0o600)  # who can open it could hold it
        while (held := lock_file(lock)) is None:
            if time.monotonic() > until:
                raise FedloraError(
                    f"{path} is in use by another process; stop that, or set another privacy-ledger"
                )
    except OSError as error:
        raise FedloraError(
            f"cannot open {lock}: {error.strerror}; mend the disk or the path"
        ) from error
    return held


def _drawn(path: Path, contents: Iterable[bytes], share: float) -> list[bool]:
    """See ``draw``."""
    secret, lots = _read(path)
    known, seen = len(lots), Counter[bytes]()
    drawn = []
    for place, content in enumerate(contents):
        count = seen[content].to_bytes(8, "big")
        seen[content] += 1
        name = hashlib.blake2b(content, digest_size=8, key=secret + count).hexdigest()
        if name not in lots:
            lot = hashlib.blake2b(place.to_bytes(8, "big"), digest_size=8, key=secret).digest()
            lots[name] = int.from_bytes(lot, "big") < share * 2**64
        drawn.append(lots[name])
    if len(lots) > known:
        told = {"format": FORMAT, "secret": secret.hex(), "lots": lots}
        replace_file(path, json.dumps(told).encode(), private=True)
    return drawn


def _read(path: Path) -> tuple[bytes, dict[str, bool]]:
    if not path.exists():
        return secrets.token_bytes(32), {}
    table = read_object(path)
    try:
        if table is None or table["format"] != FORMAT:
            raise ValueError
        return bytes.fromhex(table["secret"]), dict(table["lots"])
    except (KeyError, TypeError, ValueError):
        raise FedloraError(
            f"{path} is damaged, which says what is held out; restore its newest copy"
        ) from None
