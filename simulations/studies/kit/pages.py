"""Tables of a page that are written from committed rows, each between two marks of its own."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Tables = Mapping[str, Callable[[], list[str]]]
"""What writes the lines of each table, by the name in its mark ``<!-- table NAME -->``."""

_TABLE = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def markdown_line(*cells: str) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(cells)} |"


def markdown_head(*titles: str) -> list[str]:
    """Return the first two lines of a table."""
    return [markdown_line(*titles), markdown_line(*["---"] * len(titles))]


def rewritten(text: str, tables: Tables) -> str:
    """Return a page with its tables as the rows have them."""
    return _TABLE.sub(lambda m: m[1] + "\n".join(tables[m[2]]()) + "\n" + m[3], text)


def keep_page(page: Path, tables: Tables, options: Sequence[str]) -> None:
    """Replace the tables of a page; with ``--check`` end with status 1 where they would change."""
    text = page.read_text(encoding="utf-8")
    new = rewritten(text, tables)
    if list(options) == ["--check"]:
        sys.exit(f"{page} differs from the committed rows" if new != text else 0)
    page.write_text(new, encoding="utf-8")
