"""AdamW that keeps time for each LoRA component.

A component that no client trained in a step must stay as it is. Plain AdamW would go on moving it
by its momentum and decay it, so every component has its own step counter, and an untouched one has
no update of weight, moments or counter. Where all train, this is ``torch.optim.AdamW``: projections
all of whose components train, and have trained as often, take torch's fused step together. Those of
all others are updated as one row of numbers: each by itself has a few thousand, for which a dozen
small operations each would take most of the step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch.optim.adamw import adamw

from fedlora.errors import FedloraError
from fedlora.lora.layers import LoraProjection

_EPS = 1e-8
_ROW = 1 << 18  # numbers from which another row begins


class _Row:
    """Factors that lie together, one after the other as one row of numbers.

    Parameters
    ----------
    projections
        On one device, with factors of one precision, by their places.
    r_max
        Components of each.

    Attributes
    ----------
    first, second
        The row's moments.
    component
        Place of each number's component among those of all projections, place x r_max and on.
    """

    def __init__(self, projections: Mapping[int, LoraProjection], r_max: int) -> None:
        self._projections = projections
        self._places = {place: 2 * own for own, place in enumerate(projections)}
        self._sizes = [factor.numel() for factor in self._factors()]
        one = self._factors()[0]
        self.first = torch.zeros(sum(self._sizes), device=one.device, dtype=one.dtype)
        self.second = torch.zeros_like(self.first)
        own, parts = torch.arange(r_max, device=one.device, dtype=torch.int32), []
        for place, projection in projections.items():
            parts.append((own + place * r_max).repeat_interleave(projection.A.shape[1]))
            parts.append((own + place * r_max).repeat(projection.B.shape[0]))  # stored by output
        self.component = torch.cat(parts)

    def moments(self, row: torch.Tensor) -> dict[int, list[torch.Tensor]]:
        """View moments as a projection's factors are, B transposed, by the projection's place."""
        parts = torch.split(row, self._sizes)
        views = [part.view(f.shape) for part, f in zip(parts, self._factors(), strict=True)]
        return {place: [views[at], views[at + 1].T] for place, at in self._places.items()}

    def step(
        self,
        chosen: Iterable[int],
        moving: torch.Tensor,
        steps: torch.Tensor,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
    ) -> None:
        """Update the moving components of the chosen projections, each at a time of its own.

        ``moving`` and ``steps`` have an entry for each component of all projections.
        """
        all_, here = self._factors(), [self._places[c] for c in chosen if c in self._places]
        told = [n for place in here for n in (place, place + 1) if all_[n].grad is not None]
        if not told:
            return
        moves = self._spread(moving)
        for place, part in enumerate(torch.split(moves, self._sizes)):
            if place not in told:
                part.zero_()
        time = steps.clamp_min(1.0).double()
        mean_part, square_part = (
            self._spread((1 - beta**time).to(self.first.dtype)) for beta in betas
        )
        factors = torch.cat([factor.reshape(-1) for factor in all_])
        given = (factor if factor.grad is None else factor.grad for factor in all_)
        gradient = torch.cat([own.reshape(-1) for own in given])
        keep, keep_square = betas
        first, second = self.first, self.second
        torch.where(moves, first.lerp(gradient, 1 - keep), first, out=first)
        square = gradient.square_().mul_(1 - keep_square).add_(second, alpha=keep_square)
        torch.where(moves, square, second, out=second)
        denominator = torch.div(second, square_part, out=square).sqrt_().add_(_EPS)
        update = torch.div(first, mean_part, out=mean_part).div_(denominator)
        moved = (factors * (1 - lr * weight_decay)).sub_(update, alpha=lr)
        parts = torch.split(torch.where(moves, moved, factors), self._sizes)
        for place in told:
            all_[place].copy_(parts[place].view(all_[place].shape))

    def _factors(self) -> list[torch.nn.Parameter]:
        return [factor for p in self._projections.values() for factor in (p.A, p.B)]

    def _spread(self, components: torch.Tensor) -> torch.Tensor:
        """Give each number what its component has."""
        return components.to(self.first.device).index_select(0, self.component)


def _in_rows(projections: Sequence[LoraProjection]) -> list[dict[int, LoraProjection]]:
    """Deal projections to rows, in order: of one kind each, and not too long for a cache."""
    rows: list[dict[int, LoraProjection]] = []
    kinds: dict[tuple[torch.device, torch.dtype], tuple[int, dict[int, LoraProjection]]] = {}
    for index, p in enumerate(projections):
        numbers, own = kinds.get((p.A.device, p.A.dtype), (_ROW, {}))
        if numbers >= _ROW:
            numbers, own = 0, {}
            rows.append(own)
        own[index] = p
        kinds[p.A.device, p.A.dtype] = numbers + p.A.numel() + p.B.numel(), own
    return rows


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
        self._rows = [_Row(own, r_max) for own in _in_rows(projections)]
        # B is handled transposed, so that components are rows in both factors.
        self._first = self._in_order([row.moments(row.first) for row in self._rows])
        self._second = self._in_order([row.moments(row.second) for row in self._rows])

    def _in_order(self, found: Sequence[Mapping[int, list[torch.Tensor]]]) -> list[torch.Tensor]:
        """Return each projection's two parts, in the order of the projections."""
        by_place = {place: parts for own in found for place, parts in own.items()}
        return [part for place in sorted(by_place) for part in by_place[place]]

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
        apart = [
            place for place in active.any(1).nonzero().flatten().tolist() if place not in together
        ]
        if apart:
            moving = active.clone()
            moving[sorted(together)] = False
            told = moving.flatten(), self.steps.flatten()
            for row in self._rows:
                row.step(apart, *told, lr, self.weight_decay, self.betas)

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
