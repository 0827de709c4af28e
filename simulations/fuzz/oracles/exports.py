"""What is exported loads in plain PEFT and gives the logits and losses that the run had."""

from __future__ import annotations

import copy
import io
import json
import math
import re
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification

from clients.edge_client import EdgeClient
from fedlora.commands.export import export_run
from fedlora.commands.infer import infer_texts
from fedlora.commands.prompts import TaskFacts
from fedlora.config import with_overrides
from fedlora.lora.export import CONFIG_FILE
from fedlora.server.compute import ClientRows
from fedlora.split import Checkpoint, model_folder
from fedlora.tasks import IGNORED, Sample, task_class
from simulations.fuzz.models import SEPARATOR
from simulations.fuzz.trial import Trial
from simulations.fuzz.whole import Whole, as_kept

_TEXTS = (f"w9 w10 {SEPARATOR} w33", f"w50 {SEPARATOR} w77 w20 w21 w8", SEPARATOR)
_CLIENTS = 3
_FORMS = ("peft", "padded", "gguf-ready", "merged")


def exact(trial: Trial) -> bool:
    """Tell whether nothing between client and server rounds or noises."""
    scenario = trial.scenario
    codecs = {scenario.link.activation, scenario.link.representation}
    return (
        scenario.model.dtype == "fp32"
        and codecs <= {"fp32", "distinct", "tokens"}
        and scenario.privacy.activation_sigma is None
    )


def exports(trial: Trial) -> str | None:
    """Hold exports at r_max and at one rank, each in one form, to the run's own logits."""
    if not exact(trial):
        return None
    engine, folder = trial.federation.server.engine, _folder(trial)
    client = trial.federation.clients[0]
    samples = trial.samples(client)[:3]
    for rank in (None, 1 + trial.scenario.seed % trial.scenario.lora.r_max):
        pooled = _pools(trial)
        apart = pooled or trial.scenario.lora.also  # which gguf-ready does not hold
        forms = [f for f in _FORMS if f != "gguf-ready" or not apart]
        if _embeds(trial) == "shared":  # which only these hold
            forms = ["peft", "merged"]
        form = forms[(trial.scenario.seed + len(trial.initial) + (rank or 0)) % len(forms)]
        place = trial.place / f"export-{rank}"
        with redirect_stdout(io.StringIO()):
            export_run(folder, place, form, None, rank)
        ranks = engine.full_ranks() if rank is None else [rank] * len(engine.projections)
        own = _split_logits(trial, client, samples, ranks)
        other = _whole_logits(trial, client, place, samples)
        off = float((own - other).norm() / other.norm().clamp_min(1e-9))
        if off > 1e-4:
            at = f"rank {rank or 'r_max'}"
            return f"logits of an export as {form} at {at} are off by {off:.3g}"
    return ""


def told(trial: Trial) -> str | None:
    """Hold the held-out losses that clients told to their own exports in PEFT."""
    scenario = trial.scenario
    hidden = scenario.privacy.enabled and not scenario.evaluate.report
    if not exact(trial) or hidden:
        return None
    folder, checked = _folder(trial), False
    last = trial.run.rounds[-1]["clients"]
    for client in trial.federation.clients[:_CLIENTS]:
        loss = last.get(client.name, {}).get("loss")
        samples = trial.samples(client, held_out=True)
        if loss is None or not samples:
            continue
        place = _client_export(trial, folder, client.name)
        own = _held_out_loss(trial, client, place, samples)
        if not math.isclose(own, loss, rel_tol=1e-3, abs_tol=1e-4):
            return f"client {client.name} told a loss of {loss:.6g}, its export has {own:.6g}"
        checked = True
    return "" if checked else None


def inferred(trial: Trial) -> str | None:
    """Hold what ``fedlora infer`` says of an export to the same head on plain PEFT."""
    scenario, training = trial.scenario, trial.federation.server.training
    pooled = _pools(trial)
    if (pooled and training.head is None) or _embeds(trial) == "personal":
        return None
    _folder(trial)
    place = trial.place / "export-infer"
    with redirect_stdout(io.StringIO()):
        export_run(trial.run.folder.path, place, "peft", None, None)
    with redirect_stdout(io.StringIO()) as out:
        infer_texts(place, _TEXTS, None, None, 3)
    lines = out.getvalue().splitlines()
    if len(lines) != len(_TEXTS):
        return f"fedlora infer wrote {len(lines)} lines for {len(_TEXTS)} texts"
    rounded = _embeds(trial) == "shared" and scenario.link.end_weight != "fp32"
    if not pooled or rounded or scenario.model.dtype != "fp32":
        return ""
    client, tokenizer = trial.federation.clients[0], trial.federation.parts.tokenizer
    assert tokenizer is not None  # a task of texts
    rows = [tuple(tokenizer.encode(t, scenario.task.max_length)) for t in _TEXTS]
    logits = _whole_logits(trial, client, place, [Sample(ids, 0) for ids in rows])
    for other, line in zip(logits.softmax(-1).amax(-1).tolist(), lines, strict=True):
        own = float(re.findall(r"\t([01]\.\d{3})\t", line)[0])
        if abs(own - other) > 0.0021:
            return f"fedlora infer gives {own} for a text, plain PEFT {other:.3f}"
    return ""


def _folder(trial: Trial) -> Path:
    """Return the run's folder, with its results."""
    if "folder" not in trial.kept:
        trial.kept["folder"] = trial.run.write().path
    folder: Path = trial.kept["folder"]
    return folder


def _client_export(trial: Trial, folder: Path, client: str) -> Path | None:
    """Return the export of a client's own adapter; None where it has none."""
    place = trial.place / f"export-client-{client}"
    try:
        with redirect_stdout(io.StringIO()):
            export_run(folder, place, "peft", client, None)
    except ValueError as error:
        if "delivered no adapter" in str(error):
            return None
        if "export as merged" not in str(error):  # norms and positions without A and B
            raise
        with redirect_stdout(io.StringIO()):
            export_run(folder, place, "merged", client, None)
    return place


def _classifier(trial: Trial, export: Path) -> Any:
    """Return the classifier that transformers and PEFT load; None where the head is apart."""
    settings = json.loads(next(export.glob("*config.json")).read_bytes())
    if settings.get("task_type") == "SEQ_CLS":
        with safe_open(export / "head.safetensors", framework="pt") as file:
            classes = file.get_tensor("weight").shape[0]
        place = model_folder(trial.scenario.model.path)
        base = AutoModelForSequenceClassification.from_pretrained(place, num_labels=classes)
        as_kept(base, trial.scenario, Checkpoint(place))
        return PeftModel.from_pretrained(base, str(export)).eval()
    if "SequenceClassification" in str(settings.get("architectures")):
        return AutoModelForSequenceClassification.from_pretrained(export).eval()
    return None


def _model(trial: Trial, client: EdgeClient, adapter: Path | None) -> tuple[Whole, Any]:
    """Return plain PEFT with an export, and the client's own embedding and head."""
    merged = adapter is not None and not (adapter / CONFIG_FILE).exists()
    if merged:
        # Its matrices are those that the server had, with the adapter in them.
        whole = Whole(with_overrides(trial.scenario, ["model.weights=fp32"]), adapter)
    else:
        if "whole" not in trial.kept:
            trial.kept["whole"] = Whole(trial.scenario)
        whole = copy.deepcopy(trial.kept["whole"])
    with torch.no_grad():
        if _embeds(trial) == "personal" or (_embeds(trial) == "shared" and not merged):
            whole.base.get_input_embeddings().weight.copy_(client.model.front.tokens.weight)
        if not whole.pooled:
            whole.base.get_output_embeddings().weight.copy_(client.head.module.weight)
    if adapter is None or merged:
        return whole, whole.base
    return whole, PeftModel.from_pretrained(whole.base, str(adapter)).eval()


def _embeds(trial: Trial) -> str:
    """Tell which token embedding a trial's clients have, as an export does."""
    return TaskFacts.of(trial.scenario).embedding


def _pools(trial: Trial) -> bool:
    """Tell whether a trial trains a classifier."""
    return task_class(trial.scenario.task.kind).pooled


@torch.no_grad()
def _whole_logits(
    trial: Trial, client: EdgeClient, adapter: Path | None, samples: Sequence[Sample]
) -> torch.Tensor:
    if adapter is not None and (model := _classifier(trial, adapter)) is not None:
        return torch.cat([model(input_ids=torch.tensor([s.ids])).logits for s in samples])
    whole, model = _model(trial, client, adapter)
    out = whole.forward(model, samples)
    if not whole.pooled:
        return out
    weight = client.head.module.get_parameter("weight")
    return out @ weight.T


@torch.no_grad()
def _split_logits(
    trial: Trial, client: EdgeClient, samples: Sequence[Sample], ranks: Sequence[int]
) -> torch.Tensor:
    """Return logits as client and server compute them."""
    lengths = [len(sample.ids) for sample in samples]
    ids = torch.tensor([i for sample in samples for i in sample.ids])
    e = client.model.front(ids, lengths)
    rows = [ClientRows(e, lengths, ranks)]
    z = trial.federation.server.engine.forward(rows, train=False)[0]
    logits: torch.Tensor = client.head.module(client.model.to_head(z, lengths))
    return logits


@torch.no_grad()
def _held_out_loss(
    trial: Trial, client: EdgeClient, adapter: Path | None, samples: Sequence[Sample]
) -> float:
    if _pools(trial):
        logits = _whole_logits(trial, client, adapter, samples)
        targets = torch.tensor([sample.target for sample in samples])
        return float(F.cross_entropy(logits, targets, ignore_index=IGNORED))
    whole, model = _model(trial, client, adapter)
    loss, count = whole.loss(whole.forward(model, samples), samples, None)
    return float(loss) / count
