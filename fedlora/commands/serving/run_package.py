"""What a device holds of a run to write texts with it: its ends of the model, and no block."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fedlora.config import Scenario, load_scenario, scenario_to_toml
from fedlora.errors import FedloraError
from fedlora.report import RunFolder
from fedlora.split import RUN_FILE, RUN_HEAD, RUN_SCENARIO
from fedlora.tasks import head_trains

_FORMAT: Final = 1


@dataclass(frozen=True)
class RunPackage:
    """A run, as a device needs it.

    Attributes
    ----------
    scenario
        The run's.
    adapter
        Version of the adapter that head and device are for.
    head
        Weight of the language head that was trained; None for the checkpoint's own.
    model
        Folder of the edge package or checkpoint; empty where the scenario's path says.
    """

    scenario: Scenario
    adapter: str
    head: torch.Tensor | None
    model: str = ""

    def write(self, folder: Path) -> None:
        """Write all but the model into an edge package."""
        scenario = replace(self.scenario, python_path="")
        (folder / RUN_SCENARIO).write_text(scenario_to_toml(scenario), encoding="utf-8")
        if self.head is not None:
            save_file({"weight": self.head.contiguous()}, folder / RUN_HEAD)
        about = {"format": _FORMAT, "adapter": self.adapter, "head": self.head is not None}
        (folder / RUN_FILE).write_text(json.dumps(about) + "\n", encoding="utf-8")


def read_package(folder: Path, client: str | None = None) -> RunPackage:
    """Return the run of a package that ``fedlora slice RUN`` wrote, or of a run's own folder.

    Parameters
    ----------
    folder
        The package, or the run.
    client
        Of a run with personal heads, whose head is meant.

    Raises
    ------
    FedloraError
        When the folder is neither, or damaged, or its head is on another device.
    """
    if not folder.is_dir():
        raise FedloraError(
            f"{folder} is no folder; give a run's, or a package that fedlora slice RUN wrote"
        )
    place = folder / RUN_FILE
    if not place.exists():
        return _of_run(RunFolder(folder), client)
    try:
        about = json.loads(place.read_bytes())
        if about["format"] != _FORMAT or not isinstance(about["adapter"], str):
            raise ValueError("it is of another release")
        trained = None
        if about["head"]:
            with safe_open(folder / RUN_HEAD, framework="pt") as file:
                trained = file.get_tensor("weight")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise FedloraError(
            f"{folder} holds no package that can be read ({error}); make it anew with fedlora "
            "slice RUN"
        ) from None
    # slice writes no python_path: whoever made the package names no code on this device
    scenario = replace(load_scenario(folder / RUN_SCENARIO), python_path="")
    return RunPackage(scenario, about["adapter"], trained, str(folder))


def _of_run(run: RunFolder, client: str | None) -> RunPackage:
    from fedlora.commands.run_model import chosen_head
    from fedlora.lora.export import Adapter

    scenario, head = load_scenario(run.scenario), chosen_head(run, client)
    version = Adapter.load(run.adapter).version
    own = head_trains(scenario) and scenario.head.share == "personal"
    if head is None and own:
        raise FedloraError(
            f"the run in {run.path} trained a head for each client (head.share is 'personal'), and "
            f"{'no client is named' if client is None else f'that of client {client} is not here'};"
            " name a simulated client by --client, or train with head.share=step"
        )
    return RunPackage(scenario, version, head.weight if head is not None else None)
