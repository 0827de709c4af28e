"""Whether a scenario can be run, before anything is started for it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from fedlora.channel.channel import build_channel
from fedlora.channel.schedule.base import build_scheduler
from fedlora.config import Scenario
from fedlora.config.placement import place_blocks
from fedlora.errors import FedloraError
from fedlora.link.codec import create_codec
from fedlora.link.listen import check_listens
from fedlora.lora.start import read_start
from fedlora.lora.targets import choose_targets
from fedlora.privacy.plan import check_release, label_epsilon, upload_plan
from fedlora.ranks.guard import GuardedStrategy
from fedlora.ranks.space import Projection, RankSpace
from fedlora.ranks.strategy import create_strategy
from fedlora.registry import use_python_path
from fedlora.robust.average import create_average
from fedlora.server.device import check_device
from fedlora.split.blocks import Cut
from fedlora.split.checkpoint import Checkpoint
from fedlora.split.edge import language_head
from fedlora.split.family import find_family
from fedlora.split.resolve import model_folder
from fedlora.tasks.base import check_length, head_trains, task_class
from fedlora.tasks.data import load_records, require_column
from fedlora.tasks.partition import partition
from fedlora.tasks.tokenizer import load_tokenizer


def check_plugins(scenario: Scenario) -> None:
    """Refuse a scenario with a plug-in that cannot be found or made; all of them are made once.

    Raises
    ------
    FedloraError
        When a name is unknown, a module cannot be imported, or the options do not fit.
    """
    use_python_path(scenario.python_path)
    task_class(scenario.task.kind)
    for codec in (scenario.link.activation, scenario.link.representation, scenario.link.gradient):
        create_codec(codec)
    create_strategy(scenario.ranks, scenario.seed)
    create_average(scenario.robust)
    build_channel(scenario.channel, scenario.seed)
    build_scheduler(scenario.channel.schedule, rounds=scenario.train.rounds, seed=scenario.seed)


def check_scenario(scenario: Scenario) -> None:
    """Refuse at once what a simulation would only fail at after Flower has started.

    Raises
    ------
    FedloraError
        When a path, a plug-in, a device, the cut, the adapters' targets or the data cannot be used.
    """
    check_plugins(scenario)
    channel = build_channel(scenario.channel, scenario.seed)
    if channel.measured:
        raise FedloraError(
            f"channel.model is {scenario.channel.model!r}, which is what devices measure; choose a "
            "simulated model for a simulation, such as rayleigh, or replay a recording with trace"
        )
    for client in range(scenario.federation.clients):
        channel.report(client, 0)  # a trace may lack one
    checkpoint = Checkpoint(model_folder(scenario.model.path))
    find_family(checkpoint)
    cut = Cut.of(checkpoint, scenario.model.client_front, scenario.model.client_back)
    task = task_class(scenario.task.kind)
    check_length(scenario.task, checkpoint)
    if not task.pooled:
        language_head(checkpoint, torch.float32)
    load_tokenizer(checkpoint.folder)
    _check_places(scenario, cut)
    targets = choose_targets(_linear(checkpoint), scenario.lora.targets)
    _check_ranks(scenario, checkpoint, cut, targets)
    if scenario.lora.start:
        read_start(scenario.lora, targets)
    _check_data(scenario, pooled=task.pooled)


def check_run(scenario: Scenario) -> None:
    """Refuse what ``check_scenario`` refuses, and an address that a server cannot listen on.

    Raises
    ------
    FedloraError
        See ``check_scenario``; when the server's address is not this machine's, or is taken.
    """
    check_scenario(scenario)
    check_listens(scenario.link.host, scenario.link.port)


def _check_ranks(
    scenario: Scenario, checkpoint: Checkpoint, cut: Cut, targets: Sequence[str]
) -> None:
    """Let the strategy see the projections, so that it refuses those that it does not fit."""
    family = find_family(checkpoint)
    inside = re.compile(rf"(?:^|\.){re.escape(family.layers)}\.(\d+)\.(.+)$")
    projections = []
    for name in targets:
        found = inside.search(name)
        assert found is not None
        # GPT-2 stores them the other way round, at which the cost of a rank is the same.
        d_out, d_in = checkpoint.entries[f"{name}.weight"].shape
        if int(found[1]) in range(cut.start, cut.stop):
            projections.append(Projection(found[2], int(found[1]), d_in, d_out))
    space = RankSpace(
        tuple(projections),
        r_max=scenario.lora.r_max,
        bits_per_parameter=scenario.channel.bits_per_parameter,
    )
    GuardedStrategy(create_strategy(scenario.ranks, scenario.seed)).prepare(space)


def _check_places(scenario: Scenario, cut: Cut) -> None:
    """Refuse devices that this machine does not have, and blocks that the server does not hold."""
    compute = scenario.compute
    places = place_blocks(compute.device_map, compute.device, range(cut.start, cut.stop))
    for place in {compute.device, *places.values(), *compute.max_memory} - {"disk"}:
        check_device(place)


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
