"""``fedlora export``: a run's adapter in the form that others load."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import typer

from fedlora.config import Scenario, TaskConfig, load_scenario
from fedlora.errors import FedloraError
from fedlora.lora.export import Adapter
from fedlora.report import RunFolder
from fedlora.server.results import head_file
from fedlora.split.resolve import is_hub_name
from fedlora.split.tokenizer_files import TOKENIZER_FILES
from fedlora.storage.files import replace_file
from fedlora.storage.outputs import FolderKind
from fedlora.storage.state import RoundStates

DEVICE_FILE = "fedlora.json"
"""Holds what a device must know of the task to use an exported adapter."""

_EXPORT = FolderKind(
    "export",
    ("adapter_config.json", "config.json"),
    (
        *("adapter_config.json", "adapter_model.safetensors", "head.safetensors", DEVICE_FILE),
        *("config.json", "generation_config.json", "model*.safetensors"),
        *("model.safetensors.index.json", "README.md", *TOKENIZER_FILES),
    ),
)


@dataclass(frozen=True)
class TaskFacts:
    """What a device must know of a task to use an adapter.

    Attributes
    ----------
    model
        ``model.path`` of the run.
    task
        Its task.
    prompt_separator
        Its ``data.prompt_separator``.
    """

    model: str
    task: TaskConfig
    prompt_separator: str

    @classmethod
    def of(cls, scenario: Scenario) -> TaskFacts:
        """Return the facts of a scenario."""
        return cls(scenario.model.path, scenario.task, scenario.data.prompt_separator)


def export_run(
    run_folder: Path,
    out: Path,
    format_: str,
    client: str | None,
    rank: int | None,
    *,
    overwrite: bool = False,
) -> None:
    """Write the adapter of a run.

    In the format ``peft`` the folder also gets the shared head and what ``fedlora infer`` must know
    of the task, so that it is all that a device needs beside the backbone.

    Parameters
    ----------
    run_folder
        A finished run.
    out
        Folder to write, which must be empty or absent.
    format_
        ``peft``, ``padded``, ``gguf-ready`` or ``merged``.
    client
        Whose adapter to write: the one that it was last delivered in time.
    rank
        One rank for every projection; by default r_max.
    overwrite
        Whether an earlier export in ``out`` is replaced.

    Raises
    ------
    FedloraError
        When the run has no adapter or no such client, the client was delivered none, or the folder
        is in use.
    """
    folder = RunFolder(run_folder)
    adapter, ranks = chosen_adapter(folder, client, rank)
    _EXPORT.check_free(out, overwrite=overwrite, option="--out")
    _keep_sources(out, folder)
    if format_ != "merged" and not any(ranks):
        raise FedloraError(
            f"client {client} was delivered no adapter in time; it uses the backbone as it is"
        )
    _EXPORT.clear(out)
    if format_ == "merged":
        adapter.truncated(ranks).merge(out, _model(folder))
    elif format_ == "padded":
        adapter.truncated(ranks).save(out)
    elif format_ == "gguf-ready":
        adapter.save_with_one_alpha(out, ranks)
    else:
        adapter.save(out, ranks)
        _write_device_files(folder, out, adapter)
    typer.echo(
        f"wrote {format_} export of {len(ranks)} projections, mean rank "
        f"{sum(ranks) / len(ranks):.2f}, to {out}"
    )


def chosen_adapter(
    folder: RunFolder, client: str | None, rank: int | None
) -> tuple[Adapter, list[int]]:
    """Return the run's adapter at one rank or r_max, or the one that a client has.

    Where adapters were delivered over the air, a client has the one that last arrived in time, as
    it was then, and rank 0 everywhere if none did. Otherwise it has the run's, at its last ranks.

    Raises
    ------
    FedloraError
        When both are asked for, the rank is too large, or the client is unknown.
    """
    adapter = Adapter.load(folder.adapter)
    count = len(adapter.factors)
    if client is not None and rank is not None:
        raise FedloraError(f"--client {client} and --rank {rank} exclude each other; give one")
    if rank is not None and rank > adapter.r_max:
        raise FedloraError(f"--rank {rank} exceeds the run's r_max {adapter.r_max}; lower it")
    if client is None:
        return adapter, [rank or adapter.r_max] * count
    ranks = _last_ranks(folder, client)
    if folder.scenario.is_file() and load_scenario(folder.scenario).channel.deliver_every:
        return _delivered(folder, adapter, client)
    return adapter, ranks


def _last_ranks(folder: RunFolder, client: str) -> list[int]:
    for record in reversed(folder.read_metrics()):
        found = (record.get("clients") or {}).get(client)
        if found and found.get("ranks"):
            ranks = list(found["ranks"])
            if not all(isinstance(r, int) for r in ranks):
                raise FedloraError(
                    f"{folder.metrics} has {str(ranks)[:60]} as ranks of client {client}; it is "
                    "damaged, so give --rank in place of --client"
                )
            return ranks
    known = {c for record in folder.read_metrics() for c in record.get("clients") or {}}
    raise FedloraError(
        f"the run has no client {client!r} with ranks; its clients are {', '.join(sorted(known))}"
    )


def _delivered(folder: RunFolder, adapter: Adapter, client: str) -> tuple[Adapter, list[int]]:
    """Return what a client was last delivered, which the last checkpoint holds."""
    state = next((state for _, state in RoundStates(folder.checkpoint).readable()), None)
    if state is None:
        raise FedloraError(
            f"{folder.checkpoint} holds no state that can be read, and only it knows what client "
            f"{client} was delivered; use --rank"
        )
    found = state["delivered"].get(client)
    if found is None:
        return adapter, [0] * len(adapter.factors)
    place, ranks = found
    factors = _renamed(state["adapters"][int(place)], adapter)
    return dataclasses.replace(adapter, factors=factors), [int(r) for r in ranks]


def _renamed(
    state: Mapping[str, torch.Tensor], adapter: Adapter
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return factors of the server's blocks under the names of the whole model."""
    inner = [name.removesuffix(".A") for name in state if name.endswith(".A")]
    whole = {
        name: next(w for w in adapter.factors if f".{w}".endswith(f".{name}")) for name in inner
    }
    by_name = {
        whole[name]: (state[f"{name}.A"].float(), state[f"{name}.B"].float()) for name in inner
    }
    return {name: by_name[name] for name in adapter.factors}


def _keep_sources(out: Path, folder: RunFolder) -> None:
    """Refuse to write into the run or its model, of which an export has the names.

    Raises
    ------
    FedloraError
        When that is asked for.
    """
    place = out.resolve()
    for source in (folder.path, Path(_model(folder) or folder.path)):
        if place == source.resolve() or source.resolve() in place.parents:
            raise FedloraError(f"--out {out} lies in {source}, which is exported; name another")


def _model(folder: RunFolder) -> str:
    """Return the run's ``model.path``, which says more than its adapter where a cache has moved."""
    return load_scenario(folder.scenario).model.path if folder.scenario.is_file() else ""


def _write_device_files(folder: RunFolder, out: Path, adapter: Adapter) -> None:
    if head_file(folder).exists():
        shutil.copyfile(head_file(folder), out / head_file(folder).name)
    if folder.scenario.is_file():
        facts = TaskFacts.of(load_scenario(folder.scenario))
        if adapter.revision and not is_hub_name(facts.model):  # a place in this machine's cache
            facts = dataclasses.replace(facts, model=f"hub:{adapter.base_model}")
        text = json.dumps(dataclasses.asdict(facts), indent=1)
        replace_file(out / DEVICE_FILE, f"{text}\n".encode())
