"""What a device's texts come to, in its owner's audit file: figures alone, no words."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clients.generation.remote_row import RemoteRow
from fedlora.errors import FedloraError, printable
from fedlora.link import REASON, closed_words
from fedlora.site import audit
from fedlora.site.words import FINISHED

_LEFT_UNSAID = "interrupted"


class TextDiary:
    """Writes down each text before anything of it leaves, and what it came to.

    Parameters
    ----------
    folder
        The owner's ``state`` folder.
    row
        The session with the server, which counts.
    client
        What the server calls this device.
    servers
        Addresses that are dialled.
    """

    def __init__(self, folder: Path, row: RemoteRow, client: str, servers: str) -> None:
        self._path, self._row = folder / audit.NAME, row
        self._about = {
            "session": f"text-{time.time_ns():x}-{os.getpid():x}",
            "client": client,
            "run": row.adapter[:16],
            "server": printable(servers, 100),
        }

    @contextmanager
    def text(self, prompt: int) -> Iterator[None]:
        """Write down a text that is begun, and when the context ends, what left for it.

        Parameters
        ----------
        prompt
            Tokens of the prompt.

        Raises
        ------
        FedloraError
            When the audit file cannot be written: then nothing leaves.
        """
        before = self._row.bits_up, self._row.tokens_up
        self._write(audit.TEXT, prompt=prompt)
        how = _LEFT_UNSAID
        try:
            yield
            how = FINISHED
        except FedloraError as error:
            how = str(closed_words(error)[REASON])
            raise
        finally:
            now = self._row.bits_up, self._row.tokens_up
            bits, tokens = (a - b for a, b in zip(now, before, strict=True))
            self._write(audit.TEXT_OVER, how=how, tokens=tokens, left={"activations": bits // 8})

    def _write(self, event: str, **more: object) -> None:
        audit.append(self._path, {"event": event, "time": audit.now(), **self._about, **more})
