"""A text that is being written, on the device's disk, so that it outlives its process."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

from clients.generation.sampling import Sampling
from fedlora.config import read_section
from fedlora.errors import FedloraError
from fedlora.storage import explained, lock_file, read_lines

_SUFFIX = ".text"


@dataclass(frozen=True)
class Asked:
    """What a text is written from; with the tokens so far, all that it takes to go on.

    Attributes
    ----------
    verb
        ``generate`` or ``chat``.
    package
        Absolute path of the run or package that writes it.
    prompt
        Token ids.
    sampling
        How tokens are chosen, with the seed of the draws.
    drawn
        Draws of that seed before this text, as of earlier turns.
    most
        Tokens at most.
    stops
        Texts at which it ends.
    adapter
        Version of the adapter that its first tokens are of.
    messages
        The conversation so far, of ``chat``.
    leave_after, leave_at
        When its tokens leave early, see ``LeaveEarly``; 0 for never.
    """

    verb: str
    package: str
    prompt: tuple[int, ...]
    sampling: Sampling
    drawn: int
    most: int
    stops: tuple[str, ...]
    adapter: str
    messages: tuple[Mapping[str, str], ...] = ()
    leave_after: int = 0
    leave_at: float = 0.0


@dataclass
class KeptText:
    """A file that grows by a line with each token; this process alone writes it.

    Attributes
    ----------
    asked
        What the text is written from.
    tokens
        Those that were chosen so far.
    """

    asked: Asked
    path: Path
    tokens: list[int] = field(default_factory=list)
    _file: BinaryIO | None = field(default=None, repr=False)

    @classmethod
    def begin(cls, folder: Path, asked: Asked) -> Self:
        """Begin a text; the file is its owner's alone (mode 0600).

        Raises
        ------
        FedloraError
            When it cannot be written.
        """
        path = folder / f"{secrets.token_hex(8)}{_SUFFIX}"
        with explained(path):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            kept = cls(asked, path, [], lock_file(path))
            kept._append(asdict(asked))
        return kept

    @classmethod
    def unfinished(cls, folder: Path, verb: str, package: Path) -> Self | None:
        """Take up the text that a process left last, if one did.

        Parameters
        ----------
        folder
            Where texts are kept.
        verb, package
            Of which kind, and written by what.

        Raises
        ------
        FedloraError
            When it cannot be read.
        """
        found = sorted(folder.glob(f"*{_SUFFIX}"), key=lambda p: p.stat().st_mtime, reverse=True)
        for path in found:
            file = lock_file(path)
            if file is None:
                continue  # another process writes it
            lines, end = read_lines(path)
            if not lines:  # killed before anything was asked
                path.unlink(missing_ok=True)
                file.close()
                continue
            file.truncate(end)  # what a killed process had written of a line
            kept = cls(_asked(path, lines), path, _tokens(path, lines), file)
            if (kept.asked.verb, kept.asked.package) == (verb, str(package.resolve())):
                return kept
            file.close()
        return None

    def add(self, token: int) -> None:
        """Write down the next token; it is on disk, as far as this process can die."""
        self.tokens.append(token)
        with explained(self.path):
            self._append({"token": token})

    def done(self) -> None:
        """Forget the text, which is whole."""
        self.path.unlink(missing_ok=True)
        self.leave()

    def leave(self) -> None:
        """Leave the text as it is, for another process to go on with."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, record: Mapping[str, Any]) -> None:
        assert self._file is not None, "the text was left"
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()


def _asked(path: Path, lines: list[dict[str, Any]]) -> Asked:
    try:
        return read_section(Asked, dict(lines[0]))
    except (IndexError, FedloraError, TypeError, ValueError) as error:
        raise FedloraError(
            f"{path} is no text that was begun ({type(error).__name__}: {error}); remove it"
        ) from None


def _tokens(path: Path, lines: list[dict[str, Any]]) -> list[int]:
    tokens = [line.get("token") for line in lines[1:]]
    if not all(type(token) is int and token >= 0 for token in tokens):
        raise FedloraError(f"{path} has a token that is no number; remove it")
    return [int(token) for token in tokens if token is not None]
