"""``fedlora infer``: what a device does with the backbone and the adapter that it was delivered."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import typer
from safetensors import SafetensorError, safe_open
from torch import nn

from fedlora.commands.prompts import DEVICE_FILE, TaskFacts, prompt_ids
from fedlora.commands.run_model import (
    chosen_adapter,
    chosen_head,
    read_embedding,
    why_no_head,
)
from fedlora.config import load_scenario, read_section
from fedlora.errors import FedloraError
from fedlora.lora.classifier import HEAD, Head, with_head
from fedlora.lora.export import CONFIG_FILE, PREFIX, WEIGHTS_FILE, Adapter
from fedlora.registry import use_python_path
from fedlora.report import RunFolder
from fedlora.split import (
    Checkpoint,
    Cut,
    PlainLlama,
    compute_as_kept,
    find_family,
    load_whole,
    model_folder,
    plain_llama,
    pool_packed,
    take_embedding,
)
from fedlora.tasks import (
    Tokenizer,
    lacking_token,
    load_tokenizer,
    require_texts,
    task_class,
)
from fedlora.unicode import require_unicode


@dataclass(frozen=True)
class _Device:
    """A whole model, and what it is for.

    Attributes
    ----------
    states
        Maps a text's tokens (tokens,) to backbone and adapter's states (tokens, width); of a pooled
        task.
    model
        Backbone with adapter; of others.
    tokenizer
        The backbone's.
    facts
        What it is for.
    head
        The head that was trained; None without one.
    place
        Where the head would be.
    rows
        Of the token embedding.
    """

    states: Callable[[torch.Tensor], torch.Tensor] | None
    model: Any
    tokenizer: Tokenizer
    facts: TaskFacts
    head: Head | None
    place: Path
    rows: int

    def check(self, number: int, ids: Sequence[int]) -> None:
        """Refuse a text with a token that the embedding lacks."""
        if lacking := lacking_token(ids, self.tokenizer, self.rows):
            raise FedloraError(f"text {number} has {lacking}")


def infer_texts(
    folder: Path,
    texts: Sequence[str],
    client: str | None,
    rank: int | None,
    max_new_tokens: int,
    model: str = "",
) -> None:
    """Print one line for each text: label and probability, or the continuation.

    Parameters
    ----------
    folder
        A finished run, or what ``fedlora export`` wrote of one.
    texts
        What to classify or continue.
    client, rank
        Whose adapter, or which rank, of a run to use.
    max_new_tokens
        Length of a continuation.
    model
        The backbone on this machine, where it is not at the run's ``model.path``.

    Raises
    ------
    FedloraError
        When a text is no UTF-8, or empty where it is classified, when there is no adapter, no
        backbone, or for classification no shared head, or one of them cannot be read, or when each
        client has trained a token embedding of its own.
    """
    for number, text in enumerate(texts, 1):
        require_unicode(text, f"text {number}", "give it as UTF-8")
    if (folder / DEVICE_FILE).is_file():
        if client is not None or rank is not None:
            raise FedloraError(
                f"{folder} is an export, whose ranks are fixed; give the run's folder to choose a "
                "client or a rank"
            )
        device = _from_export(folder, model)
    else:
        device = _from_run(RunFolder(folder), client, rank, model)
    if task_class(device.facts.task.kind).pooled:
        if "" in texts:  # which no record may be either
            raise FedloraError(
                f"text {texts.index('') + 1} is empty, so there is nothing to classify; give a text"
            )
        answers = _labels(device, texts)
    else:
        answers = _continuations(device, texts, max_new_tokens)
    for answer in answers:
        typer.echo(answer)


@dataclass(frozen=True)
class _OfRun:
    """A run's adapter, and the rank of each projection at which it is used."""

    adapter: Adapter
    ranks: Sequence[int]


def _from_run(folder: RunFolder, client: str | None, rank: int | None, model: str) -> _Device:
    scenario = load_scenario(folder.scenario)
    use_python_path(scenario.python_path, needed=":" in scenario.task.kind)
    facts = TaskFacts.of(scenario)
    require_texts(facts.task.kind, "fedlora infer")
    adapter, ranks = chosen_adapter(folder, client, rank)
    summary = folder.read_summary()
    ended = summary is not None and not summary.get("unfinished")
    head = chosen_head(folder, client)
    if task_class(facts.task.kind).pooled and not ended and head is None:
        raise FedloraError(
            f"the run in {folder.path} has not ended, and its head is written at the end; go on "
            f"with it by fedlora resume {folder.path}"
        )
    if adapter.also and not any(ranks):
        raise FedloraError(
            f"client {client} has rank 0 everywhere, and the run trained norms and positions "
            "(lora.also) that every client's texts pass; give --rank"
        )
    return _device(facts, _OfRun(adapter, ranks), head, folder.path, model, adapter.revision)


def _from_export(folder: Path, model: str) -> _Device:
    try:
        facts = read_section(TaskFacts, json.loads((folder / DEVICE_FILE).read_bytes()))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise FedloraError(
            f"{folder} is no export that can be read ({error}); write it again with fedlora export"
        ) from None
    head = chosen_head(RunFolder(folder), None)
    return _device(facts, folder, head, folder, model, _revision(folder))


def _revision(folder: Path) -> str | None:
    """Return the backbone's commit on the hub; what else is wrong with the file, PEFT says."""
    try:
        found = json.loads((folder / CONFIG_FILE).read_bytes())["revision"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def _embedding(facts: TaskFacts, place: Path) -> torch.Tensor | None:
    """Return the token embedding that a run's clients trained; None where it is the backbone's."""
    if facts.embedding == "personal":
        raise FedloraError(
            f"each client of the run in {place} has trained a token embedding of its own, which "
            "stays with it, and over the backbone's the answers would be others; train with "
            "front.share=round or step, or with train.embedding=false"
        )
    return read_embedding(RunFolder(place).front) if facts.embedding == "shared" else None


def _device(
    facts: TaskFacts,
    adapter: _OfRun | Path,
    head: Head | None,
    place: Path,
    model: str,
    revision: str | None,
) -> _Device:
    path = model_folder(model) if model else model_folder(facts.model, revision)
    checkpoint = Checkpoint(path)  # says in a sentence what is wrong with a folder
    find_family(checkpoint)
    Cut.of(checkpoint, facts.client_front, facts.client_back)
    pooled = task_class(facts.task.kind).pooled
    tokenizer, rows = load_tokenizer(path), checkpoint.size("vocab_size")
    made = partial(_Device, tokenizer=tokenizer, facts=facts, head=head, place=place, rows=rows)
    embedding = _embedding(facts, place)
    if pooled and embedding is None and (plain := _plain(facts, adapter, checkpoint)) is not None:
        return made(plain, None)
    whole = _hugging_face(facts, adapter, head, embedding, checkpoint)
    if not pooled:
        return made(None, whole)
    return made(lambda ids: whole(input_ids=ids[None]).last_hidden_state[0], None)


def _plain(facts: TaskFacts, adapter: _OfRun | Path, checkpoint: Checkpoint) -> PlainLlama | None:
    """Return backbone and adapter without transformers and PEFT, where that gives the same."""
    if isinstance(adapter, Path) or adapter.adapter.also or facts.weights != "fp32":
        return None
    return plain_llama(checkpoint, adapter.adapter.low_rank(adapter.ranks))


def _hugging_face(
    facts: TaskFacts,
    adapter: _OfRun | Path,
    head: Head | None,
    embedding: torch.Tensor | None,
    checkpoint: Checkpoint,
) -> Any:
    """Return Hugging Face's model with the adapter, and with the run's token embedding."""
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()  # one line for each text is all that a script wants to read
    set_verbosity_error()  # and of a backbone that does not fit, one sentence
    path, pooled = checkpoint.folder, task_class(facts.task.kind).pooled
    try:
        base: Any = load_whole(path, pooled=pooled).eval()
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise FedloraError(
            f"the model in {path} cannot be loaded ({_first_line(error)}); copy it anew"
        ) from None
    if embedding is not None:
        take_embedding(base, embedding)
    if facts.weights != "fp32":
        cut = Cut.of(checkpoint, facts.client_front, facts.client_back)
        layers = find_family(checkpoint).layers
        compute_as_kept(base, layers, range(cut.start, cut.stop), facts.weights)
    if head is not None and not pooled:
        output = base.get_output_embeddings()
        output.weight = nn.Parameter(head.weight.to(output.weight.dtype))
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) if isinstance(adapter, _OfRun) else adapter
        if isinstance(adapter, _OfRun):
            if not any(adapter.ranks):
                return base
            adapter.adapter.save(saved, adapter.ranks)
        try:
            return _with_adapter(base, saved, path)
        except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            raise FedloraError(
                f"the adapter in {saved} cannot be put on the model in {path} "
                f"({_first_line(error)}); give the backbone of the run, or export it again"
            ) from None


def _with_adapter(base: nn.Module, adapter: Path, source: Path) -> nn.Module:
    """Return a model with an adapter, which may be one of a classifier around it."""
    from peft import PeftModel

    settings = json.loads((adapter / CONFIG_FILE).read_bytes())
    if settings.get("task_type") != "SEQ_CLS":
        found: nn.Module = PeftModel.from_pretrained(base, str(adapter)).eval()
        return found
    with safe_open(adapter / WEIGHTS_FILE, framework="pt") as file:
        whole = with_head(base, source, Head(file.get_tensor(f"{PREFIX}{HEAD}.weight")))
    prefix = whole.base_model_prefix
    model = PeftModel.from_pretrained(whole, str(adapter)).eval()
    inner: nn.Module = getattr(model.get_base_model(), prefix)
    return inner


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(":.")


@torch.no_grad()
def _labels(device: _Device, texts: Sequence[str]) -> Iterator[str]:
    head = device.head
    if head is None:
        why = why_no_head(device.place)
        raise FedloraError(f"{device.place} has no head to classify with: {why}")
    task = device.facts.task
    for number, text in enumerate(texts, 1):
        ids = device.tokenizer.encode(text, task.max_length)
        device.check(number, ids)
        assert device.states is not None  # the task pools
        states = device.states(torch.tensor(ids))
        pooled = pool_packed(states.float(), [len(ids)], task.pool)
        chances = (pooled @ head.weight.T).softmax(-1)[0]
        best = int(chances.argmax())
        yield f"{head.names[best]}\t{float(chances[best]):.3f}\t{text}"


@torch.no_grad()
def _continuations(device: _Device, texts: Sequence[str], max_new_tokens: int) -> Iterator[str]:
    tokenizer = device.tokenizer
    for number, text in enumerate(texts, 1):
        ids = prompt_ids(device.facts, tokenizer, text)
        device.check(number, ids)
        output = device.model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.eos_id or 0,
        )
        yield f"{text}\t{tokenizer.decode(output[0, len(ids) :].tolist()).strip()}"
