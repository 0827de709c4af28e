"""``fedlora infer``: what a device does with the backbone and the adapter that it was delivered."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import typer
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from fedlora.commands.export import DEVICE_FILE
from fedlora.commands.prompts import TaskFacts, prompt_ids
from fedlora.commands.run_model import chosen_adapter, chosen_head, read_head
from fedlora.config import load_scenario, read_section
from fedlora.errors import FedloraError
from fedlora.lora.classifier import HEAD, Head, with_head
from fedlora.lora.export import CONFIG_FILE, PREFIX, WEIGHTS_FILE
from fedlora.registry import use_python_path
from fedlora.report import RunFolder
from fedlora.split import (
    Checkpoint,
    Cut,
    compute_as_kept,
    find_family,
    load_whole,
    model_folder,
    pool_packed,
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
    model
        Backbone with adapter.
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

    model: nn.Module
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
        When a text is no UTF-8, when there is no adapter, no backbone, or for classification no
        shared head, or one of them cannot be read.
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
        answers = _labels(device, texts)
    else:
        answers = _continuations(device, texts, max_new_tokens)
    for answer in answers:
        typer.echo(answer)


def _from_run(folder: RunFolder, client: str | None, rank: int | None, model: str) -> _Device:
    scenario = load_scenario(folder.scenario)
    if ":" in scenario.task.kind:
        use_python_path(scenario.python_path)
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
    with tempfile.TemporaryDirectory() as place:
        if any(ranks):
            adapter.save(Path(place), ranks)
        saved = Path(place) if any(ranks) else None
        return _device(facts, saved, head, folder.path, model, adapter.revision)


def _from_export(folder: Path, model: str) -> _Device:
    try:
        facts = read_section(TaskFacts, json.loads((folder / DEVICE_FILE).read_bytes()))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise FedloraError(
            f"{folder} is no export that can be read ({error}); write it again with fedlora export"
        ) from None
    place = folder / "head.safetensors"
    head = read_head(place) if place.exists() else None
    return _device(facts, folder, head, folder, model, _revision(folder))


def _revision(folder: Path) -> str | None:
    """Return the backbone's commit on the hub; what else is wrong with the file, PEFT says."""
    try:
        found = json.loads((folder / CONFIG_FILE).read_bytes())["revision"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def _device(
    facts: TaskFacts,
    adapter: Path | None,
    head: Head | None,
    place: Path,
    model: str,
    revision: str | None,
) -> _Device:
    disable_progress_bar()  # one line for each text is all that a script wants to read
    set_verbosity_error()  # and of a backbone that does not fit, one sentence
    path = model_folder(model) if model else model_folder(facts.model, revision)
    checkpoint = Checkpoint(path)  # says in a sentence what is wrong with a folder
    family = find_family(checkpoint)
    cut = Cut.of(checkpoint, facts.client_front, facts.client_back)
    tokenizer = load_tokenizer(path)
    try:
        base: nn.Module = load_whole(path, pooled=task_class(facts.task.kind).pooled).eval()
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise FedloraError(
            f"the model in {path} cannot be loaded ({_first_line(error)}); copy it anew"
        ) from None
    if facts.weights != "fp32":
        compute_as_kept(base, family.layers, range(cut.start, cut.stop), facts.weights)
    if head is not None and not task_class(facts.task.kind).pooled:
        output = base.get_output_embeddings()  # type: ignore[operator]
        output.weight = nn.Parameter(head.weight.to(output.weight.dtype))
    if adapter is not None:
        try:
            base = _with_adapter(base, adapter, path)
        except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            raise FedloraError(
                f"the adapter in {adapter} cannot be put on the model in {path} "
                f"({_first_line(error)}); give the backbone of the run, or export it again"
            ) from None
    return _Device(base, tokenizer, facts, head, place, checkpoint.size("vocab_size"))


def _with_adapter(base: nn.Module, adapter: Path, source: Path) -> nn.Module:
    """Return a model with an adapter, which may be one of a classifier around it."""
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
        raise FedloraError(
            f"{device.place} has no shared head: personal heads stay on their clients; train "
            "with head.share=step or round to classify here"
        )
    task = device.facts.task
    for number, text in enumerate(texts, 1):
        ids = device.tokenizer.encode(text, task.max_length)
        device.check(number, ids)
        states = device.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
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
        output = device.model.generate(  # type: ignore[operator]  # PEFT hands it to the base model
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.eos_id or 0,
        )
        yield f"{text}\t{tokenizer.decode(output[0, len(ids) :].tolist()).strip()}"
