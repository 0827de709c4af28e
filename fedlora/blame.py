"""Whose fault it is when a stranger's plug-in raises, or does not return."""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

from fedlora.errors import FedloraError, described
from fedlora.machine import stretch

_log = logging.getLogger(__name__)

_STRANGERS: dict[str, dict[str, None]] = {}
"""Which plug-ins the code of a file is, for those that are not fedlora's own."""

_WAITED_FOR: dict[int, tuple[str, float]] = {}
"""Calls that have not returned, and when they began."""

_OVERDUE: dict[str, str] = {}
"""What was said of calls that took long."""

_PATIENCE_S: Final = 10.0
_LIBRARIES: Final = frozenset(("site-packages", "dist-packages"))


def is_ours(cls: type) -> bool:
    """Tell whether a class is fedlora's own, whose faults keep their traceback."""
    return cls.__module__.startswith("fedlora.")


def note_stranger(cls: type, what: str) -> None:
    """Remember which plug-in the code of a class is, where it is not fedlora's own.

    What it inherits from is the plug-in's, too, unless it is a library's, such as ``nn.Module``,
    which errors pass that are nobody's.

    Parameters
    ----------
    cls
        The plug-in.
    what
        How a sentence names it.
    """
    package = _package(cls)
    for own in cls.__mro__:
        file = getattr(sys.modules.get(own.__module__), "__file__", None)
        if file and not is_ours(own) and (_package(own) == package or not _is_library(own, file)):
            _STRANGERS.setdefault(file, {})[what] = None


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def _is_library(cls: type, file: str) -> bool:
    installed = not _LIBRARIES.isdisjoint(Path(file).parts)
    return installed or _package(cls) in sys.stdlib_module_names


@contextmanager
def blaming(what: str, cls: type) -> Iterator[None]:
    """Turn whatever a stranger's plug-in raises into a ``FedloraError`` that names it.

    While a call of it does not return, that is told once: the run waits for it.

    Parameters
    ----------
    what
        The plug-in, as the beginning of a sentence.
    cls
        Its class; a fault of one of ours keeps its traceback.

    Raises
    ------
    FedloraError
        In place of any other exception, also of one that would end the process.
    """
    if is_ours(cls):
        yield
        return
    try:
        with waiting_for(what):
            yield
    except FedloraError:
        raise
    except (Exception, SystemExit) as error:
        raise FedloraError(f"{what} fails ({place_in_plugin(error)}); mend it") from error


@contextmanager
def naming_plugins() -> Iterator[None]:
    """Turn any error that passed a stranger's plug-in into a ``FedloraError`` that names it.

    The last resort of whoever tells a user or a server how something ended, beside ``blaming``,
    which knows what was asked of which plug-in.

    Raises
    ------
    FedloraError
        In place of an error that passed a plug-in; any other stays what it is.
    """
    try:
        yield
    except FedloraError:
        raise
    except (Exception, SystemExit) as error:
        for place in reversed(traceback.extract_tb(error.__traceback__)):
            if place.filename in _STRANGERS:
                whose = " or ".join(_STRANGERS[place.filename])
                raise FedloraError(f"{whose} fails ({place_in_plugin(error)}); mend it") from error
        raise


def place_in_plugin(error: BaseException) -> str:
    """Return what was raised, and where: in a plug-in rather than in a library that it called."""
    return described(error, _STRANGERS)


@contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """Say in the log, once, when what is waited for takes long.

    Parameters
    ----------
    what
        The beginning of a sentence.
    """
    _watch()
    call = object()
    _WAITED_FOR[id(call)] = what, time.monotonic()
    try:
        yield
    finally:
        del _WAITED_FOR[id(call)]


def overdue() -> list[str]:
    """Return what was said of calls that took long, in this process."""
    return list(_OVERDUE.values())


@cache
def _watch() -> None:
    threading.Thread(target=_look, name="fedlora-plugins", daemon=True).start()


def _look() -> None:
    while True:
        time.sleep(_PATIENCE_S / 10)
        for what, began in list(_WAITED_FOR.values()):
            took_s = time.monotonic() - began
            if what not in _OVERDUE and took_s > _PATIENCE_S * stretch():
                _OVERDUE[what] = (
                    f"{what} takes over {took_s:.0f} s, and all wait for it; make it faster"
                )
                _log.warning("%s", _OVERDUE[what])
