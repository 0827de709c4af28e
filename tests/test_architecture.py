"""The house keeps its arrows: who may import whom, from the top floor down; rooms stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator

import pytest
from support.house import (
    PACKAGES,
    ROOT,
    arrows,
    child,
    circle,
    imports_per_100_lines,
    modules,
    path_of,
)

ALLOWED = {
    "fedlora": {"fedlora"},
    "clients": {"fedlora", "clients"},
    "strategies": {"fedlora", "strategies"},
    "simulations": set(PACKAGES),
}
FLOORS: dict[str, tuple[str, ...]] = {
    "fedlora": (
        "__main__",
        "api cli",
        "commands",
        "generation planning",
        "server",
        "preview",
        "check",
        "check_data",
        "geometry lora observe participation ranks site",
        "channel launch privacy report robust scenarios sources tasks",
        "config link split",
        "storage",
        "batch_order checks registry scaffold unicode verbs",
        "blame log_line reasons",
        "errors import_path machine plugin_finding terminal threads",
    ),
    "fedlora.server": (
        "app",
        "flower",
        "results",
        "checkpoint run",
        "training",
        "best round_record",
        "held_out",
        "evaluation",
        "steps unfinished",
        "exchange ranking",
        "air compute",
    ),
    "fedlora.privacy": (
        "plan",
        "ledger statement",
        "mechanisms",
        "accounting noise_propagation",
    ),
    "fedlora.link": (
        "stream",
        "check local",
        "base",
        "rotated",
        "distinct replies requests",
        "ends tokens entropy",
        "huffman rotation",
        "codec message",
        "frame handshake levels messages reasons wide_levels",
    ),
    "clients": (
        "app",
        "device gateway",
        "edge_host generation own_records",
        "simulated_data",
        "build state_store",
        "edge_client",
        "evaluation",
        "cut_layer",
        "head held_out_texts release",
        "edge_model kept_tokens owner process reports representations sent_rows text_statistics",
    ),
    "simulations": (
        "csi train_policy",
        "audit bench fuzz studies",
        "examples rehearsal",
        "in_process noisy_activations options quickstart scenarios shapes traces unsplit",
        "progress refusals",
    ),
}
"""What is in a folder, from the top floor to the bottom: each imports lower floors alone."""

MOVED = {
    "fedlora.channel.checks": "fedlora.checks",
    "fedlora.channel.config": "fedlora.config.channel",
    "fedlora.robust.average": "fedlora.robust.base or fedlora.robust.aggregation",
}
"""Old paths that stay for plug-ins until release 0.3, and what our own files import instead."""

FILE_LINES, FUNCTION_LINES, FOLDER_FILES = 400, 90, 24
IMPORTS_PER_100_LINES = 3.1
EDGE = (
    "transformers", "peft", "ray", "datasets", "flwr", "opacus", "accelerate", "pandas", "pyarrow",
    "scipy",
)  # fmt: skip


def report(wrong: Iterator[str]) -> None:
    found = sorted(set(wrong))
    assert not found, "\n".join(["the house does not hold:", *found])


def test_packages_import_only_what_they_may():
    report(
        f"{arrow}; {package} imports {', '.join(sorted(ALLOWED[package]))} alone"
        for arrow in arrows()
        if arrow.target.partition(".")[0] not in ALLOWED[package := arrow.source.partition(".")[0]]
    )


def floor_of(folder: str, module: str) -> int | None:
    """Return the floor of what a module belongs to in a folder, 0 at the bottom."""
    name = module.removeprefix(folder + ".").partition(".")[0]
    for number, names in enumerate(reversed(FLOORS[folder])):
        if name in names.split():
            return number
    return None


@pytest.mark.parametrize("folder", FLOORS)
def test_every_file_has_a_floor_and_imports_lower_floors_alone(folder):
    def wrong() -> Iterator[str]:
        for module in modules():
            if module.startswith(folder + ".") and floor_of(folder, module) is None:
                yield f"{path_of(module)} is on no floor of {folder}; add it to FLOORS"
        for arrow in arrows():
            ends = child(folder, arrow.source), child(folder, arrow.target)
            if None in ends or ends[0] == ends[1] or folder in ends:
                continue
            own, other = floor_of(folder, arrow.source), floor_of(folder, arrow.target)
            if own is not None and other is not None and own <= other:
                yield (
                    f"{arrow}, which is {'beside' if own == other else 'above'} it in {folder}; "
                    "move what both need to a lower floor"
                )

    report(wrong())


def test_no_imports_run_in_a_circle_between_files():
    edges: dict[str, set[str]] = defaultdict(set)
    for arrow in arrows():
        edges[arrow.source].add(arrow.target)
    assert not (found := circle(edges)), f"{' -> '.join(found)}; move what two of them need"


def test_no_imports_run_in_a_circle_between_what_lies_in_one_folder():
    folders = {"", *(module.rpartition(".")[0] for module in modules())}
    for folder in folders:
        edges: dict[str, set[str]] = defaultdict(set)
        for arrow in arrows():
            a, b = child(folder, arrow.source), child(folder, arrow.target)
            if a and b and a != b:
                edges[a].add(b)
        assert not (found := circle(edges)), f"{' -> '.join(found)}; move what two of them need"


def test_our_own_files_import_nothing_by_its_old_path():
    report(
        f"{arrow}; it is {MOVED[arrow.target]} now" for arrow in arrows() if arrow.target in MOVED
    )


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_gives_what_the_new_one_has_and_says_where_that_is(old):
    code = f"import {old} as old; print(*(getattr(old, n).__module__ for n in old.__all__))"
    command = [sys.executable, "-W", "always", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(done.stdout.split()) <= set(MOVED[old].split(" or "))
    assert f"{old} is now {MOVED[old].split(' or ')[0]}" in done.stderr


def test_files_functions_and_folders_stay_small():
    def wrong() -> Iterator[str]:
        sizes: dict[str, int] = defaultdict(int)
        for path in modules().values():
            name, text = path.relative_to(ROOT), path.read_text(encoding="utf-8")
            sizes[str(name.parent)] += path.name != "__init__.py"
            if (lines := text.count("\n")) > FILE_LINES:
                yield f"{name} has {lines} lines, of {FILE_LINES}; divide it by its concepts"
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    size = (node.end_lineno or 0) - node.lineno + 1
                    if size > FUNCTION_LINES:
                        yield f"{name}:{node.lineno} {node.name} has {size} lines; divide it"
        for folder, files in sizes.items():
            if files > FOLDER_FILES:
                yield f"{folder} has {files} files, of {FOLDER_FILES}; divide it into rooms"

    report(wrong())


def test_who_reads_a_file_is_seldom_sent_to_another():
    found = imports_per_100_lines()
    assert found <= IMPORTS_PER_100_LINES, (
        f"{found:.3f} imports of our own for each 100 lines, of {IMPORTS_PER_100_LINES}; import "
        "by a room's door, or put into one file what is one concept"
    )


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


def test_a_device_that_writes_texts_with_a_server_imports_no_heavy_library():
    code = "import clients.generation.command, clients.generation.remote, clients.generation.show"
    assert heavy_after(code) == []


def test_a_command_that_checks_a_scenario_imports_no_heavy_library():
    """A user who mistyped a name is told within a few seconds."""
    code = "import fedlora.cli, fedlora.check, fedlora.commands.run, fedlora.commands.resume"
    assert not {"transformers", "peft", "ray", "flwr", "accelerate"} & set(heavy_after(code))


def test_a_mistyped_key_is_refused_before_anything_slow_is_imported():
    slow = ("torch", "numpy", "matplotlib", "rich", "psutil", "http.client", "importlib.metadata")
    code = "import sys; sys.argv = ['fedlora', 'run', 'quickstart', '--set', 'train.roundz=3']\n"
    code += "import fedlora.cli\ntry:\n    fedlora.cli.main()\nexcept SystemExit as end:\n"
    code += f"    print(end.code, [m for m in {slow} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "2 []"
    assert "train.roundz" in done.stderr


def test_a_quickstart_is_checked_and_its_clients_are_built_without_slow_libraries():
    """Each of them takes a second in the command and in every process with clients."""
    slow = ("datasets", "flwr_datasets", "pyarrow", "scipy", "sympy", "torch._dynamo")
    code = (
        "import sys; from clients.build import load_parts; from clients.owner import OwnerTerms; "
        "from clients.simulated_data import SimulatedData; from fedlora.check import check_scenario"
        "; from fedlora.scenarios import find_scenario; s = find_scenario('quickstart'); "
        "check_scenario(s); data = SimulatedData(s, 8); parts = load_parts(s, data.labels); "
        f"data.build(parts, 0, terms=OwnerTerms()); print([m for m in {slow} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "[]"


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
