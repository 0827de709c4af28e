"""The smallest scenario that shows a fault."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simulations.fuzz.case import write_case
from simulations.fuzz.drawing import BASE
from simulations.fuzz.examine import Outcome, examine

Case = Mapping[str, Any]


def try_case(case: Case, assets: Path, only: Collection[str] | None = None) -> Outcome:
    """Write a case to a folder that is removed again, and examine it; see ``examine``."""
    with _scratch() as place:
        return examine(write_case(case, place / "case", assets), place / "work", only)


SHRINK_S = 900.0


def shrink(case: Case, seen: Outcome, assets: Path, *, limit_s: float = SHRINK_S) -> dict[str, Any]:
    """Return the smallest case with the same signature, one key after the other.

    Parameters
    ----------
    case, seen
        A case with faults, and its outcome.
    assets
        See ``write_case``.
    limit_s
        After so many seconds the smallest so far is it.
    """
    deadline = time.monotonic() + limit_s
    small, changed = dict(case), True
    oracles = [name for name, text in seen.verdicts.items() if text]
    while changed:
        changed = False
        for other in _smaller(small):
            if time.monotonic() > deadline:
                return small
            found = try_case(other, assets, None if seen.kind == "crash" else oracles)
            if found.signature == seen.signature:
                small, changed = other, True
                break
    return small


def _smaller(case: Case) -> Iterator[dict[str, Any]]:
    """Yield cases with one key less, or at what every case starts from."""
    for key in sorted(case, key=lambda own: own in BASE):
        without = {name: value for name, value in case.items() if name != key}
        if key not in BASE:
            yield without
        elif case[key] != BASE[key]:
            yield {**without, key: BASE[key]}


@contextmanager
def _scratch() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="fedlora-fuzz-"))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
