"""One lookup for every kind of plug-in: a registered name or ``module:Class``.

Built-in and third-party plug-ins are found alike, through the entry-point groups
``fedlora.strategies``, ``.channels``, ``.codecs``, ``.families``, ``.tasks``, ``.schedulers``,
``.averages``, ``.mechanisms``, ``.predictors`` and ``.commands``.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import tomllib
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from fedlora.errors import FedloraError, described, printable
from fedlora.import_path import (
    add_plugin_folder,
    is_below,
    lies_in,
    place_of,
    plugin_folders,
    working_folder,
)

_SHOWN = 80  # characters of a name or of options that a sentence quotes


def _registered(kind: str) -> Mapping[str, EntryPoint]:
    """Return the entry points of one kind by name; what is installed comes first."""
    found: dict[str, EntryPoint] = {}
    for folder in plugin_folders():
        found = {**_in_folder(kind, folder), **found}
    return {**found, **_installed(kind)}


@cache
def _installed(kind: str) -> Mapping[str, EntryPoint]:
    """Return those of installed packages; every scan reads the metadata of all of them."""
    return {entry.name: entry for entry in entry_points(group=f"fedlora.{kind}")}


@cache
def _in_folder(kind: str, folder: str) -> Mapping[str, EntryPoint]:
    """Return those that a folder of plug-ins would have if it were installed.

    Raises
    ------
    FedloraError
        When its ``pyproject.toml`` cannot be read.
    """
    group, file = f"fedlora.{kind}", Path(folder) / "pyproject.toml"
    try:
        table: Any = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError:
        return {}
    except ValueError as error:
        raise FedloraError(f"cannot read {file} ({error}); mend it") from None
    for key in ("project", "entry-points", group):
        table = table.get(key, {}) if isinstance(table, Mapping) else {}
    return {name: EntryPoint(name, value, group) for name, value in dict(table).items()}


def names(kind: str) -> list[str]:
    """Return the registered names of one kind of plug-in, sorted."""
    return sorted(_registered(kind))


_KEYS = {
    "averages": "robust.average",
    "channels": "channel.model",
    "mechanisms": "privacy.release",
    "predictors": "channel.predict",
    "schedulers": "channel.schedule.scheduler",
    "strategies": "ranks.strategy",
    "tasks": "task.kind",
}
"""Which key of a scenario names the plug-in of a kind."""


def resolve(kind: str, name: str, base: type, besides: Collection[str] = (), key: str = "") -> Any:
    """Return the class that a name stands for.

    Parameters
    ----------
    kind
        Plug-in kind: the part of the entry-point group after ``fedlora.``.
    name
        A registered name, or ``module:Class`` of what is installed, lies in a folder that
        ``use_python_path`` was given, or where the user stands.
    base
        Class that plug-ins of this kind inherit from.
    besides
        Names that need no plug-in, for the error message.
    key
        The scenario's key that names it, where its kind does not say which.

    Raises
    ------
    FedloraError
        When the name is unknown, its module cannot be imported, or it is no such class or an
        unfinished one.
    """
    if ":" in name:
        found = _load_path(kind, name)
    elif name in _registered(kind):
        found = _load_entry(kind, _registered(kind)[name])
    else:
        known = sorted({*besides, *names(kind)})
        near = difflib.get_close_matches(name, known, n=1)
        key = key or _KEYS.get(kind, "")
        told = f"{key}: " if key else ""
        raise FedloraError(
            f"{told}no {kind} plug-in is called {printable(repr(name), _SHOWN)}; "
            + (f"did you mean {near[0]}? " if near else "")
            + f"choose one of {', '.join(known)}, or give module:Class"
        )
    if not (isinstance(found, type) and issubclass(found, base)):
        raise FedloraError(
            f"{kind} plug-in {name!r} is {_described(found)}; name a class that inherits from "
            f"{base.__module__}.{base.__name__}"
        )
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        raise FedloraError(
            f"{kind} plug-in {name!r} lacks {', '.join(missing)}; write these methods"
        )
    return found


@lru_cache(maxsize=256)
def signature_of(cls: type) -> inspect.Signature:
    """Return what a class takes, which Python finds out anew at every call."""
    return inspect.signature(cls)


def make(
    cls: Any, section: str, options: Mapping[str, Any], *arguments: Any, **keywords: Any
) -> Any:
    """Return a plug-in made with a scenario's options.

    Parameters
    ----------
    cls
        Its class.
    section
        The scenario's key of the options, such as ``ranks.options``.
    options
        Passed as keywords.
    arguments, keywords
        What a plug-in of this kind is given besides.

    Raises
    ------
    FedloraError
        When an option is unknown, one is missing, or the class does not take their values.
    """
    signature = signature_of(cls)
    given = signature.bind_partial(*arguments, **keywords).arguments
    named = {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and name not in given
    }
    known = f"known options: {', '.join(named) or 'none'}"
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for name in options:
        if name not in named and not takes_any:
            text = printable(repr(name), _SHOWN)
            raise FedloraError(f"{section} has no option {text}; {known}")
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in options:
            raise FedloraError(f"{section} is missing a required option {name!r}; {known}")
    try:
        return cls(*arguments, **keywords, **options)
    except FedloraError:
        raise
    except Exception as error:
        raise FedloraError(
            f"{section} is {printable(dict(options), _SHOWN)}, with which {cls.__name__} cannot be "
            f"made ({described(error)}); mend one of them"
        ) from error


@contextmanager
def blaming(what: str, cls: type) -> Iterator[None]:
    """Turn whatever a stranger's plug-in raises into a ``FedloraError`` that names it.

    Parameters
    ----------
    what
        The plug-in, as the beginning of a sentence.
    cls
        Its class; a fault of one of ours keeps its traceback.

    Raises
    ------
    FedloraError
        In place of any other exception.
    """
    try:
        yield
    except FedloraError:
        raise
    except Exception as error:
        if cls.__module__.startswith("fedlora."):
            raise
        raise FedloraError(f"{what} fails ({described(error)}); mend it") from error


def use_python_path(folder: str) -> None:
    """Make the plug-ins in a scenario's ``python_path`` importable; an empty one is none.

    What lies there hides no library; see ``fedlora.import_path``.

    Raises
    ------
    FedloraError
        When there is no such folder.
    """
    if not folder:
        return
    if not Path(folder).is_dir():
        raise FedloraError(
            f"python_path is {folder!r}, but there is no such folder; name the one that holds the "
            "plug-in's module"
        )
    add_plugin_folder(folder)


def _load_path(kind: str, name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    _make_findable(kind, name, module_name)
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError, ValueError, TypeError) as error:
        raise FedloraError(
            f"cannot import {module_name!r} for {kind} {name!r} ({error}); check the name, or set "
            "python_path to the folder that holds it"
        ) from None
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise FedloraError(
            f"importing {module_name!r} for {kind} {name!r} fails in line {place.lineno} of "
            f"{place.filename} ({type(error).__name__}: {error}); mend it"
        ) from error
    if not hasattr(module, attribute):
        raise FedloraError(
            f"module {module_name!r} has no {attribute!r}; check {kind} {name!r} for a misspelling"
        )
    return getattr(module, attribute)


def _make_findable(kind: str, name: str, module: str) -> None:
    """Let a module be imported that lies in a folder of plug-ins, or where the user stands.

    Raises
    ------
    FedloraError
        When another of that name comes before it.
    """
    for folder in filter(None, dict.fromkeys([*plugin_folders(), working_folder()])):
        if not lies_in(folder, module):
            continue
        place = place_of(module)
        if not place:
            add_plugin_folder(folder)
        elif not is_below(place, folder):
            raise FedloraError(
                f"module {module!r} of {kind} {name!r} lies in {folder}, but the name "
                f"{module.partition('.')[0]!r} is taken by {place}; rename yours"
            )
        return


def _load_entry(kind: str, entry: EntryPoint) -> Any:
    if entry.name not in _installed(kind):
        return _load_path(kind, str(entry.value))
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


def _described(found: object) -> str:
    """Return what was found, without its address in memory."""
    if isinstance(found, type):
        return f"the class {found.__module__}.{found.__qualname__}"
    return f"a {type(found).__name__}"
