"""Norms and learned positions of the server's blocks that train beside A and B (``lora.also``).

They are no low-rank correction: all clients' tokens pass the same ones whatever their ranks, so
there are no components to leave out, and each gradient is the mean over all who gave one. LLM4CP
trains GPT-2's norms and positions so (Liu et al. 2024, arXiv 2406.14440, section III-D).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.adamw import adamw

from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.split import Checkpoint, Cut, find_family

if TYPE_CHECKING:  # blocks bring transformers
    from fedlora.split import Blocks

_EPS = 1e-8
_NORM = re.compile(r"(?:^|[._])(?:\w*norm\w*|ln_\w+|ln)(?=\.|$)", re.IGNORECASE)
_POSITIONS = re.compile(r"(?:^|\.)(?:wpe|position_embeddings|embed_positions)(?=\.|$)")
_KINDS = {"norm": _NORM, "positions": _POSITIONS}


def is_also(name: str, also: Sequence[str]) -> bool:
    """Tell whether a parameter, by its name in a model, is of a kind that ``lora.also`` names."""
    module = name.rpartition(".")[0]
    return any(_KINDS[kind].search(module) is not None for kind in also)


def check_also(scenario: Scenario, checkpoint: Checkpoint, cut: Cut) -> None:
    """Refuse a kind of parameter that the server's blocks have none of.

    Raises
    ------
    FedloraError
        See above.
    """
    layers = re.compile(rf"(?:^|\.){re.escape(find_family(checkpoint).layers)}\.(\d+)\.")
    for kind in scenario.lora.also:
        for name in checkpoint.entries:
            block = layers.search(name)
            held = cut.start <= int(block[1]) < cut.stop if block else cut.start == 0
            if held and is_also(name, (kind,)):
                break
        else:
            raise FedloraError(
                f"lora.also names {kind}, and the server's blocks of this {checkpoint.model_type} "
                "hold none that are learned (rotary positions have no weights, and with "
                "model.client_front the first stage is the clients'); leave it out"
            )


@dataclass(frozen=True)
class WholeTensor:
    """A parameter that trains whole.

    Attributes
    ----------
    name
        Its name in the undivided base model.
    parameter
        The blocks' own.
    """

    name: str
    parameter: nn.Parameter


class AlsoTrained:
    """Opens what ``lora.also`` names, averages its gradients and takes AdamW's steps.

    Parameters
    ----------
    blocks
        Whose parameters are set to train, in place.
    scenario
        LoRA, training and robust sections are used.

    Attributes
    ----------
    tensors
        In the order of the model; empty where nothing is named.
    """

    def __init__(self, blocks: Blocks, scenario: Scenario) -> None:
        self.tensors = [
            WholeTensor(blocks.original_name(name), parameter)
            for name, parameter in blocks.model.named_parameters()
            if is_also(name, scenario.lora.also)
        ]
        for tensor in self.tensors:
            tensor.parameter.requires_grad_()
        self._betas, self._decay = scenario.robust.betas, scenario.train.weight_decay
        self._steps = torch.zeros(())
        self._moments = [
            (torch.zeros_like(t.parameter), torch.zeros_like(t.parameter)) for t in self.tensors
        ]
        self._weight = 0.0

    def __len__(self) -> int:
        """How many numbers train."""
        return sum(tensor.parameter.numel() for tensor in self.tensors)

    def parameters(self) -> list[nn.Parameter]:
        """Return what trains."""
        return [tensor.parameter for tensor in self.tensors]

    def count(self, weights: Sequence[float | None]) -> None:
        """Add up samples or target tokens of those who gave a gradient; None for who gave none."""
        self._weight += sum(weight for weight in weights if weight is not None)

    def average(self) -> list[torch.Tensor]:
        """Divide the summed gradients by the weight of who gave them, in place; return them."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        for gradient in gradients:
            gradient.div_(self._weight or 1.0)
        return gradients

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Take a step with the averaged gradients, and begin the next; none where nobody gave any.

        Parameters
        ----------
        lr
            Learning rate of this step, that of A and B.
        """
        own = [
            (tensor.parameter, tensor.parameter.grad, *moments, self._steps.clone())
            for tensor, moments in zip(self.tensors, self._moments, strict=True)
            if tensor.parameter.grad is not None
        ]
        if own and self._weight > 0:
            parameters, gradients, means, squares, times = zip(*own, strict=True)
            adamw(
                list(parameters),
                list(gradients),
                list(means),
                list(squares),
                [],
                list(times),
                foreach=False,
                amsgrad=False,
                beta1=self._betas[0],
                beta2=self._betas[1],
                lr=lr,
                weight_decay=self._decay,
                eps=_EPS,
                maximize=False,
            )
            self._steps += 1  # the functional form counts each tensor's own
        self.begin()

    def begin(self) -> None:
        """Forget the gradients of a step."""
        self._weight = 0.0
        for parameter in self.parameters():
            parameter.grad = None

    def values(self) -> dict[str, torch.Tensor]:
        """Return copies by name."""
        return {tensor.name: tensor.parameter.detach().clone() for tensor in self.tensors}

    @torch.no_grad()
    def load(self, values: Mapping[str, torch.Tensor]) -> None:
        """Set all from what ``values`` returned, which may hold more."""
        for tensor in self.tensors:
            tensor.parameter.copy_(values[tensor.name])

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state as named tensors."""
        state = {"steps": self._steps}
        for tensor, (first, second) in zip(self.tensors, self._moments, strict=True):
            state[f"{tensor.name}.first"], state[f"{tensor.name}.second"] = first, second
        return state

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what ``state_dict`` gave; raises ``FedloraError`` for another model's state."""
        own = self.state_dict()
        if own.keys() != state.keys() or any(own[k].shape != state[k].shape for k in own):
            raise FedloraError(
                "optimiser state is of other norms and positions; resume with the same lora.also"
            )
        for name, tensor in own.items():
            tensor.copy_(state[name])
