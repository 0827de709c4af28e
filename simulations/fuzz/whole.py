"""The undivided model in plain PEFT that a run is held to, loaded by transformers alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

from fedlora.config import Scenario
from fedlora.split import Checkpoint, Cut, compute_as_kept, find_family, model_folder
from fedlora.tasks import IGNORED, Sample, task_class


def as_kept(model: Any, scenario: Scenario, checkpoint: Checkpoint) -> None:
    """Give an undivided model the matrices that the server of a scenario computes with."""
    if form := scenario.model.few_bits:
        cut = Cut.of(checkpoint, scenario.model.client_front, scenario.model.client_back)
        layers = find_family(checkpoint).layers
        compute_as_kept(model, layers, range(cut.start, cut.stop), form)


class Whole:
    """An undivided model.

    Parameters
    ----------
    scenario
        Model and task are used.
    folder
        Where the model is, if not at ``model.path``.

    Attributes
    ----------
    pooled
        Whether it is a classifier's backbone, without a head of its own.
    base
        The model.
    prefix
        What stands before the names of its modules in a language model.
    """

    def __init__(self, scenario: Scenario, folder: Path | None = None) -> None:
        folder = folder or model_folder(scenario.model.path)
        self.scenario, self.pooled = scenario, task_class(scenario.task.kind).pooled
        causal = find_family(Checkpoint(folder)).causal
        cls = AutoModelForCausalLM if causal else AutoModel
        model: Any = cls.from_pretrained(folder, dtype=torch.float32).eval()
        name = model.base_model_prefix
        # AutoModel would leave an embedding random that is stored under the head's name
        self.base = getattr(model, name) if self.pooled and causal else model
        self.prefix = "" if self.pooled else f"{name}."
        as_kept(model, scenario, Checkpoint(folder))
        out = self.base.get_output_embeddings()
        if out is not None:  # its own, where it was tied to the input's
            out.weight = nn.Parameter(out.weight.detach().clone(), requires_grad=False)

    def forward(self, model: Any, samples: Sequence[Sample]) -> torch.Tensor:
        """Return pooled states, or logits packed token by token.

        Parameters
        ----------
        model
            ``base``, or what PEFT made of it.
        samples
            The rows.
        """
        lengths = [len(sample.ids) for sample in samples]
        ids = nn.utils.rnn.pad_sequence([torch.tensor(s.ids) for s in samples], True)
        mask = nn.utils.rnn.pad_sequence([torch.ones(n) for n in lengths], True).long()
        # as embeddings, because RoBERTa counts no position for a token that is its padding
        out = model(inputs_embeds=model.get_input_embeddings()(ids), attention_mask=mask)
        if not self.pooled:
            return torch.cat([out.logits[row, :n] for row, n in enumerate(lengths)])
        states: torch.Tensor = out.last_hidden_state
        match self.scenario.task.pool:
            case "cls":
                return states[:, 0]
            case "last":
                return states[torch.arange(len(samples)), torch.tensor(lengths) - 1]
        return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def loss(
        self, out: torch.Tensor, samples: Sequence[Sample], head: torch.Tensor | None
    ) -> tuple[torch.Tensor, int]:
        """Return the unreduced loss and its number of terms.

        Parameters
        ----------
        out
            What ``forward`` returned.
        samples
            The rows.
        head
            Weight of a classifier's head, shape (classes, width); None for a language model.
        """
        if head is not None:
            targets = torch.tensor([sample.target for sample in samples])
            out = out @ head.T
        else:
            targets = torch.tensor([t for s in samples for t in s.target])
        total = F.cross_entropy(out, targets, reduction="sum", ignore_index=IGNORED)
        return total, int((targets != IGNORED).sum())
