"""Finding a scenario by name, path or text."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch

from fedlora.channel.channel import build_channel
from fedlora.channel.schedule.base import build_scheduler
from fedlora.config import Scenario, load_scenario, scenario_from_toml
from fedlora.errors import FedloraError
from fedlora.link.codec import create_codec
from fedlora.lora.targets import choose_targets
from fedlora.privacy.plan import check_release, label_epsilon, upload_plan
from fedlora.ranks.strategy import create_strategy
from fedlora.split.blocks import Cut
from fedlora.split.checkpoint import Checkpoint
from fedlora.split.edge import language_head
from fedlora.split.family import find_family
from fedlora.split.resolve import model_folder
from fedlora.tasks.base import check_length, head_trains, task_class
from fedlora.tasks.data import load_records, require_column
from fedlora.tasks.partition import partition
from fedlora.tasks.tokenizer import load_tokenizer

_PACKAGE, _FOLDER = "simulations", "scenarios"


def scenario_names() -> list[str]:
    """Return the names of the shipped scenarios."""
    return sorted(path.stem for path in _shipped().glob("*.toml"))


def find_scenario(name: str) -> Scenario:
    """Return a scenario.

    Parameters
    ----------
    name
        Name of a shipped scenario, path of a TOML file, or TOML text (recognised by a line break).

    Raises
    ------
    FedloraError
        When there is no such scenario, or it is not valid.
    """
    if "\n" in name:
        return scenario_from_toml(name)
    path = Path(name).expanduser()
    if path.suffix == ".toml" or "/" in name:
        return load_scenario(path)
    known = scenario_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        mend = f"did you mean {near[0]}?" if near else f"shipped: {', '.join(known)}"
        raise FedloraError(f"no scenario is called {name!r}; {mend} (or give the path of a .toml)")
    return load_scenario(_shipped() / f"{name}.toml")


def describe_scenarios() -> list[tuple[str, str]]:
    """Return name and purpose (the first comment) of each shipped scenario."""
    described = []
    for name in scenario_names():
        first = (_shipped() / f"{name}.toml").read_text(encoding="utf-8").splitlines()[0]
        described.append((name, first.lstrip("# ").rstrip(".")))
    return described


def check_scenario(scenario: Scenario) -> None:
    """Refuse at once what a simulation would only fail at after Flower has started.

    Raises
    ------
    FedloraError
        When a path, a plug-in name, the cut, the adapters' targets or the data cannot be used.
    """
    checkpoint = Checkpoint(model_folder(scenario.model.path))
    find_family(checkpoint)
    Cut.of(checkpoint, scenario.model.client_front, scenario.model.client_back)
    task = task_class(scenario.task.kind)
    check_length(scenario.task, checkpoint)
    if not task.pooled:
        language_head(checkpoint, torch.float32)
    load_tokenizer(checkpoint.folder)
    for codec in (scenario.link.activation, scenario.link.representation, scenario.link.gradient):
        create_codec(codec)
    if scenario.python_path:
        if not Path(scenario.python_path).is_dir():
            raise FedloraError(
                f"python_path is {scenario.python_path!r}, but there is no such folder; name the "
                "one that holds the plug-in's module"
            )
        sys.path.insert(0, scenario.python_path)
    create_strategy(scenario.ranks, scenario.seed)
    if build_channel(scenario.channel, scenario.seed).measured:
        raise FedloraError(
            f"channel.model is {scenario.channel.model!r}, which is what devices measure; choose a "
            "simulated model for a simulation, such as rayleigh, or replay a recording with trace"
        )
    build_scheduler(scenario.channel.schedule, rounds=scenario.train.rounds, seed=scenario.seed)
    choose_targets(_linear(checkpoint), scenario.lora.targets)
    _check_data(scenario, pooled=task.pooled)


def _linear(checkpoint: Checkpoint) -> list[str]:
    """Return the names of the blocks' matrices, which belong to linear modules."""
    inside = f".{find_family(checkpoint).layers}."
    return [
        name.removesuffix(".weight")
        for name, entry in checkpoint.entries.items()
        if inside in f".{name}" and name.endswith(".weight") and len(entry.shape) == 2
    ]


def _check_data(scenario: Scenario, *, pooled: bool) -> None:
    """Read the data as the clients will; what the hub holds is left to them."""
    data, label = scenario.data, scenario.data.label if pooled else ""
    for which in ("train", "test"):
        path = getattr(data, which)
        if path.startswith("hub:") or (which == "test" and not path):
            continue
        records = load_records(data, which)
        if label:
            require_column(records, label, "data.label", path)
            _check_labels({record[label] for record in records}, scenario.task.labels, path)
        if which == "train":
            parts = partition(
                records, scenario.partition, scenario.federation.clients, label, scenario.seed
            )
            _check_privacy(scenario, max(len(part) for part in parts), pooled=pooled)


def _check_privacy(scenario: Scenario, rows: int, *, pooled: bool) -> None:
    """Refuse a plan that a client with so many rows would refuse."""
    if not scenario.privacy.enabled:
        return
    scenario.privacy.check_samples(rows)
    check_release(
        scenario,
        pools=pooled and scenario.model.client_back == 0,
        trains_head=head_trains(scenario.head, task_class(scenario.task.kind)),
    )
    if scenario.privacy.release == "labels":
        label_epsilon(scenario.privacy)
    else:
        upload_plan(scenario, rows)


def _check_labels(found: set[str], labels: Sequence[str], path: str) -> None:
    unknown = sorted(found - set(labels))
    if labels and unknown:
        raise FedloraError(
            f"{path} has the class {unknown[0]!r}, which is not among the {len(labels)} "
            "task.labels; add it or mend the data"
        )


def _shipped() -> Path:
    return Path(str(files(_PACKAGE))) / _FOLDER
