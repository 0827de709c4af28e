"""Which folders modules come from: libraries first, plug-ins' folders last, this folder not at all.

A user's folder may hold a ``datasets`` or a ``random.py`` of its own. Python, Ray and Flower's app
bundles all put such folders before the libraries; here they come after every other finder, also
after those of packages that are installed as editable. Bundles stay on ``sys.path``: Flower adds
and removes them there in a thread of its own. This file imports as little as can be: what it
imports may be hidden yet.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
"""The folder in which fedlora itself lies."""


class Importing:
    """Collects no garbage while large libraries are imported, as a context manager.

    They make a million objects that stay, which Python's collector looks through again and again: a
    sixth of the time that torch, transformers and PEFT take. It passes over them afterwards, too.
    """

    def __enter__(self) -> None:
        self._collects = gc.isenabled()
        gc.disable()

    def __exit__(self, *error: object) -> None:
        gc.freeze()
        if self._collects:
            gc.enable()


class _PluginFolders:
    """Finds what no other finder does in folders of plug-ins."""

    def __init__(self) -> None:
        self.folders: list[str] = []

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """See ``importlib.abc.MetaPathFinder``; parts of a package are found where that lies."""
        return None if path is not None else PathFinder.find_spec(fullname, self.folders)


class _LibrariesBeforeBundles:
    """Asks every finder for what lies outside Flower's app bundles, before any looks into one."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """See ``importlib.abc.MetaPathFinder``; parts of a package are found where that lies."""
        bundles = _bundles() if path is None else []
        if not bundles:
            return None
        others = [entry for entry in sys.path if entry not in bundles]
        for finder in sys.meta_path:
            if finder in (self, _PLUGINS) or not hasattr(finder, "find_spec"):
                continue
            places = others if finder is PathFinder else None
            spec = finder.find_spec(fullname, places, target)
            if spec is not None:
                return spec
        return None


_PLUGINS = _PluginFolders()
_LIBRARIES = _LibrariesBeforeBundles()


def plugin_folders() -> tuple[str, ...]:
    """Return the folders of plug-ins, the latest first."""
    return tuple(_PLUGINS.folders)


def add_plugin_folder(folder: str) -> None:
    """Let modules be imported from a folder, unless there are others of their names."""
    _PLUGINS.folders[:] = [folder, *(known for known in _PLUGINS.folders if known != folder)]
    if _PLUGINS not in sys.meta_path:
        sys.meta_path.append(_PLUGINS)


def working_folder() -> str:
    """Return the folder in which this process stands; empty where it is gone."""
    try:
        return os.path.realpath(os.getcwd())
    except OSError:
        return ""


def lies_in(folder: str, module: str) -> bool:
    """Tell whether a folder has a module of a dotted name; nothing is imported."""
    places: Sequence[str] | None = [folder]
    spec = None
    for part in module.split("."):
        spec = PathFinder.find_spec(part, places) if part.isidentifier() and places else None
        if spec is None:
            return False
        places = spec.submodule_search_locations
    return spec is not None and spec.origin is not None


def place_of(module: str) -> str:
    """Return where the first part of a dotted name would be imported from; empty: nowhere.

    What is built into Python comes from its executable.
    """
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):  # a module without a spec, such as __main__
        return ""
    if spec is None:
        return ""
    if spec.origin and not spec.has_location:  # "built-in" or "frozen", which is no path
        return sys.executable
    return spec.origin or next(iter(spec.submodule_search_locations or ()), "")


def is_below(place: str, folder: str) -> bool:
    """Tell whether a path leads into a folder."""
    return os.path.realpath(place).startswith(os.path.join(os.path.realpath(folder), ""))


def leave_working_folder() -> None:
    """Take the folder in which this process stands off the path; where PYTHONPATH names it, last.

    Where fedlora itself lies there, it stays.
    """
    here = working_folder()
    if here in ("", ROOT):
        return
    own = _first_own()
    front = [entry for entry in sys.path[:own] if os.path.realpath(entry) != here]
    last = [here] if here in map(os.path.realpath, _named()) else []
    sys.path[:] = [*front, *sys.path[own:], *(x for x in last if x not in sys.path[own:])]


def put_bundles_last() -> None:
    """Let what Flower's app bundles hold hide no library: Flower puts them before all others."""
    for entry in _bundles():
        add_plugin_folder(entry)
    if _LIBRARIES not in sys.meta_path:
        sys.meta_path.insert(0, _LIBRARIES)


def children_environment() -> dict[str, str]:
    """Return what keeps this process's children, too, from importing from where they stand."""
    here, path = working_folder(), _named()
    if here != ROOT and here in map(os.path.realpath, path):
        path = [entry for entry in path if os.path.realpath(entry) != here]
        path += [*sys.path[_first_own() :], here]  # after all that the interpreter has of its own
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(dict.fromkeys(path))}


def hidden_libraries() -> Iterator[tuple[str, str]]:
    """Yield the name of each library that a folder of PYTHONPATH hides, and what hides it."""
    own = sys.path[_first_own() :]
    for folder in dict.fromkeys(_named()):
        if os.path.realpath(folder) in {ROOT, *map(os.path.realpath, own)}:
            continue
        for name in sorted(_modules_in(folder)):
            library = PathFinder.find_spec(name, own)
            hiding = PathFinder.find_spec(name, [folder])
            if library is not None and hiding is not None and library.origin and hiding.origin:
                yield name, hiding.origin


def blamed_on_path(error: BaseException) -> str:
    """Return a sentence for an error of a library that PYTHONPATH hides; empty for any other."""
    import traceback

    files = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
    files.add(str(getattr(error, "path", "")))
    for name, place in hidden_libraries():
        if place in files or f"{name!r}" in str(error):
            return (
                f"{place}, to which PYTHONPATH leads, hides the library {name!r} ({error}); rename "
                "it, or unset PYTHONPATH"
            )
    return ""


def _modules_in(folder: str) -> set[str]:
    try:
        entries = os.listdir(folder)
    except OSError:
        return set()
    names = {os.path.splitext(entry)[0] for entry in entries}
    return {name for name in names if name.isidentifier()} - set(sys.builtin_module_names)


def _named() -> list[str]:
    """Return the folders that PYTHONPATH names, absolute; an empty one is a slip, and none."""
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return [os.path.abspath(entry) for entry in entries if entry]


def _first_own() -> int:
    """Return where in the path the interpreter's own folders begin."""
    own = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    packed = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    for place, entry in enumerate(sys.path):
        if os.path.realpath(entry) in own or os.path.basename(entry) == packed:
            return place
    return len(sys.path)


def _bundles() -> list[str]:
    """Return the app bundles before the interpreter's own folders; fedlora's own is none."""
    before = list(sys.path)[: _first_own()]
    return [x for x in dict.fromkeys(before) if os.path.realpath(x) != ROOT and _is_bundle(x)]


def _is_bundle(folder: str) -> bool:
    try:
        with open(os.path.join(folder, "pyproject.toml"), encoding="utf-8") as file:
            return "[tool.flwr.app" in file.read()
    except (OSError, ValueError):
        return False
