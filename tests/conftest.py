"""Fixtures that several areas share: tiny checkpoints, and where real data may be."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Before torch: the processes of a test outnumber the cores, and whoever waits must not spin on one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from support.tiny_models import CONFIGS, random_model

from fedlora import import_path
from fedlora.server.flower.questions import in_simulation

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave whole deployments to ``make e2e`` and ``make hostile``, which ask for them."""
    for item in items if "FEDLORA_E2E" not in os.environ else ():
        for name in ("e2e", "hostile"):
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=f"takes minutes; run `make {name}`"))


@pytest.fixture(scope="module")
def prepacks_small() -> Iterator[None]:
    """Let matrices of tiny models be laid out beforehand, as those of larger ones are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedlora.split.prepacked._SMALLEST", 1)
        yield


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder of a random checkpoint for each family, as ``save_pretrained`` writes it."""
    root = tmp_path_factory.mktemp("checkpoints")
    folders = {}
    for name in CONFIGS:
        folders[name] = root / name
        random_model(name).save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real data and models; tests that need it are skipped where it is not."""
    folder = Path(os.environ.get("FEDLORA_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data at {folder}; set FEDLORA_SHARED to run this")
    return folder


@pytest.fixture(autouse=True)
def no_plugin_outlives_its_test() -> Iterator[None]:
    """Forget folders of plug-ins and what was imported from them: others have the same names."""
    yield
    folders = tuple(f"{folder}{os.sep}" for folder in import_path.plugin_folders())
    for name, module in list(sys.modules.items()):
        if folders and (getattr(module, "__file__", None) or "").startswith(folders):
            del sys.modules[name]
    import_path._PLUGINS.folders.clear()


@pytest.fixture(autouse=True)
def no_test_starts_a_ray_of_its_own() -> Iterator[None]:
    """Fail where a function of Ray's has started one in this process, which others then meet."""
    yield
    assert not in_simulation(), "Ray runs in the process of the tests"
