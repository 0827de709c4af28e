"""The server's half of a finished run: blocks, adapter, and every client's ranks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fedlora.commands.run_model import last_ranks
from fedlora.config import Scenario, load_scenario
from fedlora.errors import FedloraError
from fedlora.generation.bounds import CacheBounds
from fedlora.generation.engine import GenerationEngine, check_generates
from fedlora.generation.server import GenerationServer
from fedlora.link import PROTOCOL, Identity
from fedlora.lora.export import Adapter
from fedlora.registry import use_python_path
from fedlora.report import RunFolder
from fedlora.split import Checkpoint, check_conformity, model_folder
from fedlora.tasks import task_class, tokenizer_digest


@dataclass(frozen=True)
class ServedRun:
    """What is served.

    Attributes
    ----------
    scenario
        The run's, with the backbone as it is on this machine.
    server
        Answers requests.
    told
        What it is, for a person.
    """

    scenario: Scenario
    server: GenerationServer
    told: str


def open_served(
    folder: Path,
    model: str,
    rank: int | None,
    bounds: CacheBounds,
    known: Collection[str] | None,
    *,
    leave_after: int = 0,
) -> ServedRun:
    """Load what a run's devices need of the server.

    The adapter is the run's own; each client has its last ranks of it.

    Parameters
    ----------
    folder
        Of a finished run.
    model
        The backbone on this machine, where it is not at the run's ``model.path``.
    rank
        Rank of clients that took no part; None refuses them.
    bounds
        How much sessions may hold.
    known
        Clients whose keys there are; None where nobody has one.
    leave_after
        See ``GenerationEngine``.

    Raises
    ------
    FedloraError
        When the folder is no run that can generate, or the backbone is not here.
    """
    if not folder.is_dir():
        raise FedloraError(f"{folder} is no folder; give that of a finished run")
    run = RunFolder(folder)
    scenario = load_scenario(run.scenario)
    link, channel = scenario.link, scenario.channel
    named = scenario.task.kind, link.activation, link.representation, channel.model, channel.predict
    use_python_path(scenario.python_path, needed=":" in "".join(named))
    adapter = Adapter.load(run.adapter)
    if rank is not None and rank > adapter.r_max:
        raise FedloraError(f"--rank {rank} exceeds the run's r_max {adapter.r_max}; lower it")
    place = model_folder(model or scenario.model.path, adapter.revision)
    scenario = replace(scenario, model=replace(scenario.model, path=str(place)))
    checkpoint = Checkpoint(place)
    check_generates(checkpoint, scenario)
    check_conformity(checkpoint, language=True)
    torch.set_num_threads(scenario.compute.threads or torch.get_num_threads())
    engine = GenerationEngine(checkpoint, scenario, leave_after=leave_after)
    engine.load(adapter)
    identity = Identity(
        PROTOCOL,
        checkpoint.config_digest,
        checkpoint.weights_digest,
        tokenizer_digest(task_class(scenario.task.kind), checkpoint),
        scenario.model.precision,
    )
    ranks = last_ranks(run)
    count = len(engine.projections)
    whole = [rank or adapter.r_max] * count
    everyone = rank is not None or (known is None and not ranks)
    if known is not None and not everyone and not set(known) & set(ranks):
        raise FedloraError(
            f"--certs has keys of clients {', '.join(sorted(known))}, and the run's clients with "
            f"ranks are {', '.join(sorted(ranks)) or 'none'}; give those keys, or --rank"
        )
    if known is None:
        ranks = {"local": [adapter.r_max] * count, **ranks}
    server = GenerationServer(
        engine, scenario, identity, ranks=ranks, default=whole if everyone else None, bounds=bounds
    )
    cut = engine.geometry.cut
    told = f"blocks {cut.start} to {cut.stop - 1} with adapter {engine.version[:12]}"
    told += f", which tokens may leave after {leave_after}" if leave_after else ""
    return ServedRun(scenario, server, told)
