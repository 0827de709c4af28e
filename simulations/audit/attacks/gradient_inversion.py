"""Gradient inversion: search for inputs and labels that would give an observed adapter gradient.

DLG (Zhu et al. 2019) with the cosine distance of Geiping et al. 2020, for the gradients of LoRA
factors. The attacker knows the model, the adapters, the head and the number of tokens, but sees no
activation: whoever only sees gradients or updates of adapters is in this place. The server of this
topology is not. It receives the activations themselves, and the gradient at the cut is a function
of what the server sent down and of the label, so beyond the activations it tells it the label and
nothing of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedlora.lora.layers import LoraProjection

Forward = Callable[[torch.Tensor], torch.Tensor]
"""Maps embeddings (samples, tokens, width) of equal lengths to what the head takes."""

_TINY = 1e-12


@dataclass(frozen=True)
class Inverted:
    """What a gradient inversion found.

    Attributes
    ----------
    embeddings
        Shape (samples, tokens, width).
    labels
        Class of each sample, shape (samples,).
    distance
        Mean cosine distance that is left between the gradients; 0 where they agree.
    """

    embeddings: torch.Tensor
    labels: torch.Tensor
    distance: float


class AdapterGradients:
    """Gradients of every projection's A and B, for each sample on its own.

    They come from the inputs X and the gradients G at the outputs of the adapted projections,
    dA = s B^T G^T X and dB = s G^T X A^T with s = alpha / r_max, and can be differentiated again.
    Use it as a context: it listens to the projections meanwhile.

    Parameters
    ----------
    forward
        Runs the model.
    projections
        Its adapted projections.
    """

    def __init__(self, forward: Forward, projections: Sequence[LoraProjection]) -> None:
        self._forward = forward
        self._projections = projections
        self._seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._hooks: list[Any] = []
        self._kernel = sdpa_kernel(SDPBackend.MATH)  # the others cannot be differentiated twice

    def __enter__(self) -> Self:
        for index, projection in enumerate(self._projections):
            module: nn.Module = projection.module
            self._hooks.append(module.register_forward_hook(self._listener(index)))
        self._kernel.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._kernel.__exit__(kind, error, traceback)
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._seen.clear()

    def __call__(
        self,
        embeddings: torch.Tensor,
        cotangent: Callable[[torch.Tensor], torch.Tensor],
        *,
        differentiable: bool = False,
    ) -> list[torch.Tensor]:
        """Return the gradients, one tensor (samples, ...) for each factor.

        Parameters
        ----------
        embeddings
            Shape (samples, tokens, width).
        cotangent
            Maps the representation to the gradient of the loss by it.
        differentiable
            Whether the result is to be differentiated.
        """
        inputs = embeddings if embeddings.requires_grad else embeddings.detach().requires_grad_()
        z = self._forward(inputs)
        outputs = [self._seen[i][1] for i in range(len(self._projections))]
        upstream = torch.autograd.grad(z, outputs, cotangent(z), create_graph=differentiable)
        found = []
        samples = len(embeddings)
        for index, (p, gradient) in enumerate(zip(self._projections, upstream, strict=True)):
            x = self._seen[index][0].reshape(samples, -1, p.d_in)
            g = gradient.reshape(samples, -1, p.d_out)
            # constants such as s do not matter to the cosine
            found.append(torch.einsum("nsr,nsi->nri", g @ p.B.detach(), x))
            found.append(torch.einsum("nso,nsr->nor", g, x @ p.A.detach().T))
        return found if differentiable else [tensor.detach() for tensor in found]

    def _listener(self, index: int) -> Callable[..., None]:
        def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            del module
            self._seen[index] = inputs[0], output

        return note


def invert_gradients(
    gradients: AdapterGradients,
    target: Sequence[torch.Tensor],
    head_weight: torch.Tensor,
    shape: tuple[int, int, int],
    scale: float,
    *,
    steps: int = 200,
    rate: float = 0.1,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Inverted:
    """Search for embeddings and labels whose adapter gradients point where the target does.

    Parameters
    ----------
    gradients
        Of the model under attack, entered.
    target
        Observed gradients, as ``gradients`` returns them.
    head_weight
        Weight of the linear head, shape (classes, width).
    shape
        Samples, tokens and embedding width.
    scale
        Root mean square of a token embedding's numbers, where the search starts.
    steps, rate
        Steps of Adam and their size over ``scale``.
    seed
        Seed of the start.
    advance
        Called after every step.
    """
    generator = torch.Generator().manual_seed(seed)
    unknown = torch.randn(shape, generator=generator).requires_grad_()
    labels = torch.zeros(shape[0], len(head_weight), requires_grad=True)
    optimiser = torch.optim.Adam([unknown, labels], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    weight = head_weight.detach().float()
    known = [flat for t in target if bool((flat := t.flatten(1)).any())]
    places = [i for i, t in enumerate(target) if bool(t.any())]

    def cotangent(z: torch.Tensor) -> torch.Tensor:
        return (torch.softmax(z @ weight.T, -1) - torch.softmax(labels, -1)) @ weight

    distance = torch.zeros(())
    for _ in range(steps):
        guessed = gradients(scale * unknown, cotangent, differentiable=True)
        distance = torch.stack(
            [
                1 - F.cosine_similarity(guessed[i].flatten(1), t, dim=1, eps=_TINY)
                for i, t in zip(places, known, strict=True)
            ]
        ).mean()
        unknown.grad, labels.grad = torch.autograd.grad(distance * shape[0], [unknown, labels])
        optimiser.step()
        schedule.step()
        advance()
    return Inverted((scale * unknown).detach(), labels.argmax(1), float(distance.detach()))
