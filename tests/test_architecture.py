"""The folders keep their arrows: who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("fedlora", "clients", "strategies", "simulations")
ALLOWED = {
    "fedlora": {"fedlora"},
    "clients": {"fedlora", "clients"},
    "strategies": {"fedlora", "strategies"},
    "simulations": set(OURS),
}
EDGE = (
    "transformers", "peft", "ray", "datasets", "flwr", "opacus", "accelerate", "pandas", "pyarrow",
    "scipy",
)  # fmt: skip


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("package", OURS)
def test_packages_import_only_what_they_may(package):
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for name in imports(path)
        if name.partition(".")[0] in OURS and name.partition(".")[0] not in ALLOWED[package]
    ]
    assert wrong == []


def heavy_after(code: str) -> list[str]:
    """Return which heavy libraries a process has imported after some code."""
    code = f"import sys; {code}; print([m for m in {EDGE!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    found: list[str] = ast.literal_eval(done.stdout.splitlines()[-1])
    return found


def test_an_edge_client_with_its_own_data_imports_no_heavy_library():
    code = (
        "import clients.device, clients.build, fedlora.tasks.classification, "
        "fedlora.tasks.causal_lm, fedlora.link.stream.client.client; "
        "from fedlora.config import PartitionConfig; "
        "from fedlora.tasks.partition import partition; "
        "partition([{}] * 9, PartitionConfig(kind='iid'), 1, '', 0)"
    )
    assert heavy_after(code) == []


def test_a_command_that_checks_a_scenario_imports_no_heavy_library():
    """A user who mistyped a name is told within a few seconds."""
    code = "import fedlora.cli, fedlora.check, fedlora.commands.run, fedlora.commands.resume"
    assert not {"transformers", "peft", "ray", "flwr", "accelerate"} & set(heavy_after(code))


def test_loading_the_client_app_imports_no_package_that_a_server_app_is_importing():
    """Flower's simulation loads both at once, in two threads, and one can find half a package."""
    code = (
        "import sys, clients.app; print([m for m in ('torch', 'fedlora.config', 'fedlora.ranks') "
    )
    code += "if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "[]"
