"""What a run's folder holds of the model that was trained: adapter, ranks and head."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from fedlora.config import load_scenario
from fedlora.errors import FedloraError
from fedlora.lora.classifier import Head
from fedlora.lora.export import Adapter
from fedlora.report import RunFolder
from fedlora.storage.state import RoundStates


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
    adapter = Adapter.load(folder.adapter, takes_also=True)
    count = len(adapter.factors)
    if client is not None and rank is not None:
        raise FedloraError(f"--client {client} and --rank {rank} exclude each other; give one")
    if rank is not None and rank > adapter.r_max:
        raise FedloraError(f"--rank {rank} exceeds the run's r_max {adapter.r_max}; lower it")
    if client is None:
        return adapter, [rank or adapter.r_max] * count
    kept = (folder.read_summary() or {}).get("kept_round")
    ranks = _last_ranks(folder, client, kept)
    if folder.scenario.is_file() and load_scenario(folder.scenario).channel.deliver_every:
        if kept is not None:
            raise FedloraError(
                f"the run keeps the adapter of round {kept} (evaluate.keep is 'best'), and what "
                f"client {client} had been delivered by then is no longer known; give --rank"
            )
        return _delivered(folder, adapter, client)
    return adapter, ranks


def _last_ranks(folder: RunFolder, client: str, kept: int | None) -> list[int]:
    for record in reversed(folder.read_metrics()):
        if kept is not None and record.get("round", 0) > kept:
            continue
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


def last_ranks(folder: RunFolder) -> dict[str, list[int]]:
    """Return the last ranks of every client of a run that had any; of the kept round, if one is.

    Raises
    ------
    FedloraError
        When a record is damaged.
    """
    kept = (folder.read_summary() or {}).get("kept_round")
    known = {
        client
        for record in folder.read_metrics()
        for client, own in (record.get("clients") or {}).items()
        if own.get("ranks") and (kept is None or record.get("round", 0) <= kept)
    }
    return {client: _last_ranks(folder, client, kept) for client in sorted(known)}


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


def chosen_head(folder: RunFolder, client: str | None) -> Head | None:
    """Return the head that all clients share, or a simulated client's own; None without one.

    Raises
    ------
    FedloraError
        When it cannot be read.
    """
    if folder.head.exists():
        return read_head(folder.head) if _is_linear(folder.head) else None
    if client is None:
        return None
    states = RoundStates(folder.checkpoint / "clients" / client).readable()
    state = next((state for _, state in states), None)
    weights = (state or {}).get("head", {}).get("weights", {})
    if set(weights) != {"weight"}:
        return None
    named = load_scenario(folder.scenario).task.labels if folder.scenario.is_file() else ()
    labels = named or tuple((folder.read_summary() or {}).get("labels", ()))
    weight = weights["weight"].float()
    return Head(weight, labels if len(labels) == len(weight) else ())


def why_no_head(place: Path) -> str:
    """Say why ``chosen_head`` has none for a run, or its export, that classifies."""
    if RunFolder(place).head.exists():
        return (
            "the head is a module of the task's own, of which head.safetensors has the weights, "
            "and one linear map is all that is known here"
        )
    return "personal heads stay on their clients; train with head.share=step or round"


def _is_linear(path: Path) -> bool:
    """Tell whether a head is one linear map, as those of fedlora's own tasks of texts are."""
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys()) == {"weight"}
    except (OSError, SafetensorError):
        return True  # what is wrong is told by who reads it


def read_head(path: Path) -> Head:
    """Return the head in a file.

    Raises
    ------
    FedloraError
        When it holds none that can be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            weight: torch.Tensor = file.get_tensor("weight")
            return Head(weight, tuple(json.loads(file.metadata()["labels"])))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise FedloraError(
            f"{path} holds no head that can be read ({error}); copy or export it anew"
        ) from None


def read_embedding(path: Path) -> torch.Tensor:
    """Return the token embedding that clients trained and share, shape (vocabulary, width).

    Raises
    ------
    FedloraError
        When the file holds none that can be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            weight: torch.Tensor = file.get_tensor("weight")
            return weight
    except (OSError, SafetensorError) as error:
        raise FedloraError(
            f"{path} holds no token embedding that can be read ({error}), and the run trained one "
            "(train.embedding), which is written at its end; go on with it by fedlora resume, or "
            "copy or export it anew"
        ) from None
