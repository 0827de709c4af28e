"""Federations of tiny random models for the tests of training, and what they run on."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors

from clients.edge_client import EdgeClient
from fedlora.config import Scenario, with_overrides
from simulations import in_process
from simulations.in_process import Handler, Record

LABELS = ("north", "south", "west")
SEPARATOR = "w5"


def add_tokenizer(folder: Path, kind: str) -> None:
    """Write a word-level tokenizer of 101 ids, which opens and closes texts as the family does."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words = [*special, *(f"w{number}" for number in range(4, 101))]
    backend = tokenizers.Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(special)
    # OPT begins a text with the token that also ends it, GPT-2 has no opening token.
    template = {"opt": "</s> $A", "gpt2": "$A", "bert": "<s> $A </s>"}.get(kind, "<s> $A")
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    backend.save(str(folder / "tokenizer.json"))
    bos = "<s>" if template.startswith("<s>") else "</s>"
    names = {"bos_token": bos, "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    as_it_stands = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | as_it_stands))


def write_records(path: Path, rows: int, *, seed: int = 0, words: int = 20) -> Path:
    """Write texts of 1 to ``words`` words; each class has words of its own, all share others."""
    rng = random.Random(seed)
    lines = ["text,label"]
    for number in range(rows):
        label = number % len(LABELS)
        own = range(10 + 25 * label, 35 + 25 * label)
        text = [f"w{rng.choice([*own, *range(85, 101)])}" for _ in range(rng.randint(1, words))]
        text.insert(rng.randint(0, len(text)), SEPARATOR)
        lines.append(f"{' '.join(text)},{LABELS[label]}")
    path.write_text("\n".join(lines) + "\n")
    return path


def scenario(model: Path, data: Path, *overrides: str) -> Scenario:
    """Return a small scenario; overrides are as on the command line."""
    defaults = [
        f"model.path={model}",
        f"data.train={data}",
        "data.holdout=0.2",
        "partition.min_rows=4",
        "federation.clients=3",
        "lora.r_max=3",
        "lora.alpha=6",
        "task.pool=mean",
        "task.max_length=16",
        "train.rounds=2",
        "train.steps=3",
        "train.batch_size=3",
        "train.lr=0.01",
        "evaluate.baseline=false",
        "compute.threads=1",
    ]
    return with_overrides(Scenario(), [*defaults, *overrides])


class Recorder(Record):
    """Keeps rounds and events in memory."""

    def losses(self, phase: str = "train") -> list[Any]:
        """Return the loss of every optimiser step."""
        return [e["loss"] for e in self.events if e["event"] == "step" and e["phase"] == phase]


class Federation(in_process.Federation):
    """A server and its clients in this process, one after the other."""

    def __init__(
        self,
        config: Scenario,
        *,
        workers: int = 1,
        wrap: Callable[[EdgeClient], Handler] = lambda client: client.handle,
    ) -> None:
        self.recorder = Recorder()
        super().__init__(config, self.recorder, workers, wrap)

    def run(self) -> Federation:
        self.server.training.run()
        return self

    def head(self, client: int = 0) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.clients[client].head.module.parameters()]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Tell whether two adapters are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def copy_model(source: Path, target: Path, kind: str) -> Path:
    shutil.copytree(source, target)
    add_tokenizer(target, kind)
    return target


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the relative distance of a tensor from its reference."""
    return float(torch.dist(a, b) / b.norm().clamp_min(1e-12))


def ids_of(samples: Sequence[Any]) -> list[tuple[int, ...]]:
    return [sample.ids for sample in samples]
