"""Finding a scenario by name, path or text."""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path

from fedlora.config import Scenario, load_scenario, scenario_from_toml
from fedlora.errors import FedloraError

_PACKAGE, _FOLDER = "simulations", "scenarios"


def scenario_names() -> list[str]:
    """Return the names of the shipped scenarios."""
    return sorted(path.stem for path in _shipped().glob("*.toml"))


def find_scenario(name: str) -> Scenario:
    """Return a scenario.

    Parameters
    ----------
    name
        Name of a shipped scenario, path of a TOML file, or TOML text (recognised by a line break).

    Raises
    ------
    FedloraError
        When there is no such scenario, or it is not valid.
    """
    if "\n" in name:
        return scenario_from_toml(name)
    return load_scenario(scenario_path(name))


def scenario_path(name: str) -> Path:
    """Return the file of a scenario; see ``find_scenario``.

    Raises
    ------
    FedloraError
        When no scenario has this name.
    """
    path = Path(name).expanduser()
    if path.suffix == ".toml" or "/" in name:
        return path
    known = scenario_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        mend = f"did you mean {near[0]}?" if near else f"shipped: {', '.join(known)}"
        raise FedloraError(f"no scenario is called {name!r}; {mend} (or give the path of a .toml)")
    return _shipped() / f"{name}.toml"


def describe_scenarios() -> list[tuple[str, str]]:
    """Return name and purpose (the first comment) of each shipped scenario."""
    described = []
    for name in scenario_names():
        first = (_shipped() / f"{name}.toml").read_text(encoding="utf-8").splitlines()[0]
        described.append((name, first.lstrip("# ").rstrip(".")))
    return described


def _shipped() -> Path:
    return Path(str(files(_PACKAGE))) / _FOLDER
