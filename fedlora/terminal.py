"""Standard streams that take every text: what they cannot show, they show another character for."""

from __future__ import annotations

import codecs
import contextlib
import io
import logging
import os
import select
import sys
import unicodedata
import warnings
from typing import Any

_ERRORS = "fedlora.another"
_LEAST_COLUMNS = 40
_INSTEAD = {
    **{"✓": "+", "✗": "x", "·": ".", "…": ".", "–": "-", "—": "-", "−": "-", "×": "x", "±": "+"},
    **{"→": ">", "↑": "^", "↓": "v"},
}


def open_streams() -> None:
    """Make the standard streams fit for every text, and open those that are closed on nothing.

    A number that is closed would else be that of the next file that is opened.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, open(_on_nothing(number), mode, closefd=False))  # noqa: SIM115
    show_anything(sys.stdout)
    show_anything(sys.stderr)
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) < _LEAST_COLUMNS:
        os.environ["COLUMNS"] = str(_LEAST_COLUMNS)  # lines that wrap tell more than empty columns


def leave_out_chatter() -> None:
    """Leave out what libraries tell of their own future, and of kernels that they lack.

    transformers imports torchao and bitsandbytes wherever they are installed.
    """
    for module in ("transformers", "ray"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)
    for name in ("torchao", "bitsandbytes", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def show_anything(stream: Any) -> None:
    """Let a text stream write another character for each that its encoding lacks."""
    codecs.register_error(_ERRORS, _another)
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=_ERRORS)


def reader_gone(stream: Any) -> bool:
    """Tell whether a stream is a pipe that nobody reads any more."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(found & select.POLLERR for _, found in poll.poll(0))
    except (OSError, ValueError):  # it has no number of its own
        return False


def silence(stream: Any) -> None:
    """Let nothing more be written to a stream whose reader has gone."""
    with contextlib.suppress(OSError, ValueError):  # it may have no number of its own
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _on_nothing(number: int) -> int:
    """Open the null device, with a number where that is free."""
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        os.fstat(number)
    except OSError:
        os.dup2(nothing, number)
        return number
    return nothing


def _another(error: UnicodeError) -> tuple[str, int]:
    """Return what is shown for characters that an encoding lacks; see ``codecs.register_error``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_shown(character, error.encoding) for character in lacking), error.end


def _shown(character: str, encoding: str) -> str:
    """Return a sign like it, or the letter without its accents, or a question mark."""
    parts = unicodedata.normalize("NFKD", character)
    bare = parts[0] if parts[1:] and all(map(unicodedata.combining, parts[1:])) else "?"
    for other in (_INSTEAD.get(character, bare), "?"):
        try:
            other.encode(encoding)
        except UnicodeEncodeError:
            continue
        return other
    return ""
