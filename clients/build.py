"""Putting clients together: model parts, data, head and report from a scenario."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from clients.edge_client import EdgeClient
from clients.edge_model import EdgeModel
from clients.head import ClientHead
from clients.held_out_texts import HeldOutTexts, Speech
from clients.owner import Origins, OwnerTerms, Private, PrivateSamples
from clients.owner.origins import origins
from clients.release.build import build_release
from clients.reports import simulated_report
from clients.text_statistics import text_statistics
from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.geometry import Geometry
from fedlora.link import PROTOCOL, Frame, Identity, messages as m
from fedlora.ranks import DataStatistics
from fedlora.split import DTYPES, Back, Checkpoint, Front, model_folder
from fedlora.split.conformity import check_conformity
from fedlora.tasks import (
    Record,
    RecordError,
    Sample,
    Tokenizer,
    check_form,
    check_front,
    check_length,
    check_pool,
    check_single,
    class_names,
    encode_records,
    end_tokens,
    fitting_tokenizer,
    holdout_split,
    label_column,
    require_column,
    task_class,
)
from fedlora.tasks.partition import partition
from fedlora.tasks.text_scores import check_text_scores

log = logging.getLogger("fedlora.edge")


@dataclass(frozen=True)
class EdgeParts:
    """What all clients of a process share.

    Attributes
    ----------
    scenario
        The run's scenario, with the labels filled in.
    checkpoint, tokenizer, model
        The frozen parts; no tokenizer where the task's inputs are no tokens.
    """

    scenario: Scenario
    checkpoint: Checkpoint
    tokenizer: Tokenizer | None
    model: EdgeModel

    @property
    def identity(self) -> Identity:
        """What the handshake compares."""
        own, pooled = self.tokenizer, self.model.task.pooled
        digest = "" if own is None else own.digest_for(pooled=pooled)
        return Identity(
            PROTOCOL,
            self.checkpoint.config_digest,
            self.checkpoint.weights_digest,
            digest,
            self.scenario.model.dtype,
        )


def load_parts(scenario: Scenario, labels: Sequence[str] = ()) -> EdgeParts:
    """Load the client's ends of the model; no block is read unless the cut leaves some here.

    Parameters
    ----------
    scenario
        The run's scenario.
    labels
        Class names, where the scenario does not name them.

    Raises
    ------
    FedloraError
        When the model, the tokenizer or the cut cannot be used.
    """
    if not scenario.task.labels:
        scenario = replace(scenario, task=replace(scenario.task, labels=tuple(labels)))
    checkpoint = Checkpoint(model_folder(scenario.model.path))
    kind = task_class(scenario.task.kind)
    if checkpoint.manifest:  # of a whole model the server, which has transformers, makes sure
        check_conformity(checkpoint, language=kind.language())
    dtype = DTYPES[scenario.model.dtype]
    geometry = Geometry.of(scenario, checkpoint)
    task = kind(scenario.task, scenario.task.labels)
    embedding = task.front(checkpoint, dtype, geometry.embedding_width, scenario.seed)
    model = EdgeModel(
        front=Front(checkpoint, geometry.cut, dtype, embedding.requires_grad_(False)),
        back=Back(checkpoint, geometry.cut, dtype, final=not geometry.server_final),
        task=task,
        geometry=geometry,
    )
    check_length(scenario.task, checkpoint)
    check_pool(scenario.task, checkpoint)
    return EdgeParts(scenario, checkpoint, fitting_tokenizer(kind, checkpoint), model)


def build_client(
    parts: EdgeParts,
    number: int,
    train: Sequence[Sample],
    held_out: Sequence[Sample],
    terms: OwnerTerms | None = None,
    records: Origins | None = None,
    run: str = "",
) -> EdgeClient:
    """Build one client over shared parts.

    Parameters
    ----------
    parts
        The process's frozen parts.
    number
        The client's number, from 0; its identifier is the number in decimal.
    train, held_out
        Its samples.
    terms
        What its owner allows; by default everything, as in a simulation that writes no ledger.
    records
        Where the samples come from; for the owner's ledger.
    run
        Name of the run, by which its plan goes on after a restart; empty where it has none.

    Raises
    ------
    FedloraError
        When it has no training sample, or its owner does not allow the run.
    """
    scenario, model, terms = parts.scenario, parts.model, terms or OwnerTerms()
    check_text_scores(scenario)
    samples, held = PrivateSamples(train), PrivateSamples(held_out)
    if not samples:
        raise FedloraError(
            f"client {number} has no training sample; give it data, or use fewer clients"
        )
    if scenario.train.embedding:  # a trained front is the client's own
        model = replace(model, front=copy.deepcopy(model.front))
        check_front(scenario, model.front.embedding.requires_grad_())
    model.geometry.check_r_cut(scenario, len(model.task.labels))
    model.geometry.check_tokens(scenario)
    module = model.task.head(
        parts.checkpoint,
        DTYPES[scenario.model.dtype],
        model.geometry.head_width,
        scenario.seed,
    )
    release = build_release(
        scenario,
        number,
        terms,
        samples=samples,
        held_out=len(held),
        head=module,
        trains_head=model.geometry.trains_head,
        pools=model.geometry.classifies,
        classes=len(model.task.labels),
        origins=records,
        run=run,
        model=_model_name(parts),
    )
    try:
        trained = release.training(samples)
    except BaseException:
        release.close()
        raise
    head = ClientHead(
        module,
        trains=model.geometry.trains_head,
        config=scenario.head,
        train=scenario.train,
        front=model.front.embedding if scenario.train.embedding else None,
        front_share=scenario.front.share,
    )
    return EdgeClient(
        str(number),
        number,
        scenario,
        model,
        head,
        trained,
        held,
        release,
        simulated_report(scenario, number),
        _statistics(parts, number, trained, terms),
        _texts(parts, held),
    )


def _texts(parts: EdgeParts, held_out: PrivateSamples) -> HeldOutTexts | None:
    """Return what writes on after held-out prompts, where the run asks for it."""
    scenario, tokenizer = parts.scenario, parts.tokenizer
    if not scenario.evaluate.generate or tokenizer is None:
        return None
    speech = Speech(tokenizer.decode, end_tokens(tokenizer, parts.checkpoint))
    config = scenario.evaluate
    return HeldOutTexts(
        held_out, speech, config.generate, config.generate_tokens, scenario.task.max_length
    )


def _model_name(parts: EdgeParts) -> str:
    """Return a name for what makes activations of records: model, tokenizer and seed."""
    text = json.dumps([parts.identity.to_dict(), parts.scenario.seed], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _statistics(
    parts: EdgeParts, number: int, samples: PrivateSamples, terms: OwnerTerms
) -> Private[DataStatistics] | None:
    """Return what a client tells of its text: nothing, unless the run asks and its owner agrees."""
    scenario, tokenizer = parts.scenario, parts.tokenizer
    if not scenario.ranks.statistics or tokenizer is None:
        return None
    if not terms.tells_statistics(private=scenario.privacy.enabled):
        log.info("client %d tells no statistics of its text, which the run asks for", number)
        return None
    return samples.all.map(lambda own: text_statistics(own, tokenizer))


def hello(parts: EdgeParts, client: EdgeClient, token: str = "") -> Frame:
    """Return the frame that opens a client's session."""
    fields: dict[str, Any] = {
        **parts.identity.to_dict(),
        "token": token,
        "rows": len(client.train),
        "held_out_rows": len(client.held_out),
        **client.release.planned(),
    }
    public = {name: client.door.public(value) for name, value in fields.items()}
    return client.door.message(m.HELLO, client.name, 0, public)


class SimulatedData:
    """The records of a simulation, spread over its clients.

    Parameters
    ----------
    scenario
        Data, partition and seed are used.
    clients
        Number of clients.

    Attributes
    ----------
    needs_labels
        Whether a record without a label is refused.
    used
        How many records of the client that was built last ``train``, are ``held_out``, and are
        ``left_out`` as no sample can be made of them.
    """

    needs_labels = True

    def __init__(self, scenario: Scenario, clients: int) -> None:
        self.used: Mapping[str, int] = {}
        self.scenario = scenario
        self.clients = clients
        kind = task_class(scenario.task.kind)
        check_form(scenario.data, labelled=kind.labelled)
        self.label_column = label_column(scenario.data, labelled=kind.labelled)
        labelled = bool(self.label_column) and self.needs_labels
        self.records = kind.records(scenario, "train", labelled=labelled)
        self.test: list[Record] = []
        if scenario.data.test:
            self.test = kind.records(scenario, "test", labelled=labelled)
        for key, own in self._files if labelled else ():  # a share would not know the row
            require_column(own, self.label_column, "data.label", key)
        self.parts = partition(
            self.records, scenario.partition, clients, self.label_column, scenario.seed
        )

    @property
    def _files(self) -> tuple[tuple[str, Sequence[Record]], ...]:
        """The records by key: a device's paths are not told to the server, errors are."""
        return ("data.train", self.records), ("data.test", self.test)

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names: the scenario's, or all that occur in the training data."""
        if self.scenario.task.labels or not self.label_column:
            return self.scenario.task.labels
        return tuple(class_names(self.records, self.scenario.data, "data.train"))

    def rows_of(self, client: int) -> tuple[list[Record], list[Record]]:
        """Return one client's training and held-out records.

        With a common test file client k evaluates rows k, k + clients, ..., so that the clients
        together evaluate every row once.
        """
        if self.test:
            train: Sequence[int] = self.parts[client].tolist()
            return [self.records[i] for i in train], list(self.test[client :: self.clients])
        kept, held_out = holdout_split(
            self.parts[client], self.scenario.data.holdout, self.scenario.seed, client
        )
        return [self.records[i] for i in kept], [self.records[i] for i in held_out]

    def build(
        self,
        parts: EdgeParts,
        client: int,
        part: int | None = None,
        terms: OwnerTerms | None = None,
        run: str = "",
    ) -> EdgeClient:
        """Encode one client's records and build it.

        Parameters
        ----------
        parts
            What the clients of this process share.
        client
            Number of the client.
        part
            Its share of the records, by default its own.
        terms
            What its owner allows.
        run
            Name of the run; empty where it has none.
        """
        rows = self.rows_of(client if part is None else part)
        samples = (self.encode(rows[0], parts), self.encode(rows[1], parts))
        for own in samples if parts.tokenizer is None else ():
            check_single(self.scenario, own)
        self.used = _used(rows, samples)
        records = None
        if terms is not None and terms.ledger is not None:
            records = origins(rows, samples)
        return build_client(parts, client, samples[0], samples[1], terms, records, run)

    def encode(self, records: Sequence[Record], parts: EdgeParts) -> list[Sample]:
        """Return the samples of records; an error names the row of the record in its file."""
        try:
            return encode_records(
                parts.model.task,
                records,
                parts.tokenizer,
                self.scenario.data,
                len(parts.model.front.tokens.weight) if parts.tokenizer else 0,
            )
        except RecordError as error:
            raise self._named(records[error.place], error) from None

    def _named(self, record: Record, error: RecordError) -> FedloraError:
        """Return an error with the row of its record in the file that it came from."""
        for key, own in self._files:
            for row, other in enumerate(own):
                if other is record:
                    return error.of(key, row)
        return error

    def holdings(self, client: int, resolved: Scenario) -> dict[str, Any]:
        """Return what a server is told of a simulated client's rows: classes, and rows of each.

        They are those of the partition's column where records have no label. Under privacy the
        server is not told how often each occurs: that is exact.

        Parameters
        ----------
        client
            Its number.
        resolved
            The scenario with the classes that were found.
        """
        classes = {"classes": list(resolved.task.labels)}
        if resolved.privacy.enabled:
            return classes
        column = self.label_column or self.scenario.partition.column
        counts: dict[str, int] = {}
        for index in self.parts[client].tolist():
            value = self.records[index].get(column, "") if column else ""
            counts[value] = counts.get(value, 0) + 1
        return {**classes, "labels": list(counts), "label_rows": list(counts.values())}


def _used(
    rows: Sequence[Sequence[Record]], samples: Sequence[Sequence[Sample]]
) -> Mapping[str, int]:
    """Return how many records gave samples; one may give several."""
    train, held_out = (len({sample.source for sample in own}) for own in samples)
    left_out = sum(map(len, rows)) - train - held_out
    return {"train": train, "held_out": held_out, "left_out": left_out}
