"""``fedlora keys``: every key of scenarios or nodes, its default and what it means."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedlora.config import NodeKeys, Scenario, dashed, shown_default
from fedlora.errors import FedloraError


@dataclass(frozen=True)
class Key:
    """One scenario key.

    Attributes
    ----------
    name
        As in ``--set``.
    default
        As TOML would have it.
    meaning
        From the docstring.
    """

    name: str
    default: str
    meaning: str


def scenario_keys(section: Any = None, prefix: str = "") -> Iterator[Key]:
    """Yield the keys of a section and of the sections in it."""
    section = Scenario() if section is None else section
    meanings = _attributes(type(section))
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from scenario_keys(value, f"{prefix}{field.name}.")
        else:
            yield Key(prefix + field.name, _shown(value), meanings.get(field.name, ""))


def node_keys() -> Iterator[Key]:
    """Yield the keys of a device's node configuration."""
    meanings = _attributes(NodeKeys)
    for field in dataclasses.fields(NodeKeys):
        yield Key(dashed(field.name), shown_default(field.name), meanings.get(field.name, ""))


def print_keys(part: str, *, node: bool = False) -> None:
    """Print the keys whose name contains ``part``.

    Parameters
    ----------
    part
        Part of a name; empty for all.
    node
        Whether keys of the node configuration are meant, rather than those of scenarios.

    Raises
    ------
    FedloraError
        When there is none.
    """
    known = list(node_keys() if node else scenario_keys())
    found = [key for key in known if part in key.name]
    if not found:
        names = [key.name for key in known]
        ends = {name.rpartition(".")[2]: name for name in names}
        near = difflib.get_close_matches(part, [*names, *ends], n=1)
        mend = f"did you mean {ends.get(near[0], near[0])}?" if near else "leave it out to see all"
        raise FedloraError(f"no {'node' if node else 'scenario'} key contains {part!r}; {mend}")
    table = Table(show_lines=True)
    for heading in ("key", "default", "meaning"):
        table.add_column(heading, overflow="fold")
    for meaning, keys in itertools.groupby(found, lambda key: key.meaning):  # told once
        same = list(keys)
        listed = "\n".join(key.name for key in same)
        defaults = "\n".join(key.default for key in same)
        table.add_row(*map(Text, (listed, defaults, meaning)))
    Console().print(table)


def _attributes(cls: type) -> dict[str, str]:
    """Read the Attributes section of a NumPy docstring: a name line, then an indented text."""
    text = inspect.getdoc(cls) or ""
    _, found, body = text.partition("Attributes\n----------\n")
    meanings: dict[str, str] = {}
    if not found:
        return meanings
    for block in re.split(r"\n(?=\S)", body):
        names, _, meaning = block.partition("\n")
        for name in names.split(","):
            meanings[name.strip()] = " ".join(meaning.split())
    return meanings


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return repr(value)
    return str(list(value) if isinstance(value, tuple) else value)
