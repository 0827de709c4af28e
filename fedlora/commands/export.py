"""``fedlora export``: a run's adapter in the form that others load."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import typer
from safetensors.torch import save

from fedlora.commands.card_lines import Export
from fedlora.commands.model_card import model_card
from fedlora.commands.prompts import DEVICE_FILE, TaskFacts
from fedlora.commands.run_model import (
    chosen_adapter,
    chosen_head,
    read_embedding,
    why_no_head,
)
from fedlora.config import load_scenario
from fedlora.errors import FedloraError
from fedlora.lora.classifier import (
    HEAD,
    Classifier,
    Padding,
    embedding_stored,
    require_same,
    with_head,
    write_padding,
)
from fedlora.lora.export import Adapter
from fedlora.registry import use_python_path
from fedlora.report import RunFolder
from fedlora.split import (
    TOKENIZER_FILES,
    Checkpoint,
    Cut,
    check_form,
    compute_as_kept,
    copy_tokenizer,
    find_family,
    is_hub_name,
    take_embedding,
)
from fedlora.storage import FolderKind, replace_file
from fedlora.tasks import load_tokenizer, renders_chat, task_class

CARD = "README.md"
_LANGUAGE_HEAD = "lm_head"

_EXPORT = FolderKind(
    "export",
    ("adapter_config.json", "config.json"),
    (
        *("adapter_config.json", "adapter_model.safetensors", DEVICE_FILE),
        *("head.safetensors", "front.safetensors"),
        *("config.json", "generation_config.json", "model*.safetensors"),
        *("model.safetensors.index.json", CARD, *TOKENIZER_FILES),
    ),
)


def export_run(
    run_folder: Path,
    out: Path,
    format_: str,
    client: str | None,
    rank: int | None,
    *,
    overwrite: bool = False,
) -> None:
    """Write the adapter of a run, and a model card.

    A classifier becomes what transformers' class for classification loads, where that computes what
    the run computes; elsewhere backbone and head are written apart, and the card says why and has
    the lines that put them together. In the format ``peft`` the folder also gets what ``fedlora
    infer`` must know of the task, so that it is all that a device needs beside the backbone.

    Parameters
    ----------
    run_folder
        A finished run.
    out
        Folder to write, which must be empty or absent.
    format_
        ``peft``, ``padded``, ``gguf-ready`` or ``merged``.
    client
        Whose adapter to write: the one that it was last delivered in time. A simulated client's
        personal head goes along.
    rank
        One rank for every projection; by default r_max.
    overwrite
        Whether an earlier export in ``out`` is replaced.

    Raises
    ------
    FedloraError
        When the run has no adapter or no such client, the client was delivered none, the format
        cannot hold the head, or the folder is in use.
    """
    folder = RunFolder(run_folder)
    adapter, ranks = chosen_adapter(folder, client, rank)
    _EXPORT.check_free(out, overwrite=overwrite, option="--out")
    _keep_sources(out, folder)
    if format_ != "merged" and not any(ranks) and adapter.also:
        raise FedloraError(
            f"client {client} has rank 0 everywhere, and the run trained {len(adapter.also)} norms "
            "and positions (lora.also) that every client's texts pass; export as merged"
        )
    if format_ != "merged" and not any(ranks):
        raise FedloraError(
            f"client {client} was delivered no adapter in time; it uses the backbone as it is"
        )
    plan = _Plan(folder, adapter, format_, client, ranks)
    _EXPORT.clear(out)
    plan.write(out)
    typer.echo(
        f"wrote {format_} export of {len(ranks)} projections, mean rank "
        f"{sum(ranks) / len(ranks):.2f}, to {out}"
    )
    if plan.why_not:
        typer.echo(f"{plan.why_not}; {out / CARD} has {plan.lines}")


class _Plan:
    """What is to be written: everything that can be refused is, when it is made."""

    def __init__(
        self,
        folder: RunFolder,
        adapter: Adapter,
        format_: str,
        client: str | None,
        ranks: Sequence[int],
    ) -> None:
        self._folder, self._format, self._client = folder, format_, client
        self._ranks = ranks
        self._adapter = adapter
        self._pooled = adapter.task_type != "CAUSAL_LM"
        self._scenario = load_scenario(folder.scenario) if folder.scenario.is_file() else None
        if self._scenario is not None:
            needed = ":" in self._scenario.task.kind
            use_python_path(self._scenario.python_path, needed=needed)
        self._texts = self._scenario is None or task_class(self._scenario.task.kind).tokens
        self._embeds = "base"
        if self._scenario is not None:
            self._embeds = _facts(folder, adapter).embedding
        self._head = chosen_head(folder, client) if self._texts else None
        self._embedding: torch.Tensor | None = None
        self._classifier: Classifier | None = None
        self._padding: Padding | None = None
        self.why_not = ""
        form = self._scenario.model.few_bits if self._scenario else None
        if form and format_ == "merged":
            check_form(form, "cpu")
        if self._pooled and format_ == "gguf-ready":
            what = "the head of a classifier" if self._texts else "a task's front and head"
            raise FedloraError(
                f"--format gguf-ready cannot hold {what}, as llama.cpp's adapters have projections "
                "alone; take peft or merged"
            )
        if self._embeds == "shared":
            self._embedding = read_embedding(folder.front)
            if format_ in ("padded", "gguf-ready"):
                raise FedloraError(
                    f"--format {format_} cannot hold the token embedding that the clients trained "
                    "(train.embedding), as its readers take an adapter's projections alone; take "
                    "peft or merged"
                )
        if not self._texts:
            self.why_not = self._other_inputs()
        elif self._embeds == "personal":
            self.why_not = (
                "each client has trained a token embedding of its own, which stays with it, so "
                "that over the backbone's, as here, answers are others than the clients'"
            )
        elif self._pooled:
            try:
                self._classifier = self._fitting()
            except FedloraError as error:
                self.why_not = str(error)

    @property
    def lines(self) -> str:
        """What the card has to load it with, as a sentence's end."""
        if not self._texts:
            return "lines that load blocks and adapter"
        own = self._embeds == "personal"
        if self._pooled and self._head is None:
            return "lines that load what is here, up to what the head is given"
        return "lines that load what is here" if own else "the lines that give this run's answers"

    def _other_inputs(self) -> str:
        """Say what is there of the front and the head of a task that reads no texts."""
        there = [place.name for place in (self._folder.front, self._folder.head) if place.exists()]
        holds = "holds" if len(there) == 1 else "hold"
        shared = f"{' and '.join(there)} {holds} what the clients share of them" if there else ""
        return (
            f"the task {self._kind} reads no texts, and transformers has nothing of its front and "
            f"head; {shared or 'they stay on the clients'}"
        )

    @property
    def _kind(self) -> str:
        return "" if self._scenario is None else self._scenario.task.kind

    def _fitting(self) -> Classifier:
        scenario, head = self._scenario, self._head
        if head is None:
            why, shared = why_no_head(self._folder.path), self._folder.head.exists()
            more = "" if shared else ", or name a simulated client by --client"
            raise FedloraError(f"no head is put on the model: {why}{more}")
        if scenario is None or not task_class(scenario.task.kind).pooled:
            raise FedloraError("the run's folder has no scenario that says how it pools")
        if not task_class(scenario.task.kind).labelled:
            raise FedloraError(f"task.kind {scenario.task.kind} has no classes")
        if self._embedding is not None and self._format != "merged":
            raise FedloraError(
                "the token embedding that the clients trained goes along as front.safetensors, "
                "which transformers' class for classification does not read; export as merged for "
                "that"
            )
        source = self._source()
        found = Classifier.of(source, scenario.task.pool, head.weight.shape[1])
        self._padding = Padding.of(source)
        if self._format == "merged":
            return found
        if self._padding.always_wrong:
            raise FedloraError(
                f"transformers' {found.name} pools the last token that is no padding, and every "
                f"row ends in the model's padding token (pad_token_id "
                f"{self._padding.declared}), so that the one before would be pooled; export as "
                "merged, which gets a padding token of its own"
            )
        if not embedding_stored(source):
            raise FedloraError(
                "the backbone stores its token embedding as its language head's alone, and "
                f"transformers' {found.name} would begin with random numbers; export as merged"
            )
        return found

    def _source(self) -> Path:
        return self._adapter.source(_model(self._folder))

    def write(self, out: Path) -> None:
        """Write everything."""
        adapter, head = self._adapter, self._head
        if self._format == "merged":
            truncated = adapter.truncated(self._ranks)
            model = _model(self._folder)
            truncated.merge(out, model, partial(self._whole, out), self._as_trained)
        else:
            if self._classifier is not None and head is not None:
                prefix = self._classifier.prefix
                adapter = adapter.in_classifier(prefix, HEAD, head.weight)
            elif not self._pooled and head is not None:
                adapter = dataclasses.replace(adapter, head=(_LANGUAGE_HEAD, head.weight))
            if self._format == "padded":
                adapter.truncated(self._ranks).save(out)
            elif self._format == "gguf-ready":
                adapter.save_with_one_alpha(out, self._ranks)
            else:
                adapter.save(out, self._ranks)
                _write_device_files(self._folder, out, self._adapter)
        self._write_ends(out)
        self._write_card(out)

    def _as_trained(self, model: Any) -> None:
        """Give a model the embedding and the matrices that the adapter was trained over."""
        if self._embedding is not None:
            take_embedding(model, self._embedding)
        form = self._scenario.model.few_bits if self._scenario else None
        if self._scenario is not None and form:
            checkpoint, config = Checkpoint(self._source()), self._scenario.model
            cut = Cut.of(checkpoint, config.client_front, config.client_back)
            layers = find_family(checkpoint).layers
            compute_as_kept(model, layers, range(cut.start, cut.stop), form)

    def _whole(self, out: Path, merged: Any, source: Path) -> Any:
        """Return a merged model with the head, and write its tokenizer."""
        head = self._head
        if self._classifier is not None and self._padding is not None and head is not None:
            whole = with_head(merged, source, head)
            require_same(whole, head)
            write_padding(whole, source, out, self._padding)
            return whole
        copy_tokenizer(source, out)
        if not self._pooled and head is not None:
            weight = torch.nn.Parameter(head.weight.to(merged.dtype))
            merged.get_output_embeddings().weight = weight
            merged.config.tie_word_embeddings = False
        return merged

    def _write_ends(self, out: Path) -> None:
        """Write what neither the adapter nor the merged model holds of front and head."""
        shared, front = self._folder.head, self._folder.front
        apart = self._embedding is not None and self._format != "merged"
        for place, goes in (
            (front, apart or not self._texts),
            (shared, self._head is None),  # a module of the task's own
        ):
            if goes and place.exists():
                shutil.copyfile(place, out / place.name)
        whole = self._format == "merged" and (self._classifier is not None or not self._pooled)
        if self._head is None or whole:
            return
        if shared.exists():
            shutil.copyfile(shared, out / shared.name)
            return
        metadata = {"labels": json.dumps(self._head.names)}
        replace_file(out / shared.name, save({"weight": self._head.weight}, metadata))

    def _write_card(self, out: Path) -> None:
        padding, scenario = self._padding, self._scenario
        facts = _facts(self._folder, self._adapter) if scenario is not None else None
        opening: Sequence[int] = ()
        embedded, chat = True, scenario is not None and scenario.data.renders == "yes"
        if scenario is not None:
            try:
                source = self._source()
                tokenizer = load_tokenizer(source)
                opening = tokenizer.opening
                chat = renders_chat(scenario.data.renders, tokenizer)
                embedded = embedding_stored(source)
            except FedloraError:  # the backbone is not on this machine
                pass
        export = Export(
            self._format,
            self._adapter.base_model,
            self._adapter.revision,
            self._ranks,
            self._client,
            self._head if self._pooled else None,
            self._classifier.name if self._classifier else "",
            self.why_not,
            padding.token_id if padding else None,
            padding.declared if padding else None,
            opening,
            embedded,
            chat,
            self._texts,
            self._embedding is not None and self._format != "merged",
        )
        card = model_card(export, self._pooled, facts, scenario, self._folder.read_summary() or {})
        replace_file(out / CARD, card.encode())


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


def _facts(folder: RunFolder, adapter: Adapter) -> TaskFacts:
    facts = TaskFacts.of(load_scenario(folder.scenario))
    if adapter.revision and not is_hub_name(facts.model):  # a place in this machine's cache
        facts = dataclasses.replace(facts, model=f"hub:{adapter.base_model}")
    return facts


def _write_device_files(folder: RunFolder, out: Path, adapter: Adapter) -> None:
    if folder.scenario.is_file():
        text = json.dumps(dataclasses.asdict(_facts(folder, adapter)), indent=1)
        replace_file(out / DEVICE_FILE, f"{text}\n".encode())
