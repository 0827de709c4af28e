"""One lookup for every kind of plug-in: a registered name or ``module:Class``.

Built-in and third-party plug-ins are found alike, through the entry-point groups
``fedlora.strategies``, ``.channels``, ``.codecs``, ``.families``, ``.tasks``, ``.schedulers``,
``.averages``, ``.mechanisms``, ``.predictors`` and ``.commands``.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import inspect
import tomllib
import traceback
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from fedlora.blame import is_ours, note_stranger, place_in_plugin, waiting_for
from fedlora.errors import FedloraError, printable, text_of
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
    if not isinstance(table, Mapping) or not all(isinstance(v, str) for v in table.values()):
        raise FedloraError(
            f'{file} has {table!r:.80} as project.entry-points."{group}"; write a table of names, '
            'each with "module:Class"'
        )
    return {name: EntryPoint(name, value, group) for name, value in table.items()}


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
    what = f"{key or _KEYS.get(kind) or f'{kind} plug-in'} {name!r}"
    note_stranger(found, what if ":" in name else f"{what} ({found.__module__}:{found.__name__})")
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
    what = f"making {cls.__module__}:{cls.__name__}"
    try:
        with nullcontext() if is_ours(cls) else waiting_for(what):
            return cls(*arguments, **keywords, **options)
    except FedloraError:
        raise
    except (Exception, SystemExit) as error:
        raise FedloraError(
            f"{section} is {printable(dict(options), _SHOWN)}, with which {cls.__name__} cannot be "
            f"made ({place_in_plugin(error)}); mend one of them"
        ) from error


def use_python_path(folder: str, *, needed: bool = True) -> None:
    """Make the plug-ins in a scenario's ``python_path`` importable; an empty one is none.

    What lies there hides no library; see ``fedlora.import_path``.

    Parameters
    ----------
    folder
        The folder.
    needed
        Whether it has to be there, as where a name leads into it.

    Raises
    ------
    FedloraError
        When there is no such folder, and there has to be.
    """
    if not folder or not (needed or Path(folder).is_dir()):
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
    module = _imported(module_name, f"{kind} {name!r}")
    if not hasattr(module, attribute):
        raise FedloraError(
            f"module {module_name!r} has no {attribute!r}; check {kind} {name!r} for a misspelling"
        )
    return getattr(module, attribute)


def _imported(module: str, whom: str) -> ModuleType:
    """Import a plug-in's module.

    Raises
    ------
    FedloraError
        When it is not found; when it raises, or would end the process, with its own line.
    """
    try:
        with waiting_for(f"importing {module!r} for {whom}"):
            return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise _import_fault(error, module, whom) from error


def _import_fault(error: BaseException, module: str, whom: str) -> FedloraError:
    """Return what is said of a module that cannot be imported."""
    text = text_of(error)
    own = [(place.lineno, place.filename) for place in _of_plugin(error)]
    if isinstance(error, SyntaxError):
        own.append((error.lineno, error.filename or module))
    if not own:
        return FedloraError(
            f"cannot import {module!r} for {whom} ({text}); check the name, or set python_path to "
            "the folder that holds it"
        )
    line, file = own[-1]
    return FedloraError(
        f"importing {module!r} for {whom} fails in line {line} of {file} "
        f"({type(error).__name__}: {text}); mend it"
    )


def _of_plugin(error: BaseException) -> list[traceback.FrameSummary]:
    """Return what an error passed of the code that was imported."""
    ours = (__file__, importlib.__file__, importlib.metadata.__file__)
    places = traceback.extract_tb(error.__traceback__)
    return [p for p in places if p.filename not in ours and "<frozen" not in p.filename]


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
    except (Exception, SystemExit) as error:
        raise _import_fault(error, entry.module, f"{kind} {entry.name!r}") from error


def _described(found: object) -> str:
    """Return what was found, without its address in memory."""
    if isinstance(found, type):
        return f"the class {found.__module__}.{found.__qualname__}"
    return f"a {type(found).__name__}"
