"""Putting clients together: model parts, data, head and report from a scenario."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from clients.edge_client import EdgeClient
from clients.edge_model import EdgeModel
from clients.head import ClientHead
from clients.held_out_texts import HeldOutTexts, Speech
from clients.owner import Origins, OwnerTerms, Private, PrivateSamples
from clients.release.build import build_release
from clients.reports import simulated_report
from clients.text_statistics import text_statistics
from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.geometry import Geometry
from fedlora.link import PROTOCOL, Frame, Identity, messages as m
from fedlora.ranks import DataStatistics
from fedlora.split import DTYPES, Back, Checkpoint, Front, check_conformity, model_folder
from fedlora.tasks import (
    Sample,
    Tokenizer,
    check_front,
    check_length,
    check_pool,
    check_text_scores,
    check_unit,
    end_tokens,
    fitting_tokenizer,
    front_of,
    head_of,
    make_task,
    task_class,
)

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
            self.scenario.model.precision,
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
    check_unit(scenario)
    if checkpoint.manifest:  # of a whole model the server, which has transformers, makes sure
        check_conformity(checkpoint, language=kind.language())
    dtype = DTYPES[scenario.model.dtype]
    geometry = Geometry.of(scenario, checkpoint)
    task = make_task(kind, scenario.task, scenario.task.labels)
    embedding = front_of(task, checkpoint, dtype, geometry.embedding_width, scenario.seed)
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
    model.geometry.check_link(scenario)
    module = head_of(
        model.task,
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
    """Return a name for what makes activations of records: model, cut, task, tokenizer and seed.

    Whole sections go into it: whatever is left out and changes an activation would have the noise
    of another one on it again, and the difference of the two would tell both.
    """
    scenario = parts.scenario
    model = {key: value for key, value in asdict(scenario.model).items() if key != "path"}
    made_by = [parts.identity.to_dict(), scenario.seed, model, asdict(scenario.task)]
    text = json.dumps(made_by, sort_keys=True)
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
