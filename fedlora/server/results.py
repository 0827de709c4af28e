"""What a finished run leaves on disk: adapter, summary, and who held what."""

from __future__ import annotations

import json
import logging
import resource
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import save

from fedlora.errors import printable
from fedlora.lora.export import Adapter, namesakes
from fedlora.report import RunFolder, Summary, client_ids
from fedlora.server.exchange.holdings import classes_of, holdings
from fedlora.server.held_out import full_evaluation
from fedlora.server.run import ServerRun
from fedlora.split import published_name
from fedlora.storage import replace_file
from fedlora.tasks import make_task, task_class

log = logging.getLogger("fedlora.server")


def write_results(
    folder: RunFolder, server: ServerRun, results: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write adapter, shared head and summary.

    Parameters
    ----------
    folder
        The run's folder, which holds its rounds.
    server
        The run.
    results
        What the hosts of simulated clients tell, without privacy with label counts; empty in a
        deployment, where nothing that a client says at the end is written down.
    """
    export(server).save(folder.adapter)
    scenario, training = server.scenario, server.training
    classes = classes_of(scenario.task.labels, results)
    if training.head is not None:
        weights = {name: p.detach() for name, p in training.head.parameters.items()}
        replace_file(folder.head, save(weights, {"labels": json.dumps(classes)}))
    if training.sharing.front is not None:
        weights = {name: p.detach() for name, p in training.sharing.front.parameters.items()}
        replace_file(folder.front, save(weights))
    held = holdings(results)
    rounds = folder.read_metrics()
    task = make_task(task_class(scenario.task.kind), scenario.task, classes)
    full = full_evaluation(training.evaluated, task, classes)
    if full is not None:
        folder.write_evaluation(full)
        _tell_absent(full["all"].get("auc_absent") or ())
    summary = Summary.from_rounds(
        rounds,
        kept=training.kept,
        **training.summary_fields(),
        clients=len({*server.cohort.clients, *client_ids(rounds)}),
        seed=scenario.seed,
        peak_rss_server_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        extra={
            "task": scenario.task.kind,
            "weights": scenario.model.weights,
            "labels": classes,
            "projections": [(p.layer, p.name) for p in server.training.ranking.space.projections],
            "label_counts": held,
            "outside_air_bits": server.air.ledger.outside_bits(),
            "lost_clients": server.cohort.lost,
            "metrics": full["all"]["metrics"] if full else {},
            "auc_absent": full["all"].get("auc_absent", []) if full else [],
            "kept_round": training.kept,
            "ended_early": training.best.over,
        },
    )
    folder.write_summary(summary)


def _tell_absent(classes: Sequence[str]) -> None:
    """Say which classes have no area under the ROC curve."""
    if classes:
        named = ", ".join(printable(repr(name), 60) for name in classes[:5])
        more = f" and {len(classes) - 5} more" if len(classes) > 5 else ""
        log.warning(
            "the AUC is the mean over the other classes: no held-out row is of %s%s", named, more
        )


def export(server: ServerRun) -> Adapter:
    """Return the adapter at full rank, with the names that plain PEFT expects."""
    family = server.engine.blocks.family
    language = task_class(server.scenario.task.kind).language()
    prefix = family.prefix if language else ""
    checkpoint = server.checkpoint
    name, revision = published_name(server.scenario.model.path, checkpoint.folder)
    also = {prefix + n: t.float().cpu() for n, t in server.engine.also.values().items()}
    stored = {prefix + own.removeprefix(family.prefix): own for own in checkpoint.entries}
    beside = {n: checkpoint.load(stored[n], torch.float32) for n in namesakes(stored, also)}
    return Adapter(
        {
            prefix + p.name: (p.A.detach().float().cpu(), p.B.detach().float().cpu())
            for p in server.engine.projections
        },
        server.scenario.lora.alpha,
        name,
        "CAUSAL_LM" if language else "FEATURE_EXTRACTION",
        server.engine.blocks.fan_in_fan_out,
        revision,
        also=also,
        beside=beside,
    )
