"""The folder of a Flower app for one run, and texts as TOML writes them."""

from __future__ import annotations

import json
from pathlib import Path

from fedlora import __version__
from fedlora.errors import FedloraError

_APP = f"""\
[project]
name = "fedlora-run"
version = "{__version__}"
description = "A fedlora run"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedlora"

[tool.flwr.app.components]
serverapp = "fedlora.server.app:app"
clientapp = "clients.app:app"

[tool.flwr.app.config]
prepared = true
"""


def write_app(folder: Path, scenario: Path, out: Path) -> None:
    """Write the app of a run whose folder whoever starts it has made and follows.

    Paths go into the app's own file, as Flower's command line takes none with a quote in it.

    Parameters
    ----------
    folder
        Folder to make.
    scenario
        Path of the scenario file.
    out
        Run folder.

    Raises
    ------
    FedloraError
        When a path has bytes that are no UTF-8.
    """
    paths = {"scenario": quoted(scenario), "out": quoted(out)}
    folder.mkdir()
    text = _APP + "".join(f"{key} = {path}\n" for key, path in paths.items())
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")


def quoted(path: Path) -> str:
    """Return a path as a TOML string.

    Raises
    ------
    FedloraError
        When it has bytes that are no UTF-8, which no TOML file can hold.
    """
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise FedloraError(
            f"the path {text!r} has bytes that are not UTF-8; choose another folder"
        ) from None
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
