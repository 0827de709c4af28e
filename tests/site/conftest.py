"""A device of a strict owner, and what it writes down."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.site import Site


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)
