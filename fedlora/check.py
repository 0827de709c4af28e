"""Whether a scenario can be run, before anything is started for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch

from fedlora.channel import build_channel
from fedlora.channel.schedule.base import build_scheduler
from fedlora.check_data import check_data
from fedlora.config import ENDS, PAYLOADS, LinkConfig, Scenario, place_blocks
from fedlora.errors import FedloraError
from fedlora.geometry import Geometry
from fedlora.link import create_codec
from fedlora.link.stream import check_listens
from fedlora.link.stream.tls import is_loopback
from fedlora.lora.also import check_also
from fedlora.lora.device import check_device
from fedlora.lora.start import read_start
from fedlora.lora.targets import choose_targets, linear_modules
from fedlora.observe.extras import check_extras
from fedlora.participation import check_best, check_robust
from fedlora.privacy.mechanisms import blaming, check_words, mechanism_class, mechanism_of
from fedlora.privacy.plan import check_classes
from fedlora.ranks import GuardedStrategy, RankSpace, create_strategy
from fedlora.registry import use_python_path
from fedlora.robust.aggregation import create_average
from fedlora.split import (
    Checkpoint,
    Cut,
    check_conformity,
    check_form as check_weights,
    find_family,
    language_head,
    model_folder,
)
from fedlora.storage import check_folder
from fedlora.tasks import (
    Tokenizer,
    check_form,
    check_labels,
    check_length,
    check_pool,
    check_text_scores,
    check_unit,
    fitting_tokenizer,
    renders_chat,
    require_texts,
    task_class,
)

Check: TypeAlias = Callable[[], object]


def check_plugins(scenario: Scenario) -> None:
    """Refuse a scenario with a plug-in that cannot be found or made; all of them are made once.

    Raises
    ------
    FedloraError
        When a name is unknown, a module cannot be imported, the options do not fit, or a robust
        average would never have enough clients.
    """
    for check in plugin_checks(scenario):
        check()


def plugin_checks(scenario: Scenario) -> list[Check]:
    """Return what ``check_plugins`` does, one plug-in each."""

    def mechanism() -> None:
        mechanism_class(scenario.privacy.release)
        found = mechanism_of(scenario.privacy)
        if found is not None:
            with blaming(found):
                found.check(scenario)
            check_words(found)

    rounds, channel = scenario.train.rounds, scenario.channel
    return [
        partial(use_python_path, scenario.python_path),
        partial(task_class, scenario.task.kind),
        partial(_check_reuse_folder, scenario.link),
        *(partial(create_codec, **scenario.link.codec(own)) for own in (*PAYLOADS, *ENDS)),
        partial(create_strategy, scenario.ranks, scenario.seed),
        partial(create_average, scenario.robust),
        partial(build_channel, channel, scenario.seed),
        partial(build_scheduler, channel.schedule, rounds=rounds, seed=scenario.seed),
        partial(check_robust, scenario),
        mechanism,
        partial(check_best, scenario),
        partial(check_extras, scenario.observe),
        partial(check_text_scores, scenario),
    ]


def check_scenario(scenario: Scenario) -> None:
    """Refuse at once what a simulation would only fail at after Flower has started.

    Raises
    ------
    FedloraError
        When a path, a plug-in, a device, the cut, the adapters' targets or the data cannot be used.
    """
    check_plugins(scenario)
    check_channel(scenario)
    if is_deployment(scenario) and not scenario.data.named:
        raise FedloraError(
            "data.train is not named, and by link.host, link.public_host or federation.nodes "
            "devices take part that bring data of their own; name data.train for a simulation, "
            "files by --data for a rehearsal, or start it on a server as docs/deploy.md has it"
        )
    check_data(scenario, *_check_model(scenario))


def check_channel(scenario: Scenario) -> None:
    """Refuse a channel that only devices can measure, or that does not know each client.

    Raises
    ------
    FedloraError
        When it is such a one.
    """
    channel = build_channel(scenario.channel, scenario.seed)
    if channel.measured:
        raise FedloraError(
            f"channel.model is {scenario.channel.model!r}, which is what devices measure; choose a "
            "simulated model for a simulation, such as rayleigh, or replay a recording with trace"
        )
    for client in range(scenario.federation.clients):
        channel.report(client, 0)  # a trace may lack one


def check_run(scenario: Scenario) -> None:
    """Refuse what ``check_scenario`` refuses, and an address that a server cannot listen on.

    Raises
    ------
    FedloraError
        See ``check_scenario``; when the server's address is not this machine's, or is taken.
    """
    check_scenario(scenario)
    check_listens(scenario.link.host, scenario.link.port)


def is_deployment(scenario: Scenario) -> bool:
    """Return whether a scenario says how devices on other machines take part in it."""
    link, measured = scenario.link, scenario.channel.model == "measured"
    beyond = bool(link.public_host) or not is_loopback(link.host)
    return beyond or measured or bool(scenario.federation.nodes)


def devices_bring_data(scenario: Scenario) -> bool:
    """Return whether a scenario leaves its data to the devices of a deployment.

    So it does where it names none, and either how devices reach the server or classes, which those
    of the quickstart's data, the default, would hardly be.
    """
    return not scenario.data.named and (is_deployment(scenario) or bool(scenario.task.labels))


def check_named_classes(scenario: Scenario) -> None:
    """Refuse classes that a run on data of the devices cannot do with.

    Raises
    ------
    FedloraError
        When a task with classes does not name them, or under privacy when they are too few.
    """
    labelled, labels = task_class(scenario.task.kind).labelled, scenario.task.labels
    if labelled:
        if not labels:
            raise FedloraError(
                "task.labels is empty, and devices bring data of their own, of which one may lack "
                "a class; name all classes, or data.train for a simulation"
            )
        check_labels(labels)
    if scenario.privacy.enabled:
        check_classes(scenario, len(labels))


def check_server(scenario: Scenario) -> None:
    """Refuse what a server can tell by itself, before it waits for devices.

    Raises
    ------
    FedloraError
        When a path, a plug-in, a device, the cut or the adapters' targets cannot be used, or the
        server's address is not this machine's, or is taken.
    """
    check_plugins(scenario)
    _check_model(scenario)
    check_listens(scenario.link.host, scenario.link.port)


def _check_model(scenario: Scenario) -> tuple[Tokenizer | None, Geometry, Checkpoint]:
    """Refuse a model that cannot be cut, placed and adapted as the scenario says."""
    checkpoint = Checkpoint(model_folder(scenario.model.path))
    for check in model_checks(scenario, checkpoint):
        check()
    tokenizer = fitting_tokenizer(task_class(scenario.task.kind), checkpoint)
    return tokenizer, Geometry.of(scenario, checkpoint), checkpoint


def model_checks(scenario: Scenario, checkpoint: Checkpoint) -> list[Check]:
    """Return what is asked of a model, one thing each; the first two are what others rest on."""
    task = task_class(scenario.task.kind)

    def adapters() -> None:
        cut = Geometry.of(scenario, checkpoint).cut
        everywhere = linear_modules(checkpoint, Cut(cut.blocks, 0, cut.blocks))
        linear = linear_modules(checkpoint, cut)
        _check_ranks(
            scenario, checkpoint, choose_targets(linear, scenario.lora.targets, everywhere)
        )
        check_also(scenario, checkpoint, cut)
        if scenario.lora.start:
            read_start(scenario.lora, checkpoint, cut, pooled=not task.language())

    def texts() -> None:
        tokenizer = fitting_tokenizer(task, checkpoint)
        if tokenizer is not None:
            renders_chat(scenario.data.renders, tokenizer)
        elif scenario.ranks.statistics:
            require_texts(scenario.task.kind, "ranks.statistics = true")

    checks: list[Check] = [
        partial(find_family, checkpoint),
        partial(Geometry.of, scenario, checkpoint),
        lambda: Geometry.of(scenario, checkpoint).check_front(scenario, checkpoint),
        lambda: Geometry.of(scenario, checkpoint).check_link(scenario),
        lambda: Geometry.of(scenario, checkpoint).check_r_cut(scenario, len(scenario.task.labels)),
        partial(check_form, scenario.data, labelled=task.labelled),
        partial(check_unit, scenario),
        partial(check_length, scenario.task, checkpoint),
        partial(check_pool, scenario.task, checkpoint),
    ]
    if task.language():
        checks.append(partial(language_head, checkpoint, torch.float32))
    return [
        *checks,
        partial(check_conformity, checkpoint, language=task.language()),
        texts,
        lambda: _check_places(scenario, Geometry.of(scenario, checkpoint).cut),
        adapters,
    ]


def _check_reuse_folder(link: LinkConfig) -> None:
    if link.reuse and link.reuse_folder:
        check_folder(Path(link.reuse_folder).expanduser(), "link.reuse_folder")


def _check_ranks(scenario: Scenario, checkpoint: Checkpoint, targets: Sequence[str]) -> None:
    """Let the strategy see the projections, so that it refuses those that it does not fit."""
    space = rank_space(scenario, checkpoint, targets)
    GuardedStrategy(create_strategy(scenario.ranks, scenario.seed)).prepare(space)


def rank_space(scenario: Scenario, checkpoint: Checkpoint, targets: Sequence[str]) -> RankSpace:
    """Return what a rank strategy chooses from, as it follows from the checkpoint's shapes."""
    modules = []
    for name in targets:
        # GPT-2 stores them the other way round, at which the cost of a rank is the same.
        d_out, d_in = checkpoint.entries[f"{name}.weight"].shape
        modules.append((name, d_in, d_out))
    return RankSpace.of(
        modules,
        find_family(checkpoint).layers,
        r_max=scenario.lora.r_max,
        bits_per_parameter=scenario.channel.bits_per_parameter,
    )


def _check_places(scenario: Scenario, cut: Cut) -> None:
    """Refuse devices that this machine does not have, and blocks that the server does not hold."""
    compute = scenario.compute
    places = place_blocks(compute.device_map, compute.device, range(cut.start, cut.stop))
    for place in {compute.device, *places.values(), *compute.max_memory} - {"disk"}:
        check_device(place)
        if scenario.model.few_bits:
            check_weights(scenario.model.few_bits, place)
