"""Whether a scenario can be run, before anything is started for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeAlias

import torch

from fedlora.channel import build_channel
from fedlora.channel.schedule.base import build_scheduler
from fedlora.checks import shown
from fedlora.config import ENDS, PAYLOADS, Scenario, place_blocks
from fedlora.errors import FedloraError
from fedlora.geometry import Geometry
from fedlora.link import create_codec
from fedlora.link.stream.address import check_listens
from fedlora.lora.device import check_device
from fedlora.lora.start import read_start
from fedlora.lora.targets import choose_targets, linear_modules
from fedlora.observe.extras import check_extras
from fedlora.participation import check_best, check_robust, check_uploads
from fedlora.privacy.mechanisms import blaming, mechanism_class, mechanism_of
from fedlora.privacy.plan import check_classes, plan_release
from fedlora.ranks import GuardedStrategy, RankSpace, create_strategy
from fedlora.registry import use_python_path
from fedlora.robust.aggregation import create_average
from fedlora.split import Checkpoint, Cut, find_family, language_head, model_folder
from fedlora.split.conformity import check_conformity
from fedlora.tasks import (
    Record,
    RecordError,
    Rows,
    Sample,
    Tally,
    Task,
    Tokenizer,
    check_form,
    check_front,
    check_labels,
    check_length,
    check_pool,
    check_single,
    check_unit,
    class_names,
    encode_records,
    fitting_tokenizer,
    holdout_split,
    label_column,
    renders_chat,
    require_column,
    require_texts,
    task_class,
    vectors_of,
)
from fedlora.tasks.partition import partition
from fedlora.tasks.text_scores import check_text_scores

_log = logging.getLogger(__name__)
Check: TypeAlias = Callable[[], object]
FILES: tuple[Literal["train"], Literal["test"]] = ("train", "test")


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

    rounds, channel = scenario.train.rounds, scenario.channel
    return [
        partial(use_python_path, scenario.python_path),
        partial(task_class, scenario.task.kind),
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
    _check_data(scenario, *_check_model(scenario))


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


def _check_data(
    scenario: Scenario, tokenizer: Tokenizer | None, geometry: Geometry, checkpoint: Checkpoint
) -> None:
    """Read and encode the data as the clients will; what the hub holds is left to them.

    Labels come first, over whole files: the clients only see their shares.
    """
    kind, data = task_class(scenario.task.kind), scenario.data
    label = label_column(data, labelled=kind.labelled)
    files = {
        which: kind.records(scenario, which, labelled=bool(label))
        for which in FILES
        if (which == "train" or data.test) and not getattr(data, which).startswith("hub:")
    }
    labels = read_classes(scenario, files) if label else scenario.task.labels
    geometry.check_r_cut(scenario, len(labels))
    if scenario.privacy.enabled and (labels or not kind.labelled):
        check_classes(scenario, len(labels))
    task = kind(scenario.task, labels)
    encode = _Encoder(scenario, task, tokenizer, geometry, checkpoint)
    clients = scenario.federation.clients
    for client in range(clients) if "test" in files else ():
        encode(files["test"], range(client, len(files["test"]), clients), data.test, client)
    if "train" not in files:
        encode.tell()
        return
    parts = partition(files["train"], scenario.partition, clients, label, scenario.seed)
    shares: list[tuple[Rows, ...]] = [
        (part,) if data.test else holdout_split(part, data.holdout, scenario.seed, client)
        for client, part in enumerate(parts)
    ]
    if scenario.privacy.enabled:
        rows = [len(share[0]) for share in shares]
        for count in sorted(set(rows)):
            plan_release(
                scenario,
                count,
                len(labels),
                pools=geometry.classifies,
                trains_head=geometry.trains_head,
            )
        check_uploads(scenario, rows)
    for client, own in enumerate(shares):
        for share in own:
            encode(files["train"], share.tolist(), data.train, client)
    encode.tell()
    _check_held_out(scenario, shares, len(files.get("test", ())))


def _check_held_out(scenario: Scenario, shares: Sequence[tuple[Rows, ...]], tests: int) -> None:
    """Refuse a client with more held-out rows than ``evaluate.max_rows``, as the server does."""
    clients, most = scenario.federation.clients, scenario.evaluate.max_rows
    held = [
        len(range(client, tests, clients)) if tests else sum(len(share) for share in own[1:])
        for client, own in enumerate(shares)
    ]
    if max(held) > most:
        client = held.index(max(held))
        raise FedloraError(
            f"evaluate.max_rows is {most}, and client {client} holds out {held[client]} rows; "
            "raise it, or hold out fewer"
        )


def read_classes(
    scenario: Scenario, files: Mapping[Literal["train", "test"], Sequence[Record]]
) -> Sequence[str]:
    """Return the classes; empty where they are those of the hub's records.

    Raises
    ------
    FedloraError
        When a record has none, or another than the training data or ``task.labels``.
    """
    data, labels = scenario.data, scenario.task.labels
    check_labels(labels)
    for which, records in files.items():
        path = getattr(data, which)
        require_column(records, data.label, "data.label", path)
        if not labels and which == "train":
            labels = tuple(class_names(records, data, path))
        if labels:
            _check_labels(scenario, records, labels, path)
        if which == "train" and len(found := {record[data.label] for record in records}) == 1:
            _log.warning("all records of %s have the class %s", path, shown(*found))
    return labels


@dataclass(frozen=True)
class _Encoder:
    """Encodes records only to see whether that can be done, and how many give no sample.

    Attributes
    ----------
    scenario, task, tokenizer, geometry, checkpoint
        What they are encoded with.
    tallies
        What became of the records, by file.
    """

    scenario: Scenario
    task: Task
    tokenizer: Tokenizer | None
    geometry: Geometry
    checkpoint: Checkpoint
    tallies: dict[str, Tally] = field(default_factory=dict)

    def __call__(
        self, records: Sequence[Record], rows: Sequence[int], path: str, client: int | None = None
    ) -> None:
        """Refuse a share with a record that cannot be used, with its row in the file."""
        if not self.task.labels and self.task.labelled:
            return  # its classes are those of the hub's records
        own = [records[row] for row in rows]
        vocabulary = self.checkpoint.size("vocab_size")
        try:
            samples = encode_records(self.task, own, self.tokenizer, self.scenario.data, vocabulary)
            if not self.task.tokens:
                check_single(self.scenario, samples)
                self._try_ends(samples[:1])
        except RecordError as error:
            raise error.of(path, rows[error.place]) from None
        except FedloraError as error:
            whose = "" if client is None else f" (client {client})"
            raise FedloraError(f"{path}{whose}: {error}") from None
        self.tallies.setdefault(path, Tally()).add(len(own), samples)

    def _try_ends(self, samples: Sequence[Sample]) -> None:
        """Refuse a front of the task's own that cannot take its own samples, or cannot train."""
        if self.tallies or not samples:
            return
        width, seed = self.geometry.embedding_width, self.scenario.seed
        front = self.task.front(self.checkpoint, torch.float32, width, seed)
        vectors_of(self.task, front, samples, width)
        check_front(self.scenario, front)

    def tell(self) -> None:
        """Warn of records that are cut or left out."""
        for path, tally in self.tallies.items():
            for told in tally.told(self.scenario.task.max_length):
                _log.warning("%s: %s", path, told)


def _check_labels(
    scenario: Scenario, records: Sequence[Record], labels: Sequence[str], path: str
) -> None:
    column, known = scenario.data.label, frozenset(labels)
    for row, record in enumerate(records, 1):
        if record[column] not in known:
            whose = "task.labels" if scenario.task.labels else f"classes of {scenario.data.train}"
            raise FedloraError(
                f"record {row} of {path} has the class {shown(record[column])}, which is not among "
                f"the {len(labels)} {whose}; add it to task.labels or mend the data"
            )
