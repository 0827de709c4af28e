"""No module of the user's hides a library, and a plug-in is found where the user stands."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from flwr.supercore.object_ref import validate
from support.patience import patient

from fedlora.commands.doctor import _shadowed
from fedlora.errors import FedloraError
from fedlora.import_path import children_environment, plugin_folders, put_bundles_last
from fedlora.ranks import RankStrategy
from fedlora.registry import resolve, use_python_path

ROOT = Path(__file__).parents[2]
NAMES = (
    *("datasets", "tokenizers", "torch", "numpy", "flwr", "ray", "psutil", "rich", "typer"),
    *("random", "json", "email", "select", "time", "clients", "strategies", "simulations"),
)
PLUGIN = (
    "from strategies.uniform import Uniform\n"
    "from helper import R\n"
    "class Mine(Uniform):\n"
    "    def __init__(self):\n"
    "        super().__init__(R)\n"
)


def hide_all(folder: Path) -> Path:
    """Put a package or module of each library's name into a folder, and a plug-in."""
    folder.mkdir(exist_ok=True)
    for place, name in enumerate(NAMES):
        text = f"raise RuntimeError('{name} of the user')"
        if place % 2:
            (folder / f"{name}.py").write_text(text)
        else:
            (folder / name).mkdir()
            (folder / name / "__init__.py").write_text(text)
    (folder / "helper.py").write_text("R = 3\n")
    (folder / "mine.py").write_text(PLUGIN)
    return folder


def call(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(120),
    )


AS_MODULE = ("-m", "fedlora")
AS_SCRIPT = ("-c", "import sys; del sys.path[0]; from fedlora.__main__ import main; main()")


@pytest.mark.parametrize(
    ("how", "path"),
    [
        (AS_MODULE, "{root}"),
        pytest.param(AS_SCRIPT, ":{root}:", marks=pytest.mark.slow),
        (AS_SCRIPT, "{here}:{root}"),
    ],
)
def test_nothing_in_the_working_folder_hides_a_library(tmp_path, scenario, how, path):
    here = hide_all(tmp_path / "here")
    command = ["run", str(scenario), "--set", "ranks.strategy=mine:Mine", "--set", "lora.r_max=2"]
    said = call(here, *how, *command, PYTHONPATH=path.format(root=ROOT, here=here))
    # All libraries that a check needs were imported, and the plug-in: it is the last to be asked.
    assert said.stderr.endswith(": rank 3 exceeds r_max 2; lower it or set lora.r_max\n")
    assert said.stderr.count("\n") == 1
    assert said.returncode == 2


def test_a_child_process_of_a_command_imports_nothing_from_where_it_stands(tmp_path, monkeypatch):
    here = hide_all(tmp_path / "here")
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(ROOT)]))
    code = "import random, datasets; print(random.__file__, datasets.__file__)"
    said = call(here, "-c", code, **children_environment())
    assert said.returncode == 0, said.stderr
    assert str(here) not in said.stdout


def test_a_library_that_pythonpath_hides_is_named(tmp_path, scenario, monkeypatch):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("")
    away = tmp_path / "away"
    away.mkdir()
    data = scenario.parent / "saved"
    save = "import datasets, sys; datasets.Dataset.from_dict({'text': ['a']}).save_to_disk"
    assert call(away, "-c", f"{save}(sys.argv[1])", str(data)).returncode == 0
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [*AS_MODULE, "run", str(scenario), "--set", f"data.train={data}"]
    said = call(away, *command, PYTHONPATH=path)
    assert said.returncode == 2
    assert said.stderr.count("\n") == 1
    assert f"{tmp_path}/datasets/__init__.py, to which PYTHONPATH leads, hides" in said.stderr
    monkeypatch.setenv("PYTHONPATH", path)
    mends = {finding.what: finding.mend for finding in _shadowed() if finding.mend}
    assert list(mends) == ["library datasets"]
    assert f"rename {tmp_path}/datasets/__init__.py" in mends["library datasets"]


def test_a_plug_in_is_found_where_the_user_stands_and_only_once_it_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(hide_all(tmp_path / "here"))
    assert resolve("strategies", "uniform", RankStrategy).__module__ == "strategies.uniform"
    assert plugin_folders() == ()
    found = resolve("strategies", "mine:Mine", RankStrategy)
    assert found().r == 3
    assert plugin_folders() == (str(tmp_path / "here"),)


def test_python_path_comes_before_the_working_folder_and_after_all_libraries(tmp_path, monkeypatch):
    far = hide_all(tmp_path / "far")
    (far / "mine.py").write_text(PLUGIN.replace("helper", "far_helper"))
    (far / "far_helper.py").write_text("R = 5\n")
    monkeypatch.chdir(hide_all(tmp_path / "here"))
    use_python_path(str(far))
    assert resolve("strategies", "mine:Mine", RankStrategy)().r == 5
    import email

    assert "of the user" not in Path(email.__file__).read_text()


@pytest.mark.parametrize("name", ["datasets:Mine", "json:Mine", "clients:Mine", "time:Mine"])
def test_a_plug_in_with_a_librarys_name_is_refused_and_both_are_named(tmp_path, monkeypatch, name):
    here = hide_all(tmp_path / "here")
    monkeypatch.chdir(here)
    with pytest.raises(FedloraError, match=r"is taken by .*; rename yours") as refused:
        resolve("strategies", name, RankStrategy)
    assert f"lies in {here}" in str(refused.value)


def test_what_a_bundle_of_flowers_holds_comes_after_all_libraries(tmp_path, monkeypatch):
    bundle = hide_all(tmp_path / "bundle")
    (bundle / "pyproject.toml").write_text("[tool.flwr.app]\npublisher = 'me'\n")
    monkeypatch.setattr(sys, "path", [str(bundle), *sys.path])
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    put_bundles_last()
    for name in ("datasets", "tokenizers", "strategies", "random"):
        assert not importlib.util.find_spec(name).origin.startswith(str(tmp_path))
    assert resolve("strategies", "mine:Mine", RankStrategy)().r == 3


def test_flower_may_put_its_bundle_first_again_at_any_moment(tmp_path, monkeypatch):
    """It does so in the thread of its clients, while the server's loads its libraries."""
    bundle = hide_all(tmp_path / "bundle")
    (bundle / "pyproject.toml").write_text("[tool.flwr.app]\npublisher = 'me'\n")
    (bundle / "client.py").write_text("app = None\n")
    monkeypatch.setattr(sys, "path", [str(bundle), *sys.path])
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    broken: list[object] = []

    def flower() -> None:
        for _ in range(200):
            try:
                valid, said = validate("client:app", project_dir=bundle)
            except ValueError as error:
                valid, said = False, str(error)
            if not valid:
                broken.append(said)

    clients = threading.Thread(target=flower)
    clients.start()
    while clients.is_alive():
        put_bundles_last()
        for name in ("datasets", "tokenizers", "strategies", "random"):
            origin = importlib.util.find_spec(name).origin
            if origin.startswith(str(tmp_path)):
                broken.append(origin)
    clients.join()
    assert not broken


def test_a_working_folder_that_is_gone_is_told(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    code = f"import os; os.rmdir({str(gone)!r}); from fedlora.__main__ import main; main()"
    said = call(gone, "-c", code, "scenarios")
    assert said.returncode == 2
    assert said.stderr == "fedlora: the folder in which you stand is gone; cd to one that exists\n"
