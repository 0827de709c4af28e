"""``fedlora infer``: what a device does with the backbone and the adapter that it was delivered."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import typer
from peft import PeftModel
from safetensors import safe_open
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

from fedlora.commands.export import chosen_ranks
from fedlora.config import Scenario, load_scenario
from fedlora.errors import FedloraError
from fedlora.lora.export import Adapter
from fedlora.report.run_folder import RunFolder
from fedlora.server.results import head_file
from fedlora.split.edge import pool_packed
from fedlora.split.resolve import model_folder
from fedlora.tasks.tokenizer import Tokenizer, load_tokenizer


def infer_texts(
    run_folder: Path,
    texts: Sequence[str],
    client: str | None,
    rank: int | None,
    max_new_tokens: int,
) -> None:
    """Print one line for each text: label and probability, or the continuation.

    Parameters
    ----------
    run_folder
        A finished run.
    texts
        What to classify or continue.
    client, rank
        Whose ranks, or which rank, to use.
    max_new_tokens
        Length of a continuation.

    Raises
    ------
    FedloraError
        When the run has no adapter, or for classification no shared head.
    """
    folder = RunFolder(run_folder)
    scenario = load_scenario(folder.scenario)
    adapter = Adapter.load(folder.adapter)
    ranks = chosen_ranks(folder, adapter, client, rank)
    model = _model(scenario, adapter, ranks)
    tokenizer = load_tokenizer(model_folder(scenario.model.path))
    if adapter.task_type == "CAUSAL_LM":
        answers = _continuations(model, tokenizer, scenario, texts, max_new_tokens)
    else:
        answers = _labels(model, tokenizer, scenario, folder, texts)
    for answer in answers:
        typer.echo(answer)


def _model(scenario: Scenario, adapter: Adapter, ranks: Sequence[int]) -> nn.Module:
    cls = AutoModelForCausalLM if adapter.task_type == "CAUSAL_LM" else AutoModel
    base: nn.Module = cls.from_pretrained(model_folder(scenario.model.path)).eval()
    if not any(ranks):
        return base
    with tempfile.TemporaryDirectory() as place:
        adapter.save(Path(place), ranks)
        model: nn.Module = PeftModel.from_pretrained(base, place).eval()
        return model


@torch.no_grad()
def _labels(
    model: nn.Module,
    tokenizer: Tokenizer,
    scenario: Scenario,
    folder: RunFolder,
    texts: Sequence[str],
) -> Iterator[str]:
    path = head_file(folder)
    if not path.exists():
        raise FedloraError(
            f"{folder.path} has no shared head (head.share is {scenario.head.share}): personal "
            "heads stay on their clients; train with head.share=step or round to classify here"
        )
    with safe_open(path, framework="pt") as file:
        weight: torch.Tensor = file.get_tensor("weight")
        labels = json.loads(file.metadata()["labels"])
    for text in texts:
        ids = tokenizer.encode(text, scenario.task.max_length)
        states = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        pooled = pool_packed(states.float(), [len(ids)], scenario.task.pool)
        chances = (pooled @ weight.T).softmax(-1)[0]
        best = int(chances.argmax())
        yield f"{labels[best]}\t{float(chances[best]):.3f}\t{text}"


@torch.no_grad()
def _continuations(
    model: nn.Module,
    tokenizer: Tokenizer,
    scenario: Scenario,
    texts: Sequence[str],
    max_new_tokens: int,
) -> Iterator[str]:
    for text in texts:
        prompt = text + scenario.data.prompt_separator
        ids = [*tokenizer.opening, *tokenizer.encode(prompt, 1 << 20, special=False)]
        output = model.generate(  # type: ignore[operator]  # PEFT hands it to the base model
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.eos_id or 0,
        )
        yield f"{text}\t{tokenizer.decode(output[0, len(ids) :].tolist()).strip()}"
