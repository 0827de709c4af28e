"""AdamW that keeps time for each LoRA component.

A component that no client trained in a step must stay as it is. Plain AdamW would go on moving it
by its momentum and decay it, so every component has its own step counter, and an untouched one has
no update of weight, moments or counter. Where all train, this is ``torch.optim.AdamW``: projections
all of whose components train, and have trained as often, take torch's fused step together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.optim.adamw import adamw

from fedlora.errors import FedloraError
from fedlora.lora.layers import LoraProjection

_EPS = 1e-8


class ComponentAdamW:
    """Decoupled weight decay Adam (arXiv 1711.05101) over the factors of all projections.

    Parameters
    ----------
    projections
        What to update.
    weight_decay
        Decoupled decay, multiplied by the learning rate.
    betas
        How much of the first and the second moment stays at each step.
    """

    def __init__(
        self,
        projections: Sequence[LoraProjection],
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        self.projections = projections
        self.betas = betas
        self.weight_decay = weight_decay
        r_max = projections[0].A.shape[0]
        self.steps = torch.zeros(len(projections), r_max)
        # B is handled transposed, so that components are rows in both factors.
        self._first = [torch.zeros_like(f) for p in projections for f in (p.A, p.B.T)]
        self._second = [torch.zeros_like(m) for m in self._first]

    @torch.no_grad()
    def step(self, lr: float, active: torch.Tensor) -> None:
        """Update the active components with the gradients that the factors hold.

        Parameters
        ----------
        lr
            Learning rate of this step.
        active
            Components to update, bool, shape (projections, r_max).
        """
        self.steps += active
        even = active.all(1) & (self.steps == self.steps[:, :1]).all(1)
        together = {place for place in even.nonzero().flatten().tolist() if self._is_plain(place)}
        self._step_together(sorted(together), lr)
        for index in active.any(1).nonzero().flatten().tolist():
            if index in together:
                continue
            projection = self.projections[index]
            rows = active[index].to(projection.A.device)
            time = self.steps[index].clamp_min(1.0).double()
            corrections = [(1 - beta**time).to(projection.A).unsqueeze(1) for beta in self.betas]
            A, B = projection.A, projection.B
            if A.grad is not None:
                self._update(2 * index, A, A.grad, lr, rows[:, None], corrections)
            if B.grad is not None:
                self._update(2 * index + 1, B.T, B.grad.T, lr, rows[:, None], corrections)

    def _is_plain(self, index: int) -> bool:
        """Tell whether torch's fused step is sure to know a projection's factors."""
        projection = self.projections[index]
        return all(
            f.dtype == torch.float32 and f.is_contiguous() and f.device.type in ("cpu", "cuda")
            for f in (projection.A, projection.B)
        )

    def _step_together(self, chosen: Sequence[int], lr: float) -> None:
        """Update all components of projections, of each of which all have trained as often."""
        own: list[tuple[torch.Tensor, ...]] = []
        for index in chosen:
            projection, place = self.projections[index], 2 * index
            before = self.steps[index, 0] - 1  # the fused step counts on by itself
            parts = (
                (projection.A, self._first[place], self._second[place]),
                (projection.B, self._first[place + 1].T, self._second[place + 1].T),
            )
            for factor, first, second in parts:
                if factor.grad is not None:
                    time = before.to(factor.device, copy=True)
                    own.append((factor, factor.grad.contiguous(), first, second, time))
        if not own:
            return
        factors, gradients, means, squares, times = (list(part) for part in zip(*own, strict=True))
        adamw(
            factors,
            gradients,
            means,
            squares,
            [],
            times,
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=lr,
            weight_decay=self.weight_decay,
            eps=_EPS,
            maximize=False,
        )

    def _update(
        self,
        place: int,
        factor: torch.Tensor,
        grad: torch.Tensor,
        lr: float,
        rows: torch.Tensor,
        corrections: Sequence[torch.Tensor],
    ) -> None:
        first, second = self._first[place], self._second[place]
        keep, keep_square = self.betas
        first.copy_(torch.where(rows, first.lerp(grad, 1 - keep), first))
        second.copy_(torch.where(rows, second * keep_square + (1 - keep_square) * grad**2, second))
        denominator = (second / corrections[1]).sqrt_().add_(_EPS)
        update = first / corrections[0] / denominator
        moved = factor * (1 - lr * self.weight_decay) - lr * update
        factor.copy_(torch.where(rows, moved, factor))

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for projection in self.projections:
            projection.A.grad = None
            projection.B.grad = None

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return moments and step counters as named tensors."""
        state = {"steps": self.steps}
        for place, (first, second) in enumerate(zip(self._first, self._second, strict=True)):
            state[f"{place}.first"] = first
            state[f"{place}.second"] = second
        return state

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what ``state_dict`` gave; raises ``FedloraError`` for another model's state."""
        own = self.state_dict()
        if own.keys() != state.keys() or any(own[k].shape != state[k].shape for k in own):
            raise FedloraError(
                "optimiser state is of other projections; resume with the same lora section"
            )
        for name, tensor in own.items():
            tensor.copy_(state[name])


@torch.no_grad()
def clip_global_norm(gradients: Sequence[torch.Tensor], clip_norm: float) -> float:
    """Scale gradients in place to a joint norm of at most ``clip_norm``; return the norm before."""
    norm = torch.nn.utils.get_total_norm(gradients)
    if clip_norm > 0:
        factor = (clip_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor.to(gradient.device))
    return float(norm)
