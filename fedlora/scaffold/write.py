"""Writing the folder of a new app from the templates beside this file."""

from __future__ import annotations

import importlib.util
import keyword
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from fedlora.errors import FedloraError

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_][A-Za-z0-9]+)*")


@dataclass(frozen=True)
class AppNames:
    """What a new app and its parts are called.

    Attributes
    ----------
    app
        Name of the folder and of the Flower app, such as ``my-ranks``.
    module
        Import package of the app's own code, such as ``my_ranks``.
    stem
        What its classes' names begin with, such as ``MyRanks``.
    """

    app: str
    module: str
    stem: str

    @classmethod
    def of(cls, app: str) -> AppNames:
        """Return the names that follow from the folder's.

        Raises
        ------
        FedloraError
            When the name makes no import package, or one that would hide another package.
        """
        if not _NAME.fullmatch(app):
            raise FedloraError(
                f"the app's name is {app!r}; write letters, digits and single hyphens, such as "
                "my-ranks"
            )
        module = app.replace("-", "_").lower()
        if keyword.iskeyword(module) or importlib.util.find_spec(module) is not None:
            raise FedloraError(
                f"the app's name {app!r} makes a package {module!r}, which Python has already; "
                f"take another, such as my-{app}"
            )
        return cls(app, module, "".join(part.capitalize() for part in module.split("_")))


def write_app(
    folder: Path, names: AppNames, *, channel: bool, mechanism: bool = False
) -> list[Path]:
    """Write the folder of a new app.

    Parameters
    ----------
    folder
        Where to write. It may exist, but must be empty.
    names
        What to call things.
    channel
        Whether to write a channel model, too, and to use it in the scenario.
    mechanism
        Whether to write a privacy mechanism, too, and to use it in the scenario.

    Returns
    -------
    list of Path
        The files, in reading order.

    Raises
    ------
    FedloraError
        When the folder is not free.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FedloraError(f"{folder} exists and is not an empty folder; give another name")
    environment = Environment(
        loader=PackageLoader("fedlora.scaffold", "templates"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # nothing here is HTML
    )
    written = []
    given = {"names": names, "channel": channel, "mechanism": mechanism}
    given["what"] = _what(channel=channel, mechanism=mechanism)
    for template, place in _files(names, channel=channel, mechanism=mechanism):
        path = folder / place
        text = environment.get_template(template).render(given)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise FedloraError(
                f"cannot write {path}: {error.strerror}; give a folder that you may write to"
            ) from None
        written.append(path)
    return written


def _what(*, channel: bool, mechanism: bool) -> str:
    """Return what is in the app, for its descriptions."""
    parts = ["A rank strategy"]
    parts += ["a channel model"] * channel + ["a privacy mechanism"] * mechanism
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _files(names: AppNames, *, channel: bool, mechanism: bool) -> Iterator[tuple[str, str]]:
    """Yield the templates and what they become."""
    yield "README.md.jinja", "README.md"
    yield "strategy.py.jinja", f"{names.module}/strategy.py"
    if channel:
        yield "channel.py.jinja", f"{names.module}/channel.py"
    if mechanism:
        yield "mechanism.py.jinja", f"{names.module}/mechanism.py"
    yield "init.py.jinja", f"{names.module}/__init__.py"
    yield "check.py.jinja", "check.py"
    yield "scenario.toml.jinja", "scenario.toml"
    yield "pyproject.toml.jinja", "pyproject.toml"
