"""Models that random scenarios have in common, and short ways to examine one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from simulations.fuzz.drawing import BASE
from simulations.fuzz.examine import Outcome, quietly
from simulations.fuzz.shrink import try_case

Examine = Callable[..., Outcome]


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models and adapters are made, once."""
    return tmp_path_factory.mktemp("assets")


@pytest.fixture
def examined(assets: Path) -> Iterator[Examine]:
    """Examine a case that differs from what every case starts from, by all oracles or some."""

    def examine(
        keys: dict[str, Any] | None = None, *, by: Collection[str] | None = None, **own: Any
    ) -> Outcome:
        case = {**BASE, "seed": 0, "_model": "llama", "_rows": 12, **(keys or {})}
        return try_case(case | {f"_{name}": value for name, value in own.items()}, assets, by)

    with quietly():
        yield examine
