"""The verbs of other packages on the command line: entry points of ``fedlora.commands``."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedlora.errors import FedloraError, described, shown

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

_GROUP = "fedlora.commands"


def add_plugin_verbs(app: typer.Typer, verb: str = "") -> None:
    """Add the verbs of other packages.

    Parameters
    ----------
    app
        The command line with its own verbs, which nothing replaces.
    verb
        The one that is called: it alone is imported. Otherwise, for help or for a verb that is not
        known, none is: some take seconds, and what help says of them stands in their files.
    """
    commands = app.registered_commands
    commands[:] = [command for command in commands if command.callback is not _not_called]
    own = {command.name or getattr(command.callback, "__name__", "") for command in commands}
    if verb in own:
        return
    from importlib.metadata import entry_points  # a tenth of what a refusal takes

    found = {entry.name: entry for entry in entry_points(group=_GROUP)}
    for name in sorted(found.keys() - own):
        if name == verb:
            app.command(name)(_loaded(found[name]))
        elif verb not in found:
            _add_help(app, found[name])


def add_all_verbs(app: typer.Typer) -> None:
    """Add the verbs of other packages as they are called, for who looks at all of their options."""
    from importlib.metadata import entry_points

    for entry in entry_points(group=_GROUP):
        add_plugin_verbs(app, entry.name)


def _add_help(app: typer.Typer, entry: EntryPoint) -> None:
    """Add a verb of which no more is to be shown than its help."""
    text = _docstring(entry)
    if not text:
        try:
            app.command(entry.name)(_loaded(entry))
            return
        except FedloraError as error:  # which is told to who calls it
            text = f"Cannot be called: {error}"
    app.command(entry.name, help=text)(_not_called)


def _loaded(entry: EntryPoint) -> Callable[..., Any]:
    """Return a verb's function.

    Raises
    ------
    FedloraError
        When its package cannot be imported, or holds no function there.
    """
    try:
        found: object = entry.load()
    except (Exception, SystemExit) as error:
        why = described(error)
        raise FedloraError(
            f"the command {entry.name} of another package, {entry.value}, cannot be loaded "
            f"({why}); mend or uninstall that package"
        ) from error
    if not callable(found):
        raise FedloraError(
            f"the command {entry.name} of another package, {entry.value}, is {shown(found)}; let "
            "that be a function"
        )
    return found


def _not_called() -> None:
    """Stand where a verb would be."""


def _docstring(entry: EntryPoint) -> str:
    """Return a function's docstring as its file has it, or nothing where that cannot be found."""
    try:
        tree = ast.parse(_file(entry.module).read_text(encoding="utf-8"))
    except (ImportError, OSError, ValueError, SyntaxError):
        return ""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == entry.attr:
            return ast.get_docstring(node) or ""
    return ""


def _file(module: str) -> Path:
    """Return a module's file; the packages it lies in are not imported, as that may take long."""
    top, *inner = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not spec.origin:
        raise ImportError(f"no module named {top!r}")
    if not inner:
        return Path(spec.origin)
    path = Path(spec.origin).parent.joinpath(*inner)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
