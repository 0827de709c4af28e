from __future__ import annotations

from pathlib import Path

import pytest
from support.private_federation import write_records


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("records") / "train.csv", 40)
