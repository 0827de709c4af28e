"""Tiny models with tokenizers, and texts with classes."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.federation import copy_model, write_records


@pytest.fixture(scope="session")
def tiny(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder of a random checkpoint with a tokenizer, for each family."""
    root = tmp_path_factory.mktemp("tiny")
    kinds = {name: name.partition("-")[0] for name in checkpoints} | {"roberta": "bert"}
    return {name: copy_model(path, root / name, kinds[name]) for name, path in checkpoints.items()}


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A csv file of 60 texts with their classes."""
    return write_records(tmp_path_factory.mktemp("records") / "train.csv", 60)
