"""Reading a scenario on past its first fault."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fedlora.config import Scenario, parse_toml, scenario_from_table, with_overrides
from fedlora.errors import FedloraError
from fedlora.scenarios import find_scenario, scenario_path

_NAMED = re.compile(r"\b([a-z_]+)\.([A-Za-z0-9_-]+)")
_MOST = 50  # faults of one scenario


def read_all(name: str, assignments: Sequence[str]) -> tuple[Scenario, list[str]]:
    """Return a scenario, and all that is wrong with its keys.

    A key that is refused is left out, so that what is wrong with the others is found, too. What is
    then wrong with a key because of another that was left out is not told.

    Parameters
    ----------
    name
        As for ``find_scenario``.
    assignments
        As for ``with_overrides``.

    Raises
    ------
    FedloraError
        When there is no such file, or it is no TOML.
    """
    faults: list[str] = []
    try:
        scenario = find_scenario(name)
    except FedloraError as error:
        scenario = _without_faults(name, error, faults)
    left, out = list(assignments), set[str]()
    while left:
        try:
            return with_overrides(scenario, left), faults
        except FedloraError as error:
            if not any(_is_named(key, str(error)) for key in out):
                faults.append(str(error))
            named = [a for a in left if _key(a) in str(error)]
            named = [a for a in named if _is_named(_key(a), str(error))] or named or left
            out.add(_key(named[-1]))
            left.remove(named[-1])
    return scenario, faults


def _key(assignment: str) -> str:
    return assignment.partition("=")[0].strip()


def _is_named(key: str, message: str) -> bool:
    """Tell whether a message names a key, rather than one whose name begins so."""
    return re.search(rf"(?<![\w.]){re.escape(key)}(?![\w-]|\.\w)", message) is not None


def _without_faults(name: str, first: FedloraError, faults: list[str]) -> Scenario:
    path = scenario_path(name)
    try:
        table = parse_toml(path.read_text(encoding="utf-8"), source=str(path))
    except (OSError, UnicodeDecodeError):
        raise first from None  # which says so in a sentence
    while len(faults) < _MOST:
        try:
            return scenario_from_table(table, path.parent)
        except FedloraError as error:
            faults.append(str(error))
            if not _drop_named(table, str(error)):
                break
    return Scenario()


def _drop_named(table: dict[str, Any], message: str) -> bool:
    """Leave out the first key that a message names and the table has."""
    for section, key in _NAMED.findall(message):
        inner = table.get(section)
        if isinstance(inner, Mapping) and key in inner:
            table[section] = {name: value for name, value in inner.items() if name != key}
            return True
    word = re.match(r"(?:unknown scenario key )?([A-Za-z0-9_-]+)", message)
    if word and word[1] in table:
        del table[word[1]]
        return True
    return False
