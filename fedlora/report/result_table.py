"""A table of figures as Markdown and as LaTeX (``booktabs``), for papers and pages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fedlora.errors import printable
from fedlora.storage import replace_file

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "→": r"$\rightarrow$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
}
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|])")
_MOST = 400  # characters of a cell


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], text: int = 1) -> str:
    """Return a table as Markdown.

    Parameters
    ----------
    header, rows
        Cells; what Markdown would take for its own is escaped.
    text
        So many first columns are text; the others are figures, which stand right.
    """
    sides = [":---" if column < text else "---:" for column in range(len(header))]
    lines = [_cells(header), f"| {' | '.join(sides)} |", *(_cells(row) for row in rows)]
    return "\n".join(lines) + "\n"


def latex_table(header: Sequence[str], rows: Sequence[Sequence[str]], text: int = 1) -> str:
    """Return a table as LaTeX that needs ``booktabs``; see ``markdown_table``."""
    sides = "".join("l" if column < text else "r" for column in range(len(header)))
    lines = [rf"\begin{{tabular}}{{{sides}}}", r"\toprule", _columns(header), r"\midrule"]
    lines += [*(_columns(row) for row in rows), r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def write_tables(
    path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], text: int = 1
) -> None:
    """Write a table as ``.md`` and ``.tex`` beside each other.

    Parameters
    ----------
    path
        Without the ending.
    header, rows, text
        See ``markdown_table``.
    """
    replace_file(path.with_name(f"{path.name}.md"), markdown_table(header, rows, text).encode())
    replace_file(path.with_name(f"{path.name}.tex"), latex_table(header, rows, text).encode())


def _cells(cells: Sequence[str]) -> str:
    escaped = (_MARKDOWN.sub(r"\\\1", printable(cell.strip(), _MOST)) for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _columns(cells: Sequence[str]) -> str:
    escaped = (
        "".join(_LATEX.get(letter, letter) for letter in printable(cell.strip(), _MOST))
        for cell in cells
    )
    return " & ".join(escaped) + r" \\"
