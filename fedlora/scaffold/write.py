"""Writing the folder of a new app from the templates beside this file."""

from __future__ import annotations

import importlib.util
import keyword
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
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


@dataclass(frozen=True)
class Part:
    """A plug-in that an app may have beside its strategy.

    Attributes
    ----------
    what
        What it is, as in a description.
    change
        What is changed in its file.
    more
        Further files, template and place.
    """

    what: str
    change: str
    more: tuple[tuple[str, str], ...] = ()


PARTS = {
    "channel": Part("a channel model", "the link of each client in each fading block"),
    "scheduler": Part("a scheduler", "who takes part in a round, and the bandwidth of each"),
    "predictor": Part("a channel predictor", "what a link will be, from what was measured of it"),
    "mechanism": Part(
        "a privacy mechanism",
        "what leaves a client of its gradients, with what noise, and what that costs",
    ),
    "codec": Part("a codec", "how rows that cross the cut are written and read"),
    "task": Part("a task", "what a record is, what makes vectors of it, what is learnt"),
    "average": Part("a robust average", "one gradient out of the clients', some of them hostile"),
    "family": Part(
        "a model family",
        "where the parts of a `gpt_neox` model are",
        more=(("model.py.jinja", "model.py"),),
    ),
}
"""The kinds, by the option of ``fedlora new`` that asks for one."""


def write_app(folder: Path, names: AppNames, parts: Collection[str] = ()) -> list[Path]:
    """Write the folder of a new app.

    Parameters
    ----------
    folder
        Where to write. It may exist, but must be empty.
    names
        What to call things.
    parts
        Which of ``PARTS`` to write beside the strategy, and to use in the scenario.

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
    chosen = {name: part for name, part in PARTS.items() if name in parts}
    whats = ["A rank strategy", *(part.what for part in chosen.values())]
    given = {
        "names": names,
        "parts": chosen,
        "trying": _listed(["strategy", *(f"the {name}" for name in chosen)]),
        "what": _listed(whats),
        "used": _listed(["the ranks", *(p.what.replace("a ", "the ", 1) for p in chosen.values())]),
        "model": (folder / "model").as_posix(),
    }
    written = []
    for template, place in _files(names, chosen):
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


def _listed(words: Sequence[str]) -> str:
    """Return words as a sentence lists them."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _files(names: AppNames, parts: Mapping[str, Part]) -> Iterator[tuple[str, str]]:
    """Yield the templates and what they become."""
    yield "README.md.jinja", "README.md"
    yield "strategy.py.jinja", f"{names.module}/strategy.py"
    for name, part in parts.items():
        yield f"{name}.py.jinja", f"{names.module}/{name}.py"
        yield from part.more
    yield "init.py.jinja", f"{names.module}/__init__.py"
    yield "check.py.jinja", "check.py"
    yield "scenario.toml.jinja", "scenario.toml"
    yield "pyproject.toml.jinja", "pyproject.toml"
