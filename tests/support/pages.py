"""The documentation as its readers see it: pages, sections, commands, figures."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from support.house import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_BLOCK = re.compile(r"^```\w*\n(.*?)^```|((?:^ {4}[^\n]*\n)+)", re.MULTILINE | re.DOTALL)
_PROGRAMS = r"(?:fedlora [a-z]|python -m [a-z]|make [a-z])"
_UNITS = "s|ms|dB|KiB|MiB|GiB|kB|MB|Mbit|points|times|seconds"
_FIGURE = re.compile(rf"\d[\d,]*\.\d+|\b\d[\d,]* ?%|\b\d[\d,]* (?:{_UNITS})\b")


@dataclass(frozen=True)
class Section:
    """What stands between two headings of a page.

    Attributes
    ----------
    page
        Name of the file.
    title
        The heading, without its marks.
    text
        All that is below it.
    """

    page: str
    title: str
    text: str

    @property
    def name(self) -> tuple[str, str]:
        """What tells sections apart."""
        return self.page, self.title

    @cached_property
    def commands(self) -> list[str]:
        """Commands of its code blocks and of its running text, one a line."""
        running = _BLOCK.sub("", self.text).replace("\n", " ")
        return [*shown(self.text), *re.findall(rf"`({_PROGRAMS}[^`]*)`", running)]

    @cached_property
    def figures(self) -> list[str]:
        """Numbers that could have been measured: no code, and no whole number without a unit."""
        plain = re.sub(r"`[^`]*`|\]\([^)]*\)", "", _BLOCK.sub("", self.text))
        return _FIGURE.findall(plain)

    @property
    def tables(self) -> list[list[str]]:
        """The cells of every line of its tables."""
        lines = re.findall(r"^\|(.*)\|$", self.text, re.MULTILINE)
        return [[cell.strip() for cell in line.split("|")] for line in lines]


def shown(text: str) -> list[str]:
    """Return the command lines in code blocks."""
    joined = "\n".join(fenced or indented for fenced, indented in _BLOCK.findall(text))
    lines = [line.strip() for line in re.sub(r"\\\n\s*", " ", joined).splitlines()]
    return [line for line in lines if re.match(_PROGRAMS, line)]


def sections(page: Path) -> list[Section]:
    """Return the sections of a page; a ``#`` in a code block is no heading."""
    found, title, lines, fenced = [], "", [], False
    for line in [*page.read_text(encoding="utf-8").splitlines(keepends=True), "# "]:
        fenced ^= line.startswith("```")
        if not fenced and re.match(r"#{1,3} ", line):
            if lines:
                found.append(Section(page.name, title, "".join(lines)))
            title, lines = line.lstrip("# ").strip(), []
        else:
            lines.append(line)
    return found


def words_of(command: str) -> list[str]:
    """Return a command's words, without what a comment behind it says."""
    return shlex.split(command, comments=True)
