"""The oracle of training: the undivided Hugging Face model with PEFT, on the same batches."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig as PeftLoraConfig, get_peft_model
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

from fedlora.batch_order import BatchStream
from fedlora.tasks import Sample
from support.federation import Federation

PREFIXES = {"gpt2": "transformer.", "bert": ""}


class SampleStream(BatchStream):
    """A client's batches, as samples."""

    def __init__(self, samples: list[Sample], batch_size: int, seed: int, client: int) -> None:
        super().__init__(samples, batch_size, seed, client)
        self._own = samples

    def next(self) -> list[Sample]:
        return [self._own[number] for number in self.indices()]


class Unsplit:
    """Trains one undivided model on what all clients of a federation would train on.

    Parameters
    ----------
    federation
        Not yet run: initial factors, initial head, samples and scenario are taken from it.
    """

    def __init__(self, federation: Federation) -> None:
        config = self.config = federation.server.scenario
        self.pooled = config.task.kind == "classification"
        cls = AutoModel if self.pooled else AutoModelForCausalLM
        base = cls.from_pretrained(config.model.path).eval()
        prefix = "" if self.pooled else PREFIXES.get(base.config.model_type, "model.")
        engine = federation.server.engine
        names = [prefix + p.name for p in engine.projections]
        self.model: Any = get_peft_model(
            base,
            PeftLoraConfig(r=config.lora.r_max, lora_alpha=config.lora.alpha, target_modules=names),
        ).eval()
        layers = [self.model.base_model.model.get_submodule(name) for name in names]
        self.factors = {
            f"{p.name}.{which}": getattr(layer, f"lora_{which}")["default"].weight
            for p, layer in zip(engine.projections, layers, strict=True)
            for which in "AB"
        }
        with torch.no_grad():
            for name, factor in engine.adapter().items():
                self.factors[name].copy_(factor)
        self.start = {name: f.detach().clone() for name, f in self.factors.items()}
        train = config.train
        self.shared = config.head.share == "step"
        count = 1 if self.shared else len(federation.clients)
        self.heads = [nn.Parameter(p.clone()) for p in federation.head() for _ in range(count)]
        embedding = self.model.get_input_embeddings()
        self.scale = getattr(embedding, "embed_scale", torch.ones(()))  # Gemma has one
        self.embeddings = [nn.Parameter(embedding.weight.clone()) for _ in federation.clients]
        for parameter in self.heads:
            parameter.requires_grad_(self.pooled)
        for parameter in self.embeddings:
            parameter.requires_grad_(train.embedding)
        self.optimizers = {
            "adapter": torch.optim.AdamW(self.factors.values(), weight_decay=train.weight_decay),
            "head": torch.optim.AdamW(self.heads, weight_decay=train.weight_decay),
            "embedding": torch.optim.AdamW(self.embeddings, weight_decay=train.weight_decay),
        }
        self.batches = [
            SampleStream(c.door.truth(c.train), train.batch_size, config.seed, number)
            for number, c in enumerate(federation.clients)
        ]

    def run(self) -> list[float]:
        """Train for all steps of the scenario; return the mean loss of each."""
        train, losses = self.config.train, []
        for number in range(train.total_steps):
            losses.append(self.step(number))
            if self.config.head.share == "round" and (number + 1) % train.steps == 0:
                self.average_heads()
        return losses

    @torch.no_grad()
    def average_heads(self) -> None:
        sizes = [float(b.batch_size) for b in self.batches]
        mean = sum(h * (n / sum(sizes)) for h, n in zip(self.heads, sizes, strict=True))
        for head in self.heads:
            head.copy_(mean)

    def step(self, number: int) -> float:
        train = self.config.train
        total, weights = 0.0, [0] * len(self.batches)
        for _ in range(train.accumulate):
            batch = [stream.next() for stream in self.batches]
            loss, counts = self.loss(batch)
            loss.backward()
            total += loss.item()
            weights = [a + b for a, b in zip(weights, counts, strict=True)]
        # Where a client has a part of its own, its own loss alone counts.
        own = [self.embeddings] if self.shared else [self.embeddings, self.heads]
        for parts in own:
            for parameter, weight in zip(parts, weights, strict=False):
                if parameter.grad is not None:
                    parameter.grad /= weight
        common = [*self.factors.values(), *(self.heads if self.shared and self.pooled else [])]
        for parameter in common:
            parameter.grad /= sum(weights)
        if train.clip_norm:
            nn.utils.clip_grad_norm_(common, train.clip_norm)
        for name, optimizer in self.optimizers.items():
            share = train.head_lr / train.lr if name == "head" and train.head_lr else 1.0
            optimizer.param_groups[0]["lr"] = share * self.rate(number)
            optimizer.step()
            optimizer.zero_grad()
        return total / sum(weights)

    def loss(self, batch: list[list[Sample]]) -> tuple[torch.Tensor, list[int]]:
        """Return the sum of the losses of all clients' rows, and each client's number of terms."""
        samples = [sample for own in batch for sample in own]
        rows = [
            F.embedding(torch.tensor(sample.ids), self.embeddings[client])
            for client, own in enumerate(batch)
            for sample in own
        ]
        embedded = nn.utils.rnn.pad_sequence(rows, True) * self.scale
        ids = nn.utils.rnn.pad_sequence([torch.tensor(s.ids) for s in samples], True)
        mask = nn.utils.rnn.pad_sequence([torch.ones(len(s.ids)) for s in samples], True).long()
        output = self.model(inputs_embeds=embedded, attention_mask=mask)
        if self.pooled:
            z = self.pool(output.last_hidden_state, mask).split([len(own) for own in batch])
            heads = self.heads * len(batch) if self.shared else self.heads
            logits = torch.cat([x @ head.T for x, head in zip(z, heads, strict=False)])
            targets = torch.tensor([s.target for s in samples])
            return F.cross_entropy(logits, targets, reduction="sum"), [len(b) for b in batch]
        start = torch.tensor([self.prompt_length(s.ids) for s in samples])
        trained = mask[:, 1:].bool() & (torch.arange(1, ids.shape[1]) >= start[:, None])
        loss = F.cross_entropy(output.logits[:, :-1][trained], ids[:, 1:][trained], reduction="sum")
        return loss, [int(part.sum()) for part in trained.split([len(own) for own in batch])]

    def pool(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        match self.config.task.pool:
            case "cls":
                return states[:, 0]
            case "last":
                return states[torch.arange(len(states)), mask.sum(1) - 1]
            case _:
                return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def prompt_length(self, ids: tuple[int, ...]) -> int:
        """Return the place of the first token that is trained on, at least 1.

        A word that goes on behind the separator, such as w50 behind w5, is trained on.
        """
        separator = self.config.data.prompt_separator
        if not separator:
            return 1
        words = [f"w{number}" for number in ids]
        place = next(n for n, word in enumerate(words) if word.startswith(separator))
        return max(1, place + (words[place] == separator))

    def rate(self, step: int) -> float:
        train = self.config.train
        if step < train.warmup_steps:
            return train.lr * (step + 1) / train.warmup_steps
        if train.schedule == "constant":
            return train.lr
        left = train.total_steps - step
        return train.lr * left / (train.total_steps - train.warmup_steps)
