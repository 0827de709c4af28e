"""The house as its import statements draw it: modules, arrows, rooms and circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("fedlora", "clients", "strategies", "simulations")


@dataclass(frozen=True)
class Arrow:
    """One import statement: a module of ours, what it names, and the line where it does."""

    source: str
    target: str
    line: int

    def __str__(self) -> str:
        return f"{path_of(self.source)}:{self.line} imports {self.target}"


@cache
def modules() -> Mapping[str, Path]:
    """Return the file of every module of the four packages."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def path_of(module: str) -> str:
    """Return a module's path in the project."""
    return str(modules()[module].relative_to(ROOT))


@cache
def arrows() -> tuple[Arrow, ...]:
    """Return what our modules import of each other, in functions and for types too."""
    return tuple(arrow for module in modules() for arrow in _arrows_of(module))


def _arrows_of(module: str) -> Iterator[Arrow]:
    known = modules()
    for node in ast.walk(ast.parse(known[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else node.module for name in inside]
        else:
            continue
        for name in dict.fromkeys(names):
            if name.partition(".")[0] in PACKAGES and name != module:
                yield Arrow(module, name, node.lineno)


def child(folder: str, module: str) -> str | None:
    """Return which file or folder just inside a folder a module belongs to; None outside it."""
    if folder and not module.startswith(folder + "."):
        return None
    depth = folder.count(".") + 2 if folder else 1
    return ".".join(module.split(".")[:depth])


def circle(edges: Mapping[str, set[str]]) -> list[str]:
    """Return the members of a circle, in the order of its arrows; empty where there is none."""
    done: set[str] = set()

    def search(node: str, way: list[str]) -> list[str]:
        if node in way:
            return way[way.index(node) :]
        if node in done:
            return []
        for other in sorted(edges.get(node, ())):
            if found := search(other, [*way, node]):
                return found
        done.add(node)
        return []

    for start in sorted(edges):
        if found := search(start, []):
            return found
    return []


def imports_per_100_lines() -> float:
    """Return how many statements import what is ours, for each 100 lines of the four packages.

    A name of another file is one hop for who reads; a room's door makes one of many.
    """
    statements = lines = 0
    for path in modules().values():
        text = path.read_text(encoding="utf-8")
        lines += text.count("\n")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "" if node.level == 0 else PACKAGES[0]]
            else:
                continue
            statements += sum(name.partition(".")[0] in PACKAGES for name in names)
    return 100 * statements / lines
