"""The folder of a training: what an interrupted one goes on from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedlora.config import scenario_to_toml
from fedlora.errors import FedloraError
from fedlora.storage import FolderKind, held_folder, replace_file
from simulations.studies.compare.reward import Losses
from simulations.train_policy.setting import Setting

_TRAINING = FolderKind(
    "training",
    ("settings.toml",),
    (
        *("settings.toml", "policy.safetensors", "warm-start.safetensors", "prices.json"),
        *("checkpoint.pt", "curves.png", "curve.jsonl", "references.json", "profile.json"),
        "rivals.csv",
    ),
)


class TrainingFolder:
    """Paths of a training's files, and its records.

    Parameters
    ----------
    path
        The folder, which is made if it does not exist.
    setting
        What is trained on.
    resume
        Whether to go on with what the folder holds.
    plain
        Whether PPO trains alone.
    overwrite
        Whether a training that is there is replaced.

    Raises
    ------
    FedloraError
        When the folder holds a training and ``resume`` is not set, one of other settings, or
        something else.
    """

    def __init__(
        self, path: Path, setting: Setting, *, resume: bool, plain: bool, overwrite: bool = False
    ) -> None:
        self.path = path
        if resume and overwrite:
            raise FedloraError("--resume and --overwrite exclude each other; give one")
        settings, kept = _describe(setting, plain=plain), path / "settings.toml"
        if resume and kept.exists():
            if kept.read_text(encoding="utf-8", errors="replace") != settings:
                raise FedloraError(
                    f"{path} holds a training with other settings; give another --out"
                )
        else:
            going_on = "go on with it by --resume, "
            _TRAINING.check_free(path, overwrite=overwrite, instead=going_on, option="--out")
            if path.is_dir():
                with held_folder(path, "a training"):
                    _TRAINING.clear(path)
        path.mkdir(parents=True, exist_ok=True)
        replace_file(kept, settings.encode())

    @property
    def policy(self) -> Path:
        """The policy as it is."""
        return self.path / "policy.safetensors"

    @property
    def warm_start(self) -> Path:
        """The policy that copies the teacher."""
        return self.path / "warm-start.safetensors"

    @property
    def checkpoint(self) -> Path:
        """All of the training between two episodes."""
        return self.path / "checkpoint.pt"

    @property
    def plot(self) -> Path:
        """The reward over the episodes."""
        return self.path / "curves.png"

    @property
    def rivals(self) -> Path:
        """How the policy stands on the table of losses beside rules without learning."""
        return self.path / "rivals.csv"

    def write_curve(self, curve: Sequence[dict[str, Any]]) -> None:
        """Replace what was noted of the episodes."""
        lines = "".join(json.dumps(entry) + "\n" for entry in curve)
        replace_file(self.path / "curve.jsonl", lines.encode())

    def read_references(self) -> dict[str, Losses]:
        """Return the references that were measured, by seed.

        Raises
        ------
        FedloraError
            When the file is damaged.
        """
        path = self.path / "references.json"
        found: dict[str, Losses] = _read_json(path, dict) if path.exists() else {}
        return found

    def write_references(self, references: dict[str, Losses]) -> None:
        """Replace the references."""
        replace_file(self.path / "references.json", json.dumps(references).encode())

    def read_profile(self) -> dict[str, list[float]]:
        """Return the losses by rank that were measured.

        Raises
        ------
        FedloraError
            When the file is damaged.
        """
        path = self.path / "profile.json"
        found: dict[str, list[float]] = _read_json(path, dict) if path.exists() else {}
        return found

    def write_profile(self, profile: dict[str, list[float]]) -> None:
        """Replace them."""
        replace_file(self.path / "profile.json", json.dumps(profile).encode())


def _read_json(path: Path, kind: type) -> Any:
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, kind):
            raise ValueError(f"it holds a {type(found).__name__}, not a {kind.__name__}")
    except ValueError as error:
        raise FedloraError(
            f"{path} is damaged ({error}); remove it, and what it held is done again"
        ) from None
    return found


def _describe(setting: Setting, *, plain: bool) -> str:
    lines = [
        f"# training seed = {setting.seed}, price = {setting.price!r}",
        f"# PPO alone = {plain}, weights = {setting.weighted}",
        f"# SNRs = {list(setting.snrs_db)}, channels = {list(setting.channels)}",
        f"# seeds = {list(setting.seeds)}",
        scenario_to_toml(setting.scenario),
    ]
    return "\n".join(lines)
