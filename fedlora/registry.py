"""One lookup for every kind of plug-in: a registered name or ``module:Class``.

Built-in and third-party plug-ins are found alike, through the entry-point groups
``fedlora.strategies``, ``.channels``, ``.codecs``, ``.families``, ``.tasks``, ``.schedulers``,
``.averages`` and ``.commands``.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from fedlora.errors import FedloraError


@cache
def _registered(kind: str) -> Mapping[str, EntryPoint]:
    """Return the entry points of one kind; every scan reads the metadata of all packages."""
    return {entry.name: entry for entry in entry_points(group=f"fedlora.{kind}")}


def names(kind: str) -> list[str]:
    """Return the registered names of one kind of plug-in, sorted."""
    return sorted(_registered(kind))


def resolve(kind: str, name: str) -> Any:
    """Return the object that a name stands for.

    Parameters
    ----------
    kind
        Plug-in kind: the part of the entry-point group after ``fedlora.``.
    name
        A registered name, or ``module:Class`` for a class that is on the import path.

    Raises
    ------
    FedloraError
        When the name is unknown or its module cannot be imported.
    """
    if ":" in name:
        return _load_path(kind, name)
    found = _registered(kind).get(name)
    if found is None:
        near = difflib.get_close_matches(name, names(kind), n=1)
        mend = f"did you mean {near[0]}?" if near else f"known: {', '.join(names(kind))}"
        raise FedloraError(f"no {kind} plug-in is called {name!r}; {mend} (or give module:Class)")
    return _load_entry(found)


def _load_path(kind: str, name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError, ValueError) as error:
        raise FedloraError(
            f"cannot import {module_name!r} for {kind} {name!r} ({error}); check the name, or set "
            "python_path to the folder that holds it"
        ) from None
    if not hasattr(module, attribute):
        raise FedloraError(
            f"module {module_name!r} has no {attribute!r}; check {kind} {name!r} for a misspelling"
        )
    return getattr(module, attribute)


def _load_entry(entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        package = entry.module.partition(".")[0]
        spec = importlib.util.find_spec(package)
        where = list(spec.submodule_search_locations or []) if spec else []
        raise FedloraError(
            f"cannot load {entry.name!r} from {entry.value} ({error}); package {package!r} lies in "
            f"{where or 'no folder'}: if that is a folder of yours, rename it or start elsewhere"
        ) from error
